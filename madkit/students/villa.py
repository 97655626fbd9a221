"""VILLA (https://github.com/zhegan27/VILLA): UNITER's network with adversarially pretrained weights."""

from __future__ import annotations

from dataclasses import replace

from madkit.students import uniter
from madkit.students.families import Recipe, WeightSource

_VCR = "4 GPUs x 4,000 tokens x 5"
FAMILY = replace(
    uniter.FAMILY,
    name="villa",
    title="UNITER's network, adversarially pretrained",
    paper="https://arxiv.org/abs/2006.06195",
    weights=(
        WeightSource("bert-base-cased, bert-large-cased", "--init", "Apache-2.0", "text layers; regions start afresh"),
        WeightSource(
            "villa-base.pt, villa-large.pt", "madkit students convert FILE --family villa", "MIT (code)",
            "the authors' storage account answers no more: from a copy of your own",
        ),
    ),
    recipes=(
        Recipe("vcr", "base", 6e-5, _VCR, "8,000 steps", "800", "binary", "adversarial: text and image, rate 0.01"),
        Recipe(
            "vcr", "large", 6e-5, "4 GPUs x 2,000 tokens x 10", "10,000 steps", "1,000", "binary",
            "adversarial: text and image, rate 0.1",
        ),
        *(
            replace(recipe, note=f"{recipe.note}; adversarial: text")
            for recipe in uniter.RECIPES
            if recipe.task in ("snli-ve", "vqa")
        ),
    ),
)  # fmt: skip
