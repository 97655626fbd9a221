"""The embedded benchmark: a deterministic world of pictographs, written in the real benchmarks' own formats."""
