"""How many requests a client sends at once where nobody has set a number."""
