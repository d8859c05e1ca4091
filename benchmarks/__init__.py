"""Measurements of speed and memory: `python -m benchmarks NAME` runs one, prints a table and writes a JSON file.

A benchmark is a module with a `Benchmark` (report.py) and one line in `BENCHMARKS` (__main__.py). What is compared is
run in turn, pair by pair, so that a drift of the machine's speed meets all candidates alike.
"""
