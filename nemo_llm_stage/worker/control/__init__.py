"""Steers a run: orders from its folder, limits of money and rate, its status for everybody who may read the folder."""
