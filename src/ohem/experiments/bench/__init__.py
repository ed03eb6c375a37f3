"""Seconds and memory of a training step, of several implementations, on the same mini-batches (paper, table 2)."""
