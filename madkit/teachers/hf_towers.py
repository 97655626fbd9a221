"""Configurations of the text encoders of transformers that open_clip's architectures name.

open_clip asks the hub for them even where no weights are wanted. What decides the shape of these seven is stated here
instead, so that such a model is built from a file of its weights alone; any other value shows as a tensor that does not
fit. Sizes are those of the models' own ``config.json``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from madkit.core.errors import ConfigError
from madkit.core.registry import suggest
from madkit.teachers.hf_files import quiet

_ROBERTA = {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
_MT5 = {"model_type": "mt5", "vocab_size": 250112, "d_kv": 64, "feed_forward_proj": "gated-gelu"}
_NLLB: dict[str, Any] = {
    "model_type": "m2m_100",
    "vocab_size": 256206,
    "d_model": 1024,
    "max_position_embeddings": 1024,
    "encoder_attention_heads": 16,
    "decoder_attention_heads": 16,
    "scale_embedding": True,
}

TOWERS: dict[str, dict[str, Any]] = {
    "roberta-base": {"model_type": "roberta", "vocab_size": 50265, **_ROBERTA},
    "xlm-roberta-base": {"model_type": "xlm-roberta", "vocab_size": 250002, **_ROBERTA},
    "xlm-roberta-large": {"model_type": "xlm-roberta", "vocab_size": 250002, **_ROBERTA, **_LARGE},
    "google/mt5-base": {**_MT5, "d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12},
    "google/mt5-xl": {**_MT5, "d_model": 2048, "d_ff": 5120, "num_layers": 24, "num_heads": 32},
    "facebook/nllb-200-distilled-600M": {**_NLLB, "encoder_layers": 12, "encoder_ffn_dim": 4096, "decoder_layers": 1},
    "facebook/nllb-200-distilled-1.3B": {**_NLLB, "encoder_layers": 24, "encoder_ffn_dim": 8192, "decoder_layers": 1},
}


@contextmanager
def tower_folder(name: str) -> Iterator[str]:
    """Give a folder with the configuration of one of these encoders, for as long as a model is built from it.

    Decoders are left out as far as the library allows (one layer): open_clip takes the encoder only.

    Raises:
        ConfigError: an encoder whose configuration is not stated here.
    """
    from transformers import AutoConfig

    if name not in TOWERS:
        raise ConfigError(
            f"madkit does not know the text encoder '{name}' of this architecture.{suggest(name, TOWERS)}",
            hint="use one of open_clip's own architectures: madkit teachers list --open-clip",
        )
    with tempfile.TemporaryDirectory(prefix="madkit-") as folder:
        with quiet():
            AutoConfig.for_model(**TOWERS[name]).save_pretrained(folder)
        yield folder
