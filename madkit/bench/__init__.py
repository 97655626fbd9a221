"""Measuring madkit: made-up files of the real benchmarks' size and statistics, and peers to measure against."""
