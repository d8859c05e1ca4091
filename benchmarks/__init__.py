"""Measurements, each run by `python -m benchmarks.NAME`; they print a table and write JSON to benchmarks/results."""
