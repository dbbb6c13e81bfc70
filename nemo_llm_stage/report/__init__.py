"""What a person looks at: progress and summaries."""
