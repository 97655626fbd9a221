"""Students to pass on: a run's student as a folder with a model card, and that folder on the Hugging Face hub."""

from __future__ import annotations
