"""A job prepared and checked before anything is paid for. Runs nothing."""
