"""Multimodal Adaptive Distillation as tensor code: alignment, selection, weighting, losses, affinity, criterion.

Pure torch; knows nothing of tasks, caches or student networks. ``docs/method.md`` has the formulas.
"""

from __future__ import annotations
