"""Parameters and operations of the shipped sizes, so that a list need not build every network.

Counted by `describe.measured`; a test counts them again.
"""

from __future__ import annotations

# name: (millions of parameters without a head, billions of operations of a VQA question's forward pass)
KNOWN_SIZES: dict[str, tuple[float, float | None]] = {
    "uniter-base": (109.9, 8.4),
    "uniter-large": (335.7, 29.4),
    "mini-uniter": (0.83, 0.07),
    "villa-base": (109.9, 8.4),
    "villa-large": (335.7, 29.4),
    "mini-villa": (0.83, 0.07),
    "vl-bert-base": (112.6, 8.8),
    "vl-bert-large": (339.3, 30.8),
    "mini-vl-bert": (1.08, 0.09),
    "visualbert-base": (111.5, 8.4),
    "mini-visualbert": (0.83, 0.07),
    "lxmert-base": (207.9, 8.8),
    "mini-lxmert": (2.15, 0.11),
    "vilt-base": (111.6, 8.6),
    "mini-vilt": (0.83, 0.07),
    "clip-vil-base": (109.9, 8.4),
    "clip-vil-large": (335.7, 29.4),
    "mini-clip-vil": (0.83, 0.07),
    "clip-vil-lxmert-base": (207.9, 8.8),
    "mini-clip-vil-lxmert": (2.15, 0.11),
    "clip-vil-visualbert-base": (111.5, 8.4),
    "mini-clip-vil-visualbert": (0.83, 0.07),
    "clip-vil-vl-bert-base": (112.6, 8.8),
    "clip-vil-vl-bert-large": (339.3, 30.8),
    "mini-clip-vil-vl-bert": (1.08, 0.09),
}
