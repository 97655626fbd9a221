"""A student: a cross-modal encoder with a task head. At inference there is no teacher and nothing of one."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from madkit.core.errors import DataError
from madkit.students.encoder import Encoder
from madkit.students.families import Family, family_of
from madkit.students.heads import HeadSpec, StudentHead
from madkit.students.inputs import EncodedExample, encode_example
from madkit.students.interface import Encoded, StudentInputs, StudentOutput
from madkit.students.tokenizer import StudentTokenizer
from madkit.tasks.example import Example


@dataclass(frozen=True, slots=True)
class StudentIdentity:
    """Where a student comes from: its name, its family, and the digest of the weights it started from."""

    name: str
    family: str
    weights: str


class Student(nn.Module):
    """Encoder and head. `tokenizer` and `identity` travel with it, so that a folder is all that inference needs."""

    def __init__(
        self, encoder: Encoder, head: StudentHead, tokenizer: StudentTokenizer, identity: StudentIdentity
    ) -> None:
        super().__init__()
        encoder.pad_with(tokenizer.pad_id)
        self.encoder = encoder
        self.head = head
        self.tokenizer = tokenizer
        self.identity = identity

    @property
    def family(self) -> Family:
        """Its family."""
        return family_of(self.identity.family)

    @property
    def head_spec(self) -> HeadSpec:
        """What the head decides between."""
        return self.head.spec

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return self.encoder.hidden_size

    @property
    def layers(self) -> int:
        """Number of encoder layers; `hidden_states` has one more entry."""
        return self.encoder.config.layers

    @property
    def region_dim(self) -> int:
        """Width of the region features it reads."""
        return self.encoder.config.region_dim

    @property
    def max_text_length(self) -> int:
        """Text tokens of the longest sequence it can place."""
        return self.encoder.config.max_positions

    def encode(self, example: Example) -> EncodedExample:
        """An example as this family writes it, shortened where it is too long."""
        return encode_example(example, self.tokenizer, self.max_text_length, self.family.text)

    def forward(self, inputs: StudentInputs, distillation_tokens: Tensor | None = None) -> StudentOutput:
        """Logits, and hidden states of every layer. Raises DataError for inputs of another student.

        `distillation_tokens` [K, H] are a criterion's; they change nothing of the rest (`encoder.add_readers`).
        """
        self._check(inputs)
        encoded: Encoded = self.encoder(inputs, distillation_tokens=distillation_tokens)
        logits = self._outputs(encoded, inputs)
        spec, pairs = self.head.spec, None
        if spec.kind == "multiple-choice":
            pairs = logits.view(-1, inputs.n_candidates, 2) if spec.binary else None
            logits = logits.view(-1, inputs.n_candidates) if pairs is None else pairs[..., 1]
        mask = inputs.region_mask[inputs.image_index]
        length = inputs.input_ids.shape[1]
        return StudentOutput(logits, encoded.states, length, mask, pairs, encoded.distillation_states)

    def _outputs(self, encoded: Encoded, inputs: StudentInputs) -> Tensor:
        """The head's outputs [S, K], in single precision where the encoder runs under autocast.

        bfloat16 has eight bits: scores of about 5 are 0.03 apart at least, those of about 50 are 0.25. The candidates
        of a question lie nearer to each other than that; they would get one score, and the first of them would be the
        answer. A head is small, so that this costs next to nothing.
        """
        device = inputs.input_ids.device.type
        exact: AbstractContextManager[Any] = nullcontext()
        if torch.is_autocast_enabled(device):
            last = encoded.states[-1].float()
            encoded = encoded._replace(pooled=encoded.pooled.float(), states=(*encoded.states[:-1], last))
            exact = torch.autocast(device, enabled=False)
        with exact:
            outputs: Tensor = self.head(encoded, inputs)
        return outputs

    def _check(self, inputs: StudentInputs) -> None:
        length, dim = inputs.input_ids.shape[1], inputs.region_features.shape[-1]
        if length > self.max_text_length:
            raise DataError(
                f"A sequence has {length} text tokens; the student {self.identity.name} has positions for "
                f"{self.max_text_length}."
            )
        if dim != self.region_dim:
            raise DataError(
                f"The student {self.identity.name} reads region features of {self.region_dim} values; these have {dim}."
            )
