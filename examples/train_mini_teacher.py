"""Train the embedded teacher: a small CLIP of open_clip's own classes, on cheap captions of the pictograph world.

    python examples/train_mini_teacher.py --out madkit/teachers/mini        # about 20 minutes on one core

It sees every concept, in scenes of its own (never a task's image, never a task's sentence). Two contrastive terms:
a whole scene against a caption of two of its things, and every box (the mean of its patch tokens) against a caption
of its thing. The second gives patch tokens that can be compared with words, which web-scale CLIP has to some degree
by itself. A third term draws boxes and the captions that tell their concept to one prototype a concept: a small
network learns several times faster so. Killed, it goes on from its last checkpoint (`--work`).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn

from madkit.tasks.mini.captions import TASK_WORDS, caption_of, scene_caption
from madkit.tasks.mini.concepts import concepts
from madkit.tasks.mini.draw import Draw
from madkit.tasks.mini.render import SIDE, render
from madkit.tasks.mini.scene import Needs, Thing, draw_scene
from madkit.tasks.mini.vocabulary import world_words

CONTEXT = 40
PATCH = 16
VOCABULARY = 900
PROTOTYPE_SCALE = 16.0
MEAN, STD = (0.72, 0.72, 0.72), (0.22, 0.22, 0.22)


def train_tokenizer() -> Tokenizer:
    """Lower-cased BPE over captions: other pieces than the student's words, as CLIP's differ from BERT's."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace()])
    tokenizer.decoder = decoders.BPEDecoder()
    draw = Draw("teacher", "vocabulary")
    corpus = [scene_caption(draw_scene(Needs(), draw), draw) for _ in range(3000)] + [TASK_WORDS, *world_words()]
    alphabet = sorted({c for text in corpus for c in text.lower()} | set("abcdefghijklmnopqrstuvwxyz0123456789"))
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2, special_tokens=["[PAD]", "[UNK]"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens(["[SOS]", "[EOS]"])  # last: open_clip pools text at the highest id
    return tokenizer


def build_model(vocabulary: int) -> tuple[CLIP, dict[str, Any]]:
    """The network and the config that rebuilds it."""
    config: dict[str, Any] = {
        "embed_dim": 128,
        "vision_cfg": {"image_size": SIDE, "patch_size": PATCH, "width": 128, "layers": 4, "head_width": 32},
        "text_cfg": {"context_length": CONTEXT, "vocab_size": vocabulary, "width": 128, "heads": 4, "layers": 3},
        "context_length": CONTEXT,
        "image_size": SIDE,
        "mean": MEAN,
        "std": STD,
    }
    return CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"]), config


def tokenize(tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """Token ids [n, CONTEXT] with start and end marks, padded with 0."""
    start, end = tokenizer.token_to_id("[SOS]"), tokenizer.token_to_id("[EOS]")
    result = torch.zeros(len(texts), CONTEXT, dtype=torch.long)
    for row, encoding in zip(result, tokenizer.encode_batch(texts, add_special_tokens=False), strict=True):
        ids = [start, *encoding.ids[: CONTEXT - 2], end]
        row[: len(ids)] = torch.tensor(ids)
    return result


def pictures(scenes: list[tuple[Thing, ...]], draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
    """Rendered scenes: (images [B, 3, S, S] normalised, patch weights of each box [R, P], image of each box [R])."""
    images, boxes, owner = [], [], []
    for i, things in enumerate(scenes):
        picture = render(things, draw)
        images.append(picture.pixels)
        boxes += picture.boxes
        owner += [i] * len(things)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    pixels = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    edges, corners = torch.arange(SIDE // PATCH) * PATCH, torch.tensor(boxes)[:, :, None]
    across = (torch.minimum(edges + PATCH, corners[:, 2]) - torch.maximum(edges, corners[:, 0])).clamp(min=0)
    down = (torch.minimum(edges + PATCH, corners[:, 3]) - torch.maximum(edges, corners[:, 1])).clamp(min=0)
    cover = (down[:, :, None] * across[:, None, :]).flatten(1).float()
    return pixels, cover / cover.sum(1, keepdim=True), torch.tensor(owner)


def batch(step: int, size: int) -> tuple[Tensor, Tensor, Tensor, list[str], list[str], Tensor, Tensor]:
    """`pictures` of fresh scenes, a caption of each box, a caption of each scene, the concept of each box, and whether
    its caption tells it.
    """
    draw = Draw("teacher", "train", step)
    scenes = [draw_scene(Needs(), draw) for _ in range(size)]
    captions = [caption_of(thing, draw) for scene in scenes for thing in scene]
    shown = [concepts()[thing.concept] for scene in scenes for thing in scene]
    told = [any(word in text for word in (c.name, *c.facts)) for c, text in zip(shown, captions, strict=True)]
    return (
        *pictures(scenes, draw), captions, [scene_caption(scene, draw) for scene in scenes],
        torch.tensor([c.index for c in shown]), torch.tensor(told),
    )  # fmt: skip


def look(model: CLIP, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """(globals [B, D], patch tokens [B, P, D]) in the shared space."""
    model.visual.output_tokens = True  # tokens come out after ln_post, unprojected
    pooled, tokens = model.visual(pixels)
    return pooled, tokens @ model.visual.proj


def read(model: CLIP, ids: Tensor) -> Tensor:
    """Globals [n, D] as `CLIP.encode_text` gives them, without computing the padding behind the longest text."""
    length = int((ids != 0).sum(1).max())
    ids = ids[:, :length]
    x = model.token_embedding(ids) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    return x[torch.arange(len(x)), ids.argmax(-1)] @ model.text_projection


def contrast(left: Tensor, right: Tensor, scale: Tensor, same: Tensor) -> Tensor:
    """Symmetric InfoNCE; pairs with the same caption are no negatives. `same` [n, n] bool, its diagonal is ignored."""
    logits = scale * F.normalize(left, dim=-1) @ F.normalize(right, dim=-1).T
    logits = logits.masked_fill(same & ~torch.eye(len(left), dtype=torch.bool), -1e4)
    truth = torch.arange(len(left))
    return (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2


def same_text(texts: list[str]) -> Tensor:
    """[n, n] bool: equal strings."""
    number = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    ids = torch.tensor([number[text] for text in texts])
    return ids[:, None] == ids[None, :]


@torch.inference_mode()
def zero_shot(model: CLIP, tokenizer: Tokenizer, scenes: int = 64) -> dict[str, float]:
    """Accuracy of naming fresh boxes among all concepts, by name and by each fact."""
    model.eval()
    draw = Draw("teacher", "check")
    things = [draw_scene(Needs(), draw) for _ in range(scenes)]
    pixels, weights, owner = pictures(things, draw)
    _, tokens = look(model, pixels)
    regions = F.normalize(torch.einsum("rp,rpd->rd", weights, tokens[owner]), dim=-1)
    truth = torch.tensor([t.concept for scene in things for t in scene])
    result = {}
    for kind, texts in {
        "name": [f"a {c.name}" for c in concepts()],
        "fact": [f"thing that {c.facts[0]}" for c in concepts()],
        "second_fact": [f"thing that {c.facts[1]}" for c in concepts()],
    }.items():
        words = F.normalize(read(model, tokenize(tokenizer, texts)), dim=-1)
        result[kind] = float((regions @ words.T).argmax(-1).eq(truth).float().mean())
    model.train()
    return result


def main() -> None:
    """Train, check, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("mini-teacher-work"))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--scenes", type=int, default=64, help="scenes a step")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    args.out.mkdir(parents=True, exist_ok=True)
    args.work.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer()
    model, config = build_model(tokenizer.get_vocab_size())
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {tokenizer.get_vocab_size()} tokens")
    # One prototype a concept, near which its boxes and the captions that name it shall lie. Only the recipe needs them.
    prototypes = nn.Parameter(torch.randn(len(concepts()), config["embed_dim"]) * 0.1)
    parameters = [*model.parameters(), prototypes]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05)
    first, checkpoint = 0, args.work / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        prototypes.data.copy_(state["prototypes"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    started = time.time()
    for step in range(first, args.steps):
        rate = min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * step / args.steps))
        for group in optimizer.param_groups:
            group["lr"] = 1.5e-3 * rate + 1e-6
        pixels, weights, owner, captions, scenes, shown, told = batch(step, args.scenes)
        pooled, tokens = look(model, pixels)
        regions = torch.einsum("rp,rpd->rd", weights, tokens[owner])
        words = read(model, tokenize(tokenizer, captions + scenes))
        scale = model.logit_scale.exp().clamp(max=100)
        loss_regions = contrast(regions, words[: len(captions)], scale, same_text(captions))
        loss_scenes = contrast(pooled, words[len(captions) :], scale, same_text(scenes))
        centres = F.normalize(prototypes, dim=-1).T * PROTOTYPE_SCALE
        boxes_to_concepts = F.cross_entropy(F.normalize(regions, dim=-1) @ centres, shown)
        words_to_concepts = F.cross_entropy(F.normalize(words[: len(captions)][told], dim=-1) @ centres, shown[told])
        loss = loss_regions + 0.3 * loss_scenes + boxes_to_concepts + words_to_concepts
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0 or step + 1 == args.steps:
            seconds = (time.time() - started) / (step + 1 - first)
            quality = {k: round(v, 3) for k, v in zero_shot(model, tokenizer).items()}
            print(
                f"step {step + 1}/{args.steps} regions {loss_regions.item():.3f} scenes {loss_scenes.item():.3f} "
                f"boxes {boxes_to_concepts.item():.3f} words {words_to_concepts.item():.3f} "
                f"scale {scale.item():.1f} {quality} {seconds:.2f} s/step",
                flush=True,
            )
            state = {
                "model": model.state_dict(),
                "prototypes": prototypes.data,
                "optimizer": optimizer.state_dict(),
                "step": step + 1,
            }
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
    weights_out = {name: tensor.detach().to(torch.float16).contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights_out, args.out / "model.safetensors")
    (args.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tokenizer.save(str(args.out / "tokenizer.json"))


if __name__ == "__main__":
    main()
