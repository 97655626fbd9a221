"""Measuring madkit: made-up files of the real benchmarks' size and statistics, for where the real ones are not."""
