"""Mining where annotations are wrong: boxes that are missing, and classes that are swapped."""
