"""Facts about students by name: sizes, parameters, operations, where weights can be had. No weights are read."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from madkit.students.families import DEFAULT_SIZE, family_of, full_name, parse_name, size_names
from madkit.students.heads import HeadSpec
from madkit.students.interface import StudentInputs
from madkit.students.known_sizes import KNOWN_SIZES
from madkit.students.load import SHIPPED

# A sample as published runs have it: candidates, text tokens of one sequence, regions, outputs of the head.
SHAPES = {"vcr": (4, 60, 36, 0), "snli-ve": (1, 20, 36, 3), "vqa": (1, 12, 36, 3129)}


def student_rows() -> list[dict[str, Any]]:
    """One row a student, in the order of the families."""
    return [_row(name) for name in size_names()]


def describe_student(name: str) -> dict[str, Any]:
    """Everything about one student. Raises UsageProblem, with the nearest name, for one that does not exist."""
    found = full_name(name)
    kind, size = parse_name(found) or ("", DEFAULT_SIZE)
    family = family_of(kind)
    config: Any = family.sizes[size]
    return {
        **_row(found),
        "paper": family.paper,
        "inputs": family.inputs,
        "gflops": {task: _gflops(family.model, family.make_head, config, *shape) for task, shape in SHAPES.items()},
        "config": config.as_dict(),
        "weights": [
            {"name": source.name, "how": source.how, "licence": source.licence, "note": source.note}
            for source in family.weights
        ],
    }


def _row(name: str) -> dict[str, Any]:
    kind, size = parse_name(name) or ("", DEFAULT_SIZE)
    family = family_of(kind)
    config: Any = family.sizes[size]
    parameters, gflops = KNOWN_SIZES[name] if name in KNOWN_SIZES else measured(name)
    return {
        "name": name,
        "family": family.name,
        "size": size,
        "title": family.title,
        "layers": config.layers,
        "hidden_size": config.hidden_size,
        "parameters_m": parameters,
        "text_tokens": config.max_positions,
        "sees": family.visual,
        "region_dim": config.region_dim,
        "gflops_vqa": gflops,
        "begins_with": "its own weights" if name in SHIPPED else _beginning(family, size),
    }


def measured(name: str) -> tuple[float, float | None]:
    """(millions of parameters without a head, billions of operations of a VQA question) of a student, counted."""
    kind, size = parse_name(name) or ("", DEFAULT_SIZE)
    family = family_of(kind)
    config: Any = family.sizes[size]
    parameters = sum(p.numel() for p in _network(family.model, config).parameters())
    shown = round(parameters / 1e6, 2 if parameters < 1e7 else 1)
    return shown, _gflops(family.model, family.make_head, config, *SHAPES["vqa"])


@lru_cache
def _network(model: Any, config: Any) -> Any:
    """The network without weights, on torch's meta device."""
    with torch.device("meta"):
        return model(config).eval().requires_grad_(False)


def _beginning(family: Any, size: str) -> str:
    if size == "mini" and family.from_text is not None:
        return "mini-uniter's text layers"
    return "--init"


@lru_cache
def _gflops(
    model: Any, make_head: Any, config: Any, candidates: int, text: int, regions: int, outputs: int
) -> float | None:
    """Billions of operations of one sample's forward pass (a multiplication with addition counts two).

    Sequences that the network's position table cannot hold are counted as long as it can. None where a network looks
    at values on its way, which torch's meta device does not have.
    """
    text = min(text, config.max_positions)
    spec = HeadSpec("vqa", ("",) * outputs) if outputs else HeadSpec("multiple-choice")
    try:
        with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counter:
            encoder, head = _network(model, config), make_head(config, spec).eval()
            inputs = _meta_inputs(candidates, text, regions, config.region_dim)
            head(encoder(inputs), inputs)
    except (RuntimeError, NotImplementedError):
        return None
    total: int = counter.get_total_flops()
    return round(total / 1e9, 2 if total < 1e9 else 1)


def _meta_inputs(candidates: int, text: int, regions: int, dim: int) -> StudentInputs:
    long = partial(torch.zeros, candidates, text, dtype=torch.long)
    mask: Tensor = torch.ones(candidates, text, dtype=torch.bool)
    return StudentInputs(
        input_ids=long(), token_type_ids=long(), text_mask=mask, image_index=torch.zeros(candidates, dtype=torch.long),
        region_features=torch.zeros(1, regions, dim), region_boxes=torch.zeros(1, regions, 4),
        region_mask=torch.ones(1, regions, dtype=torch.bool), tag_regions=long(), n_candidates=candidates,
    )  # fmt: skip
