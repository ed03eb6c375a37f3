"""Benchmarks of speed and memory. `make bench` runs all; `python -m benchmarks.step --help` describes one."""

from time import perf_counter

STARTED = perf_counter()
"""Start of the benchmark, before slow imports."""
