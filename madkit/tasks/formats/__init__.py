"""Readers of the files in which the benchmarks' owners distribute them."""

from __future__ import annotations
