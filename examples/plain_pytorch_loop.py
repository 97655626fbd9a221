"""A training loop of one's own: plain PyTorch, a network that madkit has never seen, a teacher from its cache.

    python examples/plain_pytorch_loop.py --workspace madkit-workspace

The network below reads words and regions with a vocabulary and a transformer of its own. What belongs to the teacher is
marked with # MAD. The first run draws the data (a part of the embedded benchmark) and lets the teacher read it; later
runs begin at once. docs/library.md explains the shapes.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from madkit import CachedTeacher, MADConfig, MADCriterion, TokenCache
from madkit.core.workspace import Workspace
from madkit.extract.stage import extract
from madkit.regions import RegionReader
from madkit.tasks.data import open_task
from madkit.tasks.example import Example

CLS, UNKNOWN = 1, 2  # 0 is padding


class OwnNetwork(nn.Module):
    """Words and regions through one small transformer; gives class scores and the hidden states of every layer."""

    def __init__(self, words: int, region_dim: int, classes: int, width: int = 96, layers: int = 3) -> None:
        super().__init__()
        self.word, self.place = nn.Embedding(words, width, padding_idx=0), nn.Embedding(64, width)
        self.region, self.box = nn.Linear(region_dim, width), nn.Linear(4, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.1, batch_first=True) for _ in range(layers)
        )
        self.head = nn.Linear(width, classes)

    def forward(self, ids: Tensor, features: Tensor, boxes: Tensor, region_mask: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Scores [S, classes], and hidden states [S, T + R, width]: text positions first, then regions."""
        text = self.word(ids) + self.place.weight[: ids.shape[1]]
        states = [torch.cat([text, self.region(features) + self.box(boxes)], 1)]
        padding = ~torch.cat([ids > 0, region_mask], 1)
        for layer in self.layers:
            states.append(layer(states[-1], src_key_padding_mask=padding))
        return self.head(states[-1][:, 0]), states


def words_of(text: str) -> list[re.Match[str]]:
    """The words and signs of a text, with their characters."""
    return list(re.finditer(r"\w+|[^\w\s]", text))


def make_batch(
    examples: Sequence[Example], regions: RegionReader, vocabulary: dict[str, int]
) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    """The network's inputs, the labels, and what the teacher has to know about the batch."""
    texts, found = [example.context[0].text for example in examples], [regions.get(e.image.id) for e in examples]
    cut = [words_of(text) for text in texts]
    S, T, R = len(examples), 1 + max(map(len, cut)), max(len(one.boxes) for one in found)
    ids, spans = torch.zeros(S, T, dtype=torch.long), torch.zeros(S, T, 2, dtype=torch.long)
    features, boxes, mask = torch.zeros(S, R, regions.dim), torch.zeros(S, R, 4), torch.zeros(S, R, dtype=torch.bool)
    ids[:, 0] = CLS
    for row, (words, one) in enumerate(zip(cut, found, strict=True)):
        n = len(one.boxes)
        ids[row, 1 : len(words) + 1] = torch.tensor([vocabulary.get(word.group().lower(), UNKNOWN) for word in words])
        spans[row, 1 : len(words) + 1] = torch.tensor([word.span() for word in words])
        features[row, :n], boxes[row, :n] = torch.from_numpy(one.features), torch.from_numpy(one.boxes)
        mask[row, :n] = True
    inputs = {"ids": ids, "features": features, "boxes": boxes, "region_mask": mask}
    # MAD: which images and texts, and which characters and boxes the network's tokens stand for
    images = [example.image.id for example in examples]
    asked = {"images": images, "texts": texts, "spans": spans, "boxes": boxes, "region_mask": mask}
    return inputs, torch.tensor([example.label for example in examples]), asked


def main() -> None:
    """Extract once, train beside the teacher, test without it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", help="folder for data and cache")
    parser.add_argument("--part", default="demo", help="of the embedded benchmark: tiny, demo or full")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--weight", type=float, default=1.0, help="of what the teacher says")
    args = parser.parse_args()

    workspace = Workspace.at(args.workspace)
    (store,) = extract(workspace, "mini", ["snli-ve"], splits=["train", "test"], part=args.part)  # once
    data = open_task(workspace, "snli-ve", part=args.part)
    examples, test, regions = data.examples("train"), data.examples("test"), data.regions()
    assert regions is not None
    known = sorted({word.group().lower() for example in examples for word in words_of(example.context[0].text)})
    vocabulary = {word: number for number, word in enumerate(known, UNKNOWN + 1)}

    torch.manual_seed(0)
    network = OwnNetwork(len(vocabulary) + UNKNOWN + 1, regions.dim, len(data.spec.labels))
    teacher = CachedTeacher(TokenCache.open(store.path))  # MAD
    config = MADConfig(weight=args.weight, affinity_weight=args.weight, weighting="uniform")
    criterion = MADCriterion(config, network.word.embedding_dim, teacher.vision_dim, teacher.text_dim)
    # MAD: the criterion holds projection heads, which train along and are thrown away
    optimizer = torch.optim.AdamW([*network.parameters(), *criterion.parameters()], lr=1e-3)
    order = np.random.default_rng(0)
    for step in range(args.steps):
        chosen = [examples[int(row)] for row in order.integers(len(examples), size=args.batch)]
        inputs, labels, asked = make_batch(chosen, regions, vocabulary)
        logits, states = network(**inputs)
        task = F.cross_entropy(logits, labels)
        taught = criterion(  # MAD
            states,
            inputs["ids"].shape[1],
            teacher.targets(**asked),
            text_mask=inputs["ids"] > 0,
            region_mask=inputs["region_mask"],
            progress=step / args.steps,
        )
        optimizer.zero_grad()
        (task + taught.loss).backward()
        optimizer.step()
        if step % 50 == 0 or step == args.steps - 1:
            terms = {"task": task.detach(), **taught.terms}
            print(f"step {step}: " + ", ".join(f"{name} {float(value):.2f}" for name, value in terms.items()))

    network.eval()
    right = 0
    with torch.no_grad():
        for start in range(0, len(test), 250):
            inputs, labels, _ = make_batch(test[start : start + 250], regions, vocabulary)
            right += int((network(**inputs)[0].argmax(1) == labels).sum())
    print(f"test accuracy {100 * right / len(test):.1f} % (chance {data.spec.chance:.1f} %)")


if __name__ == "__main__":
    main()
