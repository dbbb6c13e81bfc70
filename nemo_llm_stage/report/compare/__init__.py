"""Two jobs over the same rows, side by side: another prompt, another model, other parameters."""
