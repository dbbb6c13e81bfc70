"""One request becomes one completion. Knows nothing of rows, files or Ray."""
