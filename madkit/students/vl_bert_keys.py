"""The names in VL-BERT's official files (https://github.com/jackroos/VL-BERT), for `convert`.

`module.` is the wrapper of several GPUs, `_module.` that of VCR's choices; the network lies under `vlbert.`, what
turns regions into vectors under `image_feature_extractor.`, the task's head under `final_mlp.`: `.1` is VCR's, `.0` and
`.2` are VQA's. The detector's own layers are left, because madkit reads region features from files.

Before they fine-tune a pretrained file on VCR, the authors copy the type of queries (row 0) over that of responses (row
1): `PARTIAL_PRETRAIN_SEGMB_INIT` in `cfgs/vcr` and `vcr/function/train.py` at commit aec144f. For VQA they do not, so
the same file is converted differently for the two (`segments`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from madkit.students.checkpoints import plain_names
from madkit.students.families import Official, State

if TYPE_CHECKING:
    from madkit.students.vl_bert import VlBertConfig

_GEOMETRY = 2048
_SEES = "image_feature_extractor.obj_downsample.1."
_HEADS = {
    "final_mlp.1.": "choice.layers.1.",
    "final_mlp.0.": "answers.layers.0.",
    "final_mlp.2.": "answers.layers.2.",
}
_PRETRAINING = ("mlm_head.", "mvrc_head.", "relationsip_head.", "relationship_head.")  # the first spelling is theirs
_OWN = (
    "word_embeddings.", "position_embeddings.", "token_type_embeddings.", "object_linguistic_embeddings.",
    "end_embedding.", "visual_ln_text.", "visual_ln_object.", "embedding_LayerNorm.", "encoder.layer.", "pooler.",
)  # fmt: skip


def rename(key: str) -> tuple[str | None, str]:
    """A key of an official file under the network's names (`families.Official.rename`)."""
    name = plain_names([key])[key].replace("_module.", "").removeprefix("vlbert.")
    for official, ours in _HEADS.items():
        if name.startswith(official):
            return ours + name.removeprefix(official), ""
    if name.startswith(_PRETRAINING):
        return None, "a head of pretraining"
    if name.startswith((_SEES, *_OWN)):
        return name, ""
    if name.startswith("image_feature_extractor."):
        return None, "the detector's own layers"
    return None, "no part of this network"


def size_of(state: State) -> tuple[int, int]:
    """(layers, hidden width)."""
    layers = {int(name.split(".")[2]) for name in state if name.startswith("encoder.layer.")}
    return max(layers, default=-1) + 1, state["word_embeddings.weight"].shape[1]


def config_of(base: VlBertConfig, state: State) -> VlBertConfig:
    """`base` with the table sizes of a file."""
    return replace(
        base,
        vocab_size=len(state["word_embeddings.weight"]),
        max_positions=len(state["position_embeddings.weight"]),
        types=len(state["token_type_embeddings.weight"]),
        region_dim=state[f"{_SEES}weight"].shape[1] - _GEOMETRY,
    )


def adapt(state: State, config: VlBertConfig) -> tuple[State, dict[str, str]]:
    """The state as it is: the authors' tables have as many rows as the network's."""
    return state, {}


OFFICIAL = Official(
    rename=rename,
    size_of=size_of,
    config=config_of,
    adapt=adapt,
    lowercase=True,
    binary=False,
    answer_bias="layers.2.bias",
    words="word_embeddings.weight",
    optional=("pooler.",),  # there is none in pretraining
    segments="token_type_embeddings.weight",
)
