"""Measures seconds and memory of training steps of several methods on the same mini-batches (paper, table 2)."""
