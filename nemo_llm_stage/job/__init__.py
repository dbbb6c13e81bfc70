"""Partitions through a stage into committed files; no Ray."""
