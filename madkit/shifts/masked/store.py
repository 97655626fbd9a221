"""Where a trained scorer is kept: weights, vocabulary, and the facts that its suites report."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from madkit.core.files import read_json, sync_folder, write_json_atomic
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
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / f"{part}.safetensors"
    temporary = folder / f".{part}.{os.getpid()}.tmp"
    save_file({name: value.cpu().contiguous() for name, value in stored.scorer.state_dict().items()}, temporary)
    temporary.replace(weights)
    sync_folder(folder)
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
