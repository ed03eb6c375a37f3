"""Speed and memory, measured: `make bench`, or one of them with `python -m benchmarks.step --help`."""
