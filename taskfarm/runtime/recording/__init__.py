"""What a rank remembers for the trace, and the file that it becomes."""
