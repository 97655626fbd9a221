"""Masked VCR: a text-only scorer finds the tokens that give an answer away, and suites are made without them.

After Ye and Kovashka (A Case Study of the Shortcut Effects in Visual Commonsense Reasoning, AAAI 2021). The scorer is
trained here, on the data's own train split.
"""

from __future__ import annotations
