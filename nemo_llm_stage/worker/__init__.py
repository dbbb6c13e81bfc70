"""Runs a prepared job: workers take partitions to committed files. Knows no Ray."""
