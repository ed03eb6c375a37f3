"""Metrics: pure functions over iterables of predictions and targets."""
