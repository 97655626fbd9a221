"""Pretrain the embedded student on the part of the pictograph world that it is meant to know.

    python examples/pretrain_mini_student.py --out madkit/students/mini_uniter        # about 25 minutes on one core

Scenes hold only the concepts that `seen_in_pretraining()` declares; captions are the teacher's cheap ones, some
with a tagged noun ("person that keeps off the rain", the noun linked to its box) and some with a place. Four of
UNITER's tasks: masked language modelling, image-text matching (half of the pairs are wrong, most of them by one
thing's colour, concept or place), region classification, and word-region alignment (in its simplest form: every
region tells whether the text is about it; without it matching stayed at what a bag of words can do for 5,000
steps). The network is UNITER's at small size. Killed, it goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from madkit.regions import Regions
from madkit.students.heads import HeadSpec, TaskHead
from madkit.students.inputs import EncodedExample, collate, encode_segments
from madkit.students.interface import StudentInputs
from madkit.students.load import save_student
from madkit.students.student import Student, StudentIdentity
from madkit.students.tokenizer import SPECIALS, StudentTokenizer
from madkit.students.uniter import UniterConfig, UniterModel
from madkit.tasks.example import Segment, Tag
from madkit.tasks.mini.captions import caption_of
from madkit.tasks.mini.concepts import COLOURS, concepts, seen_in_pretraining
from madkit.tasks.mini.draw import Draw
from madkit.tasks.mini.render import REGION_DIM, SIDE, region_features, render
from madkit.tasks.mini.scene import Needs, Thing, draw_scene
from madkit.tasks.mini.vocabulary import world_words
from madkit.tasks.mini.wording import PLACES

SEEN = tuple(sorted(seen_in_pretraining()))
LIMIT = 64
MASKED = 0.15
FINETUNING_DROPOUT = 0.1


def vocabulary(path: Path) -> StudentTokenizer:
    """Whole words of the world, and single characters for everything else."""
    characters = list("abcdefghijklmnopqrstuvwxyz0123456789")
    words = [*SPECIALS, *dict.fromkeys([*world_words(), *characters]), *(f"##{c}" for c in characters)]
    path.write_text("\n".join(words) + "\n", encoding="utf-8")
    return StudentTokenizer(path, lowercase=True)


class Pool:
    """Rendered scenes of seen concepts, drawn once."""

    def __init__(self, size: int) -> None:
        self.scenes: list[tuple[Thing, ...]] = []
        self.regions: list[Regions] = []
        for i in range(size):
            draw = Draw("student", "scene", i)
            scene = draw_scene(Needs(), draw, SEEN)
            picture = render(scene, draw)
            boxes = np.asarray(picture.boxes, dtype=np.float32) / SIDE
            self.scenes.append(scene)
            self.regions.append(Regions(boxes, region_features(picture).astype(np.float32), None))


def describe(thing: Thing, draw: Draw, tagged: int | None) -> list[Segment]:
    """One or two segments about a thing. With `tagged` the noun "person" is linked to that region."""
    text = caption_of(thing, draw)
    if draw.chance(0.3):
        text = f"{text}, {PLACES[thing.cell]}"
    if tagged is None:
        return [Segment(text)]
    tag = Tag(0, len("person"), (tagged,))
    if draw.chance(0.5):
        return [Segment("person", (tag,)), Segment(text)]
    return [Segment(f"person, {text}", (tag,))]


def spoiled(thing: Thing, scene: tuple[Thing, ...], draw: Draw, tagged: bool) -> Thing:
    """The thing as a wrong caption describes it: another colour, concept or place, or (tagged) another thing."""
    others = [t for t in scene if t is not thing]
    if tagged and draw.chance(0.5):
        return draw.choice(others)
    what, other = draw.below(10), draw.choice(others)
    if what <= 3:  # the colour of another thing in the picture
        return Thing(thing.concept, other.colour, thing.cell)
    if what <= 5:  # the concept of another thing in the picture
        return Thing(other.concept, thing.colour, thing.cell)
    if what == 6:
        return Thing(thing.concept, (thing.colour + draw.between(1, len(COLOURS) - 1)) % len(COLOURS), thing.cell)
    if what <= 8:
        return Thing(draw.choice([c for c in SEEN if c != thing.concept]), thing.colour, thing.cell)
    return Thing(thing.concept, thing.colour, other.cell)


def says_the_same(first: list[Segment], second: list[Segment]) -> bool:
    """Whether two descriptions read alike."""
    return [s.text for s in first] == [s.text for s in second]


def batch(
    pool: Pool, tokenizer: StudentTokenizer, step: int, size: int, stream: str
) -> tuple[StudentInputs, Tensor, Tensor, Tensor]:
    """(inputs, match label [S], region that a text is about [S], concept and colour of each region [B, R, 2],
    -1 on padding).

    Of an image's two texts the first is for matching, the second (always right) for masked language modelling.
    """
    draw = Draw("student", stream, step)
    encoded, regions, labels, about, things = [], [], [], [], []
    for _ in range(size):
        i = draw.below(len(pool.scenes))
        scene = pool.scenes[i]
        sequences = []
        for for_words in (False, True):
            k, tag = draw.below(len(scene)), draw.chance(0.4)
            match = for_words or draw.chance(0.5)
            tagged = k if tag else None
            seed = draw.below(2**31)
            text = describe(scene[k], Draw(seed), tagged)
            if not match:
                for _ in range(8):  # a spoiled thing may read as before: not every caption tells everything
                    wrong = describe(spoiled(scene[k], scene, draw, tag), Draw(seed), tagged)
                    if not says_the_same(wrong, text):
                        break
                match = says_the_same(wrong, text)
                text = wrong
            labels.append(int(match))
            about.append(k if match else -1)
            sequences.append(encode_segments(text, tokenizer, LIMIT))
        encoded.append(EncodedExample("", "", tuple(sequences), pool.regions[i].boxes))
        regions.append(pool.regions[i])
        things.append(scene)
    inputs = collate(encoded, regions, pad_id=tokenizer.pad_id)
    truth = torch.full((size, inputs.region_mask.shape[1], 2), -1, dtype=torch.long)
    for row, scene in enumerate(things):
        for column, thing in enumerate(scene):
            truth[row, column] = torch.tensor([SEEN.index(thing.concept), thing.colour])
    return inputs, torch.tensor(labels), torch.tensor(about), truth


class Pretraining(nn.Module):
    """The student's encoder with UNITER's pretraining heads."""

    def __init__(self, encoder: UniterModel) -> None:
        super().__init__()
        self.encoder = encoder
        width = encoder.hidden_size
        self.words = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.word_bias = nn.Parameter(torch.zeros(encoder.config.vocab_size))
        self.match = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width), nn.Linear(width, 2))
        self.about = nn.Linear(width, 1)
        self.concept = nn.Linear(width, len(SEEN))
        self.colour = nn.Linear(width, len(COLOURS))

    def forward(
        self,
        inputs: StudentInputs,
        labels: Tensor,
        about: Tensor,
        truth: Tensor,
        tokenizer: StudentTokenizer,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Losses and accuracies."""
        ids = inputs.input_ids
        special = (ids == tokenizer.cls_id) | (ids == tokenizer.sep_id) | (inputs.tag_regions >= 0)
        chosen = (torch.rand(ids.shape, generator=generator) < MASKED) & inputs.text_mask & ~special
        chosen[0::2] = False  # the text that is matched stays whole
        masked_ids = ids.masked_fill(chosen, tokenizer.mask_id)
        values = {name: getattr(inputs, name) for name in StudentInputs.__dataclass_fields__}
        encoded = self.encoder(StudentInputs(**{**values, "input_ids": masked_ids}))
        pooled, states = encoded.pooled, encoded.states
        length = ids.shape[1]
        state = states[-1]
        logits = (
            self.words(state[:, :length][chosen]) @ self.encoder.embeddings.word_embeddings.weight.T + self.word_bias
        )
        match, labels = self.match(pooled[0::2]), labels[0::2]
        mask = inputs.region_mask[inputs.image_index]
        is_about = torch.arange(mask.shape[1])[None, :] == about[:, None]
        aligned = F.binary_cross_entropy_with_logits(
            self.about(state[:, length:]).squeeze(-1)[mask], is_about[mask].float()
        )
        region = state[:, length:][mask]
        truth = truth[inputs.image_index][mask]
        losses = {
            "mlm": F.cross_entropy(logits, ids[chosen]),
            "itm": F.cross_entropy(match, labels),
            "wra": aligned,
            "concept": F.cross_entropy(self.concept(region), truth[:, 0]),
            "colour": F.cross_entropy(self.colour(region), truth[:, 1]),
        }
        with torch.no_grad():
            losses["itm_accuracy"] = match.argmax(-1).eq(labels).float().mean()
            losses["mlm_accuracy"] = logits.argmax(-1).eq(ids[chosen]).float().mean()
            losses["concept_accuracy"] = self.concept(region).argmax(-1).eq(truth[:, 0]).float().mean()
        return losses


def main() -> None:
    """Pretrain, check, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("mini-student-work"))
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--scenes", type=int, default=48, help="scenes a step, two captions each")
    parser.add_argument("--pool", type=int, default=12_000, help="different scenes")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    args.out.mkdir(parents=True, exist_ok=True)
    args.work.mkdir(parents=True, exist_ok=True)
    tokenizer = vocabulary(args.work / "vocab.txt")
    config = UniterConfig(
        vocab_size=len(tokenizer), hidden_size=128, layers=3, heads=4, intermediate_size=512, max_positions=LIMIT,
        region_dim=REGION_DIM, tag_gain=1.0, dropout=0.0,  # fresh captions in every step: nothing to overfit
    )  # fmt: skip
    model = Pretraining(UniterModel(config))
    print(f"{sum(p.numel() for p in model.encoder.parameters()) / 1e6:.2f} M parameters, {len(tokenizer)} words, "
          f"{len(SEEN)} of {len(concepts())} concepts")  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    first, checkpoint = 0, args.work / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    pool = Pool(args.pool)
    started, seen = time.time(), {}
    for step in range(first, args.steps):
        rate = min(1.0, (step + 1) / 200) * (0.5 + 0.5 * math.cos(math.pi * step / args.steps))
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * rate + 1e-6
        torch.manual_seed(step)
        generator = torch.Generator().manual_seed(step)
        losses = model(*batch(pool, tokenizer, step, args.scenes, "train"), tokenizer, generator)
        loss = losses["mlm"] + losses["itm"] + 2 * losses["wra"] + 0.3 * losses["concept"] + 0.3 * losses["colour"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        for name, value in losses.items():
            seen[name] = seen.get(name, value.item()) * 0.98 + value.item() * 0.02
        if (step + 1) % 100 == 0 or step + 1 == args.steps:
            speed = (time.time() - started) / (step + 1 - first)
            print(f"step {step + 1}/{args.steps} " + " ".join(f"{k} {v:.3f}" for k, v in seen.items()) +
            f" {speed:.2f} s/step",
                  flush=True)  # fmt: skip
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
    identity = StudentIdentity("mini-uniter", "uniter", "pretrained")
    for module in model.encoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = FINETUNING_DROPOUT
    model.encoder.config = replace(config, dropout=FINETUNING_DROPOUT)
    student = Student(model.encoder, TaskHead(config.hidden_size, HeadSpec("multiple-choice")), tokenizer, identity)
    save_student(student, args.out, with_head=False)


if __name__ == "__main__":
    main()
