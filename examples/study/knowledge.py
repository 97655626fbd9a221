"""What a student's states hold of the teacher, read out by linear probes: why some distillation pays and some does not.

    python examples/study/knowledge.py --workspace W --task snli-ve
    python examples/study/knowledge.py --workspace W --task snli-ve RUN RUN ...
    python examples/study/knowledge.py --workspace W --task snli-ve --named "tokens on the pool before" RUN

For the untrained student (and for the students of finished runs) every layer is asked two things, by probes that are
fitted on unlabelled examples of the train split and scored on the development split, whose images they have not seen:

- *content*: how much of the teacher's vector of a region, or of a text token, a ridge regression reads from the
  student's state of the same region or token (R2: 1 is all of its variance, 0 none);
- *relation*: how often a bilinear probe, trained to give the teacher's distribution over the regions of an image from
  the states of the sentence's [SEP] and of the regions, names the region that the teacher finds closest.

Rows are appended to docs/results/knowledge.jsonl; `run.py table` makes the table of docs/results.md from them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from madkit.cache import choose_cache
from madkit.core.seeds import derive_seed
from madkit.core.workspace import Workspace
from madkit.distill.batches.answers import head_for
from madkit.distill.batches.examples import ExampleSet
from madkit.distill.teacher.side import TeacherSide
from madkit.mad.config import MADConfig
from madkit.students.load import load_student
from madkit.students.student import Student
from madkit.tasks.data import TaskData, open_task
from madkit.tasks.example import Example

RESULTS = Path(__file__).parents[2] / "docs" / "results"
TAU = 20.0  # of the teacher's softmax over regions, as in the arm `affinity`
TOKENS = MADConfig(tokens="all", weighting="uniform", affinity_weight=1.0)  # what is to be gathered: everything


@dataclass(frozen=True, slots=True)
class Gathered:
    """States and targets of a set: n sequences, R regions, layers L, widths H (student) and D (teacher)."""

    regions: Tensor  # [L, n, R, H]
    mask: Tensor  # [n, R]
    region_targets: Tensor  # [n, R, D]
    query: Tensor  # [L, n, H]
    tokens: Tensor  # [L, m, H]
    token_targets: Tensor  # [m, D]
    affinity: Tensor  # [n, R] the teacher's distribution over regions


def main(arguments: Sequence[str] | None = None) -> None:
    """Probe the untrained student, or those of the runs that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--workspace", type=Path, default=Path("madkit-workspace"))
    parser.add_argument("--task", required=True)
    parser.add_argument("--examples", type=int, default=4000, help="of the train split, for fitting")
    parser.add_argument("--named", help="what the rows call a run that is a variant of its arm")
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args(arguments)
    workspace = Workspace.at(asked.workspace)
    data = open_task(workspace, asked.task)
    generator = np.random.default_rng(derive_seed("knowledge", asked.task))
    train = list(data.examples("train"))
    fit = [train[row] for row in sorted(generator.choice(len(train), min(asked.examples, len(train)), replace=False))]
    dev = list(data.examples("dev"))
    head = head_for(data.spec, train)
    for source in asked.runs or ["mini-uniter"]:
        folder = source / "student" if isinstance(source, Path) else source
        student = load_student(folder, head=head if source == "mini-uniter" else None)
        known, unknown = (gather(workspace, data, student, part) for part in (fit, dev))
        name, seed = ("untrained", None) if isinstance(source, str) else about(source)
        name = asked.named or name
        for row in probed(known, unknown):
            row = {"task": data.source, "student": name, "seed": seed, "examples": len(fit), **row}
            print(json.dumps(row))
            with (asked.results / "knowledge.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def about(run: Path) -> tuple[str, int]:
    """Arm and seed of a run."""
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    return manifest["arm"], manifest["seed"]


@torch.no_grad()
def gather(workspace: Workspace, data: TaskData, student: Student, examples: list[Example]) -> Gathered:
    """Run the student over the examples and lay the teacher's vectors beside its states."""
    student.eval()
    held = ExampleSet(examples, student, data.regions(), labelled=False)
    with choose_cache(workspace, data, "mini") as cache:
        side = TeacherSide(held, cache, TOKENS)
        parts = [_part(student, held, side, rows) for rows in np.array_split(np.arange(len(held)), len(held) // 64 + 1)]
    width = max(part.mask.shape[1] for part in parts)
    wide = [_widened(part, width) for part in parts]
    axis = {"regions": 1, "query": 1, "tokens": 1}
    return Gathered(*(torch.cat([getattr(p, f) for p in wide], axis.get(f, 0)) for f in Gathered.__dataclass_fields__))


def _part(student: Student, held: ExampleSet, side: TeacherSide, rows: np.ndarray) -> Gathered:
    inputs, where = held.inputs(rows), held.teacher_rows(rows)
    said = side.targets(where, rows, inputs)
    out = student(inputs)
    states = torch.stack(out.hidden_states)
    text, regions = states[:, :, : out.text_length], states[:, :, out.text_length :]
    query = text[:, torch.arange(len(rows)), where.ends[:, 0]]
    content = said.selectable_text
    sentence = F.normalize(said.text_global.float(), dim=-1)
    cosine = (F.normalize(said.regions.float(), dim=-1) @ sentence.unsqueeze(-1)).squeeze(-1)
    affinity = (TAU * cosine).masked_fill(~said.region_mask, -torch.inf).softmax(-1)
    targets = said.text_tokens.float()[content]
    return Gathered(regions, said.region_mask, said.regions.float(), query, text[:, content], targets, affinity)


def _widened(part: Gathered, width: int) -> Gathered:
    more = width - part.mask.shape[1]
    return Gathered(
        F.pad(part.regions, (0, 0, 0, more)), F.pad(part.mask, (0, more)), F.pad(part.region_targets, (0, 0, 0, more)),
        part.query, part.tokens, part.token_targets, F.pad(part.affinity, (0, more)),
    )  # fmt: skip


def probed(known: Gathered, unknown: Gathered) -> Iterator[dict[str, float | int]]:
    """A row for each layer."""
    for layer in range(len(known.query)):
        region = explained(
            known.regions[layer][known.mask], known.region_targets[known.mask],
            unknown.regions[layer][unknown.mask], unknown.region_targets[unknown.mask],
        )  # fmt: skip
        text = explained(known.tokens[layer], known.token_targets, unknown.tokens[layer], unknown.token_targets)
        named, chance = agreement(known, unknown, layer)
        yield {
            "layer": layer,
            "region_r2": round(region, 3),
            "text_r2": round(text, 3),
            "relation": round(100 * named, 1),
            "relation_chance": round(100 * chance, 1),
        }


def explained(states: Tensor, targets: Tensor, new_states: Tensor, new_targets: Tensor, ridge: float = 1.0) -> float:
    """R2 on new pairs of a ridge regression from states [n, H] to targets [n, D], both centred."""
    mean, centre = states.mean(0), targets.mean(0)
    x, y = (states - mean).double(), (targets - centre).double()
    weights = torch.linalg.solve(x.T @ x + ridge * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)
    left = (new_targets - centre) - ((new_states - mean).double() @ weights)
    return float(1 - left.square().sum() / (new_targets - new_targets.mean(0)).double().square().sum())


def agreement(
    known: Gathered, unknown: Gathered, layer: int, *, width: int = 64, epochs: int = 30
) -> tuple[float, float]:
    """How often the probe's best region is the teacher's, and how often one drawn at random would be."""
    torch.manual_seed(0)
    size = known.query.shape[-1]
    scale = known.query[layer].std(), known.regions[layer][known.mask].std()
    asks, keys = torch.nn.Linear(size, width), torch.nn.Linear(size, width)
    optimizer = torch.optim.AdamW([*asks.parameters(), *keys.parameters()], lr=2e-3, weight_decay=0.01)

    def scores(of: Gathered, rows: Tensor | slice) -> Tensor:
        query, regions = asks(of.query[layer][rows] / scale[0]), keys(of.regions[layer][rows] / scale[1])
        raw = (regions @ query.unsqueeze(-1)).squeeze(-1) / width**0.5
        return raw.masked_fill(~of.mask[rows], -torch.inf)

    for _ in range(epochs):
        for rows in torch.randperm(len(known.mask)).split(128):
            loss = F.cross_entropy(scores(known, rows), known.affinity[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        right = scores(unknown, slice(None)).argmax(-1) == unknown.affinity.argmax(-1)
    return float(right.float().mean()), float((1 / unknown.mask.sum(-1)).mean())


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
