"""Examples from the benchmarks' own files, low-shot subsets, and shifted test suites."""

from __future__ import annotations
