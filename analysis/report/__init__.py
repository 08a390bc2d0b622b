"""The report's files: page, summary, tables."""
