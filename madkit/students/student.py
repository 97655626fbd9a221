"""A student: a cross-modal encoder with a task head. At inference there is no teacher and nothing of one."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from madkit.students.heads import HeadSpec, TaskHead
from madkit.students.interface import StudentInputs, StudentOutput
from madkit.students.tokenizer import StudentTokenizer
from madkit.students.uniter import UniterModel


@dataclass(frozen=True, slots=True)
class StudentIdentity:
    """Where a student comes from: its name, its family, and the digest of the weights it started from."""

    name: str
    family: str
    weights: str


class Student(nn.Module):
    """Encoder and head. `tokenizer` and `identity` travel with it, so that a folder is all that inference needs."""

    def __init__(
        self, encoder: UniterModel, head: TaskHead, tokenizer: StudentTokenizer, identity: StudentIdentity
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.tokenizer = tokenizer
        self.identity = identity

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

    def forward(self, inputs: StudentInputs) -> StudentOutput:
        """Logits, and hidden states of every layer."""
        pooled, states = self.encoder(inputs)
        logits = self.head(pooled, inputs.n_candidates)
        mask = inputs.region_mask[inputs.image_index]
        return StudentOutput(logits, states, inputs.input_ids.shape[1], mask)
