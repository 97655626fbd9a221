"""Who reads texts in `madkit bench text`: madkit, and the loops that one would write with the libraries alone.

Every side starts from strings and ends with float16 arrays on the host.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from madkit.bench.extract_models import Source
from madkit.extract.pipeline import one_thread_per_operation
from madkit.extract.text_encoding import TextEncoder
from madkit.teachers.interface import Teacher

Values = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Read:
    """What a side made of texts.

    Attributes:
        globals: [n, D], a vector per text; None where the side gives none.
        tokens: for each text [T, D], the real tokens; None where the side gives none.
    """

    globals: Values | None
    tokens: list[Values] | None


@dataclass(frozen=True, slots=True)
class TextReader:
    """A way from strings to vectors.

    Attributes:
        name: whose way.
        dtype: what it computes in.
        read: the way.
        mixed: whether its feed-forward layers multiply in bfloat16.
    """

    name: str
    dtype: torch.dtype
    read: Callable[[Sequence[str]], Read]
    mixed: bool = False


def madkit_texts(teacher: Teacher, *, token_budget: int) -> TextReader:
    """Return madkit itself: all texts sorted by length, batches of a number of tokens."""
    text = teacher.text
    assert text is not None

    def read(texts: Sequence[str]) -> Read:
        tokenized = text.tokenize(texts)
        with one_thread_per_operation(teacher.device) as parallel:
            encoder = TextEncoder(text, token_budget=token_budget, parallel=parallel)
            vectors = np.empty((len(texts), text.dim), np.float16)
            tokens: list[Values] = [vectors[:0]] * len(texts)
            for found in encoder.encode_all(tokenized):
                vectors[found.rows] = found.globals
                ends = np.cumsum([len(tokenized[row].ids) for row in found.rows.tolist()])
                for row, values in zip(found.rows.tolist(), np.split(found.tokens, ends[:-1]), strict=True):
                    tokens[row] = values
        return Read(vectors, tokens)

    return TextReader("madkit", teacher.dtype, read, mixed=teacher.feed_forward is not None)


def open_clip_texts(source: Source, device: str, dtype: torch.dtype, *, batch: int) -> TextReader:
    """Return open_clip's tokenizer and `encode_text`, which pads every text to 77 tokens."""
    import open_clip

    model: Any = copy.deepcopy(source.model).to(device=device, dtype=dtype)
    tokenize = open_clip.SimpleTokenizer(context_length=model.context_length)

    @torch.inference_mode()
    def read(texts: Sequence[str]) -> Read:
        vectors = [
            _half(model.encode_text(tokenize(list(texts[start : start + batch])).to(device)))
            for start in range(0, len(texts), batch)
        ]
        return Read(np.concatenate(vectors), None)

    return TextReader("open_clip encode_text", dtype, read)


@torch.inference_mode()
def open_clip_tokens(source: Source, texts: Sequence[str]) -> list[Values]:
    """Return the tokens of texts by open_clip in float64: what `ln_final` gives on the way, projected."""
    import open_clip

    model: Any = copy.deepcopy(source.model).double()
    owner = model if hasattr(model, "ln_final") else model.text
    seen: list[Tensor] = []
    hook = owner.ln_final.register_forward_hook(lambda *call: seen.append(call[2]))
    ids = open_clip.SimpleTokenizer(context_length=model.context_length)(list(texts))
    model.encode_text(ids)
    hook.remove()
    projection: Any = owner.text_projection
    tokens = projection(seen[0]) if isinstance(projection, torch.nn.Linear) else seen[0] @ projection
    ends = ids.argmax(1).tolist()  # the end token has the highest id
    return [row[1:end].numpy() for row, end in zip(tokens, ends, strict=True)]


def transformers_texts(folder: Path, device: str, dtype: torch.dtype, *, batch: int) -> TextReader:
    """The library's tokenizer and model, batches of texts as they come, padded to the longest of the batch."""
    from transformers import AutoModel, AutoTokenizer

    from madkit.teachers.hf_files import quiet

    with quiet():
        tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        model: Any = AutoModel.from_pretrained(str(folder), local_files_only=True, add_pooling_layer=False)
    model.eval().requires_grad_(False).to(device=device, dtype=dtype)

    @torch.inference_mode()
    def read(texts: Sequence[str]) -> Read:
        tokens: list[Values] = []
        for start in range(0, len(texts), batch):
            inputs = tokenizer(list(texts[start : start + batch]), padding=True, truncation=True, return_tensors="pt")
            found = _half(model(**inputs.to(device)).last_hidden_state)
            lengths = inputs["attention_mask"].sum(1).tolist()
            tokens += [row[1 : length - 1] for row, length in zip(found, lengths, strict=True)]
        return Read(None, tokens)

    return TextReader("transformers loop", dtype, read)


def _half(values: Tensor) -> Values:
    array: Values = values.to(torch.float16).cpu().numpy()
    return array
