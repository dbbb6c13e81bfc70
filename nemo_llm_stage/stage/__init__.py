"""A table in, the same rows and new columns out; no files, no Ray."""
