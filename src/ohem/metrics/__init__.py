"""Metrics: pure functions of iterables of predictions and targets."""
