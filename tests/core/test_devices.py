"""Devices by name: what there is, and what there is not."""

from __future__ import annotations

import pytest
import torch

from madkit.core.devices import device_of
from madkit.core.errors import UsageProblem


def test_auto_is_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of("auto") == device_of("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_of("auto") == torch.device("cuda")


@pytest.mark.parametrize(
    ("name", "gpus", "message"),
    [
        ("cda", 0, "no device named 'cda'. Did you mean 'cuda'?"),
        ("gpu", 0, "no device named 'gpu'. Did you mean 'cuda'?"),
        ("cuda", 0, "no GPU that PyTorch can use"),
        ("cuda:2", 2, "2 GPU(s), counted from 0"),
    ],
)
def test_what_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, gpus: int, message: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(UsageProblem) as caught:
        device_of(name)
    assert message in caught.value.message
    if gpus:
        assert device_of("cuda:1") == torch.device("cuda:1")
