"""How a running job looks: numbers from its counts, and a screen, a log line or a notebook's cell from the numbers."""
