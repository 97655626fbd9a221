"""CLIP-ViL (https://arxiv.org/abs/2107.06383): a student that sees with the teacher's tokens instead of a detector's
regions. The concurrent way of using a strong vision encoder, with which distillation is compared: here the teacher is
part of the student and is paid at every answer.

Any student of regions can be one. The network is unchanged; its regions are the teacher's patches, whose width is the
teacher's. The authors trained the encoder along; here it stays frozen, so that its tokens come from the cache.
"""

from __future__ import annotations

from dataclasses import replace

from madkit.students import lxmert, uniter, visualbert, vl_bert
from madkit.students.families import Family

PAPER = "https://arxiv.org/abs/2107.06383"


def seeing_tokens(family: Family, name: str) -> Family:
    """`family` with a teacher's tokens in the place of regions."""
    return replace(
        family,
        name=name,
        title=f"{family.name}'s network on the teacher's own image tokens",
        paper=PAPER,
        inputs="text; the teacher's image tokens and their cells, from its cache",
        visual="teacher",
        official=None,
    )


FAMILY = seeing_tokens(uniter.FAMILY, "clip-vil")
LXMERT = seeing_tokens(lxmert.FAMILY, "clip-vil-lxmert")
VISUALBERT = seeing_tokens(visualbert.FAMILY, "clip-vil-visualbert")
VL_BERT = seeing_tokens(vl_bert.FAMILY, "clip-vil-vl-bert")
