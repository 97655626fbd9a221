"""The students' tokenizers: BERT's WordPiece or RoBERTa's byte-level BPE, with character offsets, from a checkpoint's
own files, through the `tokenizers` library.

`vocab.txt` (WordPiece), `tokenizer.json` (either) and `vocab.json` with `merges.txt` (BPE) are read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from madkit.core.errors import DataError, NotFoundError
from madkit.core.files import digest_of, read_json

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_BPE_SPECIALS = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")
VOCABULARY, TOKENIZER = "vocab.txt", "tokenizer.json"
MASK = "[MASK]"  # VCR's masked variants write it into texts


@dataclass(frozen=True, slots=True)
class Pieces:
    """Word pieces of one text: ids, and (start, end) offsets in characters of the text."""

    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]


class StudentTokenizer:
    """WordPiece over a vocabulary file; `lowercase` for uncased vocabularies.

    `from_folder` makes one from whatever tokenizer files a checkpoint has.

    Raises:
        NotFoundError: there is no such file.
        DataError: a special token is missing.
    """

    lowercase: bool
    digest: str

    def __init__(self, vocabulary: Path, *, lowercase: bool) -> None:
        if not vocabulary.is_file():
            raise NotFoundError(f"The vocabulary {vocabulary} does not exist.")
        self._word_piece(vocabulary.read_text(encoding="utf-8").splitlines(), lowercase, vocabulary)

    @classmethod
    def from_folder(cls, folder: Path, *, lowercase: bool | None = None) -> StudentTokenizer:
        """The tokenizer of a checkpoint's folder.

        `lowercase` none: as `tokenizer_config.json` (`do_lower_case`) or `tokenizer.json` says, else whether the
        vocabulary has no capital letters.

        Raises NotFoundError where the folder has no tokenizer, DataError for files that cannot be one.
        """
        made = cls.__new__(cls)
        if (folder / VOCABULARY).is_file():
            words = (folder / VOCABULARY).read_text(encoding="utf-8").splitlines()
            made._word_piece(words, _casing(folder, words) if lowercase is None else lowercase, folder / VOCABULARY)
        elif (folder / TOKENIZER).is_file():
            made._from_json(folder / TOKENIZER, lowercase)
        elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            made._byte_pairs(_byte_level(folder), folder / "vocab.json")
        else:
            raise NotFoundError(
                f"{folder} has no tokenizer.", hint=f"put the checkpoint's {VOCABULARY} or {TOKENIZER} beside it"
            )
        return made

    @classmethod
    def of_words(cls, words: Sequence[str], *, lowercase: bool) -> StudentTokenizer:
        """WordPiece over the words of a list, the n-th of which has id n."""
        made = cls.__new__(cls)
        made._word_piece(list(words), lowercase, Path(VOCABULARY))
        return made

    @property
    def is_word_piece(self) -> bool:
        """Whether it is BERT's kind, which a `vocab.txt` says all about."""
        return self._lines is not None

    @property
    def lines(self) -> list[str]:
        """The words in the order of their ids (WordPiece)."""
        assert self._lines is not None, "byte pairs have no list of words"
        return self._lines

    def __len__(self) -> int:
        return self._size

    def pieces(self, text: str) -> Pieces:
        """Word pieces of a text, without special tokens."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        if self.is_word_piece:
            return Pieces(tuple(encoding.ids), tuple(encoding.offsets))
        ids = tuple(self.mask_id if number >= self._size else number for number in encoding.ids)
        return Pieces(ids, tuple(_trimmed(text, span) for span in encoding.offsets))

    def write(self, path: Path) -> None:
        """Write `vocab.txt` (WordPiece)."""
        path.write_text("\n".join(self.lines) + "\n", encoding="utf-8")

    def save(self, folder: Path) -> None:
        """Write the file from which `from_folder` makes the same: `vocab.txt`, or `tokenizer.json` for byte pairs."""
        if self.is_word_piece:
            self.write(folder / VOCABULARY)
        else:
            (folder / TOKENIZER).write_text(self._json, encoding="utf-8")

    # -- making -----------------------------------------------------------------------------------------------------

    def _word_piece(self, words: list[str], lowercase: bool, where: Path) -> None:
        self._lines: list[str] | None = words
        self.lowercase = lowercase
        table = {word: i for i, word in enumerate(words)}
        self._specials(table, SPECIALS, where)
        self._size = len(words)
        self._tokenizer = Tokenizer(models.WordPiece(table, unk_token="[UNK]", max_input_chars_per_word=100))
        self._tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        self._tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self._tokenizer.add_special_tokens([MASK])
        self.digest = digest_of({"vocabulary": words, "lowercase": lowercase})

    def _from_json(self, path: Path, lowercase: bool | None) -> None:
        try:
            described: dict[str, Any] = read_json(path)
            kind, vocabulary = described["model"].get("type"), described["model"]["vocab"]
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is not a tokenizer ({error}).") from None
        if kind == "WordPiece" or (kind is None and "[CLS]" in vocabulary):
            words = _in_order(vocabulary, described.get("added_tokens") or [], path)
            lower = bool((described.get("normalizer") or {}).get("lowercase", _casing(path.parent, words)))
            self._word_piece(words, lower if lowercase is None else lowercase, path)
            return
        if kind != "BPE":
            raise DataError(f"{path} holds a tokenizer of the kind {kind!r}; WordPiece and BPE are known.")
        try:
            self._byte_pairs(Tokenizer.from_str(json.dumps(described)), path)
        except DataError:
            raise
        except Exception as error:  # the library raises plain Exceptions
            raise DataError(f"{path} is not a tokenizer ({error}).") from None

    def _byte_pairs(self, tokenizer: Tokenizer, where: Path) -> None:
        self._lines = None
        self.lowercase = False
        self._specials(tokenizer.get_vocab(with_added_tokens=True), _BPE_SPECIALS, where)
        self._size = tokenizer.get_vocab_size(with_added_tokens=True)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._json = tokenizer.to_str()
        self._tokenizer = tokenizer
        tokenizer.add_special_tokens([MASK])  # an id of its own, which `pieces` replaces by the mask's
        self.digest = digest_of({"tokenizer": json.loads(self._json)})

    def _specials(self, table: Mapping[str, int], names: Sequence[str], where: Path) -> None:
        for special in names:
            if special not in table:
                raise DataError(f"{where}: the token {special} is missing.")
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (table[special] for special in names)


def _casing(folder: Path, words: Sequence[str]) -> bool:
    path = folder / "tokenizer_config.json"
    said = read_json(path).get("do_lower_case") if path.is_file() else None
    if said is not None:
        return bool(said)
    return not any(word != word.lower() for word in words if not word.startswith("["))


def _in_order(vocabulary: Mapping[str, int], added: Sequence[Mapping[str, Any]], path: Path) -> list[str]:
    table = {**vocabulary, **{str(one["content"]): int(one["id"]) for one in added}}
    words = sorted(table, key=lambda word: table[word])
    if [table[word] for word in words] != list(range(len(words))):
        raise DataError(f"{path}: the ids of its words have gaps.")
    return words


def _byte_level(folder: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    except Exception as error:  # the library raises plain Exceptions
        raise DataError(f"{folder}/vocab.json and merges.txt are not a tokenizer ({error}).") from None
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _trimmed(text: str, span: tuple[int, int]) -> tuple[int, int]:
    """A span without the space that byte-level pieces begin with."""
    start, end = span
    while start < end - 1 and text[start].isspace():
        start += 1
    return start, end
