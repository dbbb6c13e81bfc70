"""Inference servers that the package starts: their processes, their health, their restarts. No Ray, no HTTP client."""
