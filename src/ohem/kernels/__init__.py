"""Faster ways to compute single layers, with the results of PyTorch's own to within rounding."""
