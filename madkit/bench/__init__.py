"""Files of the real benchmarks' size and statistics, made up, to measure madkit on where the real ones are not at hand."""
