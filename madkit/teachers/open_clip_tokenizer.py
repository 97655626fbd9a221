"""Tokenizers of open_clip's models: CLIP's own, and those of transformers behind open_clip's cleaning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from madkit.core.files import digest_of
from madkit.teachers.fast_tokenizer import FastTokenizer, tidy_spans
from madkit.teachers.hf_files import CONFIG_FILES, VOCABULARIES, load_tokenizer
from madkit.teachers.interface import SpanTokenizer, TokenizedText
from madkit.teachers.text_cleaning import clean_text

TOKENIZER_FILES = tuple(name for name in CONFIG_FILES if "config.json" not in name or "token" in name)


class CleanedTokenizer:
    """A fast tokenizer that reads cleaned texts, with character offsets into the original ones.

    Args:
        fast: the tokenizer.
        clean: how open_clip cleans texts for it, one of :data:`madkit.teachers.text_cleaning.KINDS`.
        dropped_id: an id that open_clip replaces by 0 (CLIPA's separator), or None.
    """

    def __init__(self, fast: FastTokenizer, clean: str, dropped_id: int | None = None) -> None:
        self._fast, self._clean, self._dropped = fast, clean, dropped_id
        self.prefix, self.suffix = self._kept(fast.prefix), self._kept(fast.suffix)
        self.pad_id = fast.pad_id
        self.digest = digest_of(["open_clip", 1, fast.digest, clean, dropped_id])

    def _kept(self, ids: Sequence[int]) -> tuple[int, ...]:
        return tuple(0 if number == self._dropped else number for number in ids)

    def tokenize(self, texts: Sequence[str]) -> list[TokenizedText]:
        """Tokenize without special tokens."""
        cleaned = [clean_text(text, self._clean) for text in texts]
        result = []
        for text, clean, found in zip(
            texts, cleaned, self._fast.tokenize([clean.text for clean in cleaned]), strict=True
        ):
            spans = [
                (clean.spans[start][0], clean.spans[end - 1][1]) if end > start else _nowhere(clean.spans, start)
                for start, end in found.spans
            ]
            tidy = tidy_spans(text, spans)
            result.append(TokenizedText(self._kept(found.ids), tidy, found.approximate or clean.approximate))
        return result


def _nowhere(spans: Sequence[tuple[int, int]], place: int) -> tuple[int, int]:
    """Return the empty span at a place of the cleaned text."""
    at = spans[place][0] if place < len(spans) else spans[-1][1] if spans else 0
    return at, at


@dataclass(frozen=True, slots=True)
class TokenizerSource:
    """What an architecture states about its tokenizer: a repository at the hub, and how texts are cleaned."""

    repository: str
    clean: str
    drops_separator: bool


def tokenizer_source(text_config: Mapping[str, Any]) -> TokenizerSource | None:
    """Return where the tokenizer of an architecture comes from; None for CLIP's own vocabulary."""
    repository = text_config.get("hf_tokenizer_name")
    if not repository:
        return None
    options: Mapping[str, Any] = text_config.get("tokenizer_kwargs") or {}
    clean = str(options.get("clean", "whitespace"))
    return TokenizerSource(str(repository), clean, bool(options.get("strip_sep_token")))


def open_clip_tokenizer(text_config: Mapping[str, Any], weights: Path | None, *, name: str) -> SpanTokenizer:
    """Load the tokenizer of an architecture.

    Args:
        text_config: ``text_cfg`` of the architecture.
        weights: the file or folder that was given; a folder with a tokenizer is used before the hub.
        name: the teacher, for errors.

    Raises:
        NotFoundError: the tokenizer is neither in the folder nor at the hub.
        ConfigError: it gives no character spans.
    """
    from madkit.teachers.clip_bpe import ClipTokenizer

    source = tokenizer_source(text_config)
    if source is None:
        return ClipTokenizer()
    folder = None if weights is None else weights if weights.is_dir() else weights.parent
    if folder is None or not holds_tokenizer(folder):
        from madkit.core.hub_files import hub_folder

        folder = hub_folder(
            source.repository,
            None,
            TOKENIZER_FILES,
            ((),),
            complete=holds_tokenizer,
            wanted=f"The tokenizer files of '{name}' ({source.repository})",
            hint=f"put them beside the weights and give the folder: --weights FOLDER (where there is a network: "
            f"hf download {source.repository} --include 'token*' 'vocab*' '*.model' --local-dir FOLDER)",
        )
    return cleaned_tokenizer(folder, source, name=name)


def holds_tokenizer(folder: Path) -> bool:
    """Whether a folder has the files of a tokenizer of transformers."""
    return any((folder / file).is_file() for file in ("tokenizer.json", *VOCABULARIES))


def cleaned_tokenizer(folder: Path, source: TokenizerSource, *, name: str) -> CleanedTokenizer:
    """Load a folder's tokenizer behind open_clip's cleaning (ConfigError when it gives no character spans)."""
    found = load_tokenizer(folder, name=name)
    pad = found.pad_token_id if found.pad_token_id is not None else found.eos_token_id
    fast = FastTokenizer(name, found.backend_tokenizer, pad_id=int(pad or 0))
    return CleanedTokenizer(fast, source.clean, found.sep_token_id if source.drops_separator else None)
