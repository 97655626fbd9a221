"""Span tokenizer over a ``tokenizer.json`` of the ``tokenizers`` library, as the embedded teacher ships one.

The library tracks where every character went through normalisation, so its offsets already count characters of the
original text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from madkit.core.errors import DataError, NotFoundError
from madkit.core.files import digest_of
from madkit.teachers.interface import TokenizedText

START, END, PAD = "[SOS]", "[EOS]", "[PAD]"


class FileTokenizer:
    """A tokenizer from a file with the special tokens ``[SOS]``, ``[EOS]`` and ``[PAD]`` (id 0).

    Raises:
        NotFoundError: there is no such file.
        DataError: the file is no tokenizer, or a special token is missing.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise NotFoundError(f"The tokenizer file {path} does not exist.")
        text = path.read_text(encoding="utf-8")
        try:
            self._tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception for any malformed file
            raise DataError(f"{path} is not a tokenizer of the tokenizers library ({error}).") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.start_id, self.end_id = (self._special(path, token) for token in (START, END))
        self.prefix, self.suffix, self.pad_id = (self.start_id,), (self.end_id,), 0
        if self._special(path, PAD) != self.pad_id:
            raise DataError(f"{path}: the token {PAD} must have id 0.")
        self.digest = digest_of(text)

    def _special(self, path: Path, token: str) -> int:
        number = self._tokenizer.token_to_id(token)
        if number is None:
            raise DataError(f"{path}: the token {token} is missing.")
        return int(number)

    def tokenize(self, texts: Sequence[str]) -> list[TokenizedText]:
        """Tokenize without special tokens."""
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [TokenizedText(tuple(encoding.ids), tuple(encoding.offsets)) for encoding in encodings]
