"""What grows with the data: reading them, and their proposals."""
