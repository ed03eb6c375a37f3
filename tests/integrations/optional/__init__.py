"""Detectors and tools of optional packages."""
