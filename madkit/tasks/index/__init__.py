"""The index of a data set: its examples as memory-mapped Arrow files that open at once, whatever their size."""

from __future__ import annotations

from madkit.tasks.index.images import ImageTable
from madkit.tasks.index.reader import ExampleTable
from madkit.tasks.index.writer import ExampleWriter

__all__ = ["ExampleTable", "ExampleWriter", "ImageTable"]
