"""The report: one self-contained HTML page about a job, from its output folder alone."""
