"""Benchmarks of speed and memory. `make bench` runs all; `python -m benchmarks.step --help` describes one."""
