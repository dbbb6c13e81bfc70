"""One row becomes its results: render, query, parse, and repair. Knows no tables and no files."""
