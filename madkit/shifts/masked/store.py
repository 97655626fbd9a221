"""Where a trained scorer is kept: weights, vocabulary, and the facts that its suites report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from madkit.core.files import read_json, write_bytes_atomic, write_json_atomic
from madkit.shifts.masked.scorer import Scorer, ScorerConfig
from madkit.shifts.masked.sequences import Part
from madkit.shifts.masked.words import Vocabulary


@dataclass(frozen=True, slots=True)
class StoredScorer:
    """A scorer with the vocabulary that it reads."""

    scorer: Scorer
    vocabulary: Vocabulary
    facts: dict[str, Any]


def write_scorer(folder: Path, part: Part, stored: StoredScorer) -> None:
    """Write `<part>.safetensors`, `<part>-words.json` and, last, `<part>.json`."""
    from safetensors.torch import save

    # through memory: the library turns a full disk into an error of its own
    weights = save({name: value.cpu().contiguous() for name, value in stored.scorer.state_dict().items()})
    write_bytes_atomic(folder / f"{part}.safetensors", weights)
    stored.vocabulary.write(folder / f"{part}-words.json")
    write_json_atomic(folder / f"{part}.json", stored.facts)


def read_scorer(folder: Path, part: Part, device: torch.device) -> StoredScorer | None:
    """The scorer that is kept in a folder, None where there is none."""
    from safetensors.torch import load_file

    if not (folder / f"{part}.json").is_file():
        return None
    facts = read_json(folder / f"{part}.json")
    vocabulary = Vocabulary.read(folder / f"{part}-words.json")
    scorer = Scorer(ScorerConfig(**facts["config"]), len(vocabulary))
    scorer.load_state_dict(load_file(folder / f"{part}.safetensors"))
    return StoredScorer(scorer.to(device).eval(), vocabulary, facts)
