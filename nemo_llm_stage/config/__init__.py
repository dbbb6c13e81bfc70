"""What users write: job files, columns, answers and clients, checked and typed."""
