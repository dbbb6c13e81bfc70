"""Everything that can fail becomes one of our error types: refusals, context limits, foreign exceptions."""
