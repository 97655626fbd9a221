"""VILLA (https://github.com/zhegan27/VILLA): UNITER's network with adversarially pretrained weights."""

from __future__ import annotations

from dataclasses import replace

from madkit.students import uniter
from madkit.students.families import WeightSource

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
)  # fmt: skip
