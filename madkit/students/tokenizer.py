"""BERT's WordPiece tokenizer with character offsets, from a `vocab.txt`, through the `tokenizers` library."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from madkit.core.errors import DataError, NotFoundError
from madkit.core.files import digest_of

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True, slots=True)
class Pieces:
    """Word pieces of one text: ids, and (start, end) offsets in characters of the text."""

    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]


class StudentTokenizer:
    """WordPiece over a vocabulary file; `lowercase` for uncased vocabularies.

    Raises:
        NotFoundError: there is no such file.
        DataError: a special token is missing.
    """

    def __init__(self, vocabulary: Path, *, lowercase: bool) -> None:
        if not vocabulary.is_file():
            raise NotFoundError(f"The vocabulary {vocabulary} does not exist.")
        self.lines = vocabulary.read_text(encoding="utf-8").splitlines()
        self.lowercase = lowercase
        table = {word: i for i, word in enumerate(self.lines)}
        for special in SPECIALS:
            if special not in table:
                raise DataError(f"{vocabulary}: the token {special} is missing.")
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (table[special] for special in SPECIALS)
        self._tokenizer = Tokenizer(models.WordPiece(table, unk_token="[UNK]", max_input_chars_per_word=100))
        self._tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        self._tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self._tokenizer.add_special_tokens(["[MASK]"])  # VCR's masked variants write it into texts
        self.digest = digest_of({"vocabulary": self.lines, "lowercase": lowercase})

    def __len__(self) -> int:
        return len(self.lines)

    def pieces(self, text: str) -> Pieces:
        """Word pieces of a text, without special tokens."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return Pieces(tuple(encoding.ids), tuple(encoding.offsets))

    def write(self, path: Path) -> None:
        """Write `vocab.txt`."""
        path.write_text("\n".join(self.lines) + "\n", encoding="utf-8")
