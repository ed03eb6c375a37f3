"""Trains and compares several runs: comparisons of methods, and the tables and figures of the paper."""
