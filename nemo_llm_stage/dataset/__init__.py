"""Storage: plan partitions, read, journal, commit, verify."""
