"""What was mined, which errors a detector makes, and which annotations are suspect."""
