"""What a training writes and prints while it runs: metrics.csv, the mining log, other loggers, progress."""
