"""Names on the hub: found in its local cache, fetched in the safer format first, or refused in one sentence."""

from __future__ import annotations

import shutil
from pathlib import Path

import huggingface_hub
import pytest

from madkit.core import hub_files
from madkit.core.errors import NotFoundError
from madkit.core.hub import why_unreachable
from madkit.students.start import init_folder, new_student


class Hub:
    """Stands in for the hub's client: a repository with a few files, and a cache."""

    def __init__(self, files: Path, cache: Path) -> None:
        self.files, self.cache, self.asked = files, cache, []

    def snapshot_download(
        self, name: str, *, revision=None, local_files_only: bool = False, allow_patterns=None
    ) -> str:
        if local_files_only:
            if not self.cache.is_dir():
                raise FileNotFoundError(name)
            return str(self.cache)
        self.asked.append(tuple(allow_patterns))
        self.cache.mkdir(exist_ok=True)
        for path in self.files.iterdir():
            if any(path.match(pattern) for pattern in allow_patterns):
                shutil.copy(path, self.cache)
        return str(self.cache)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    (tmp_path / "files").mkdir()
    made = Hub(tmp_path / "files", tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot_download)
    monkeypatch.setattr(hub_files, "why_unreachable", lambda endpoint: None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return made


def test_a_name_is_fetched_once(stand_in: Hub, bert_folder) -> None:
    bert_folder(stand_in.files)
    (stand_in.files / "pytorch_model.bin").write_bytes(b"unsafe")
    student = new_student("mini-uniter", init="some/bert", region_dim=10).student
    assert len(student.tokenizer) == 14
    assert not (stand_in.cache / "pytorch_model.bin").exists()
    assert init_folder("some/bert") == stand_in.cache
    assert len(stand_in.asked) == 1


def test_torch_files_are_the_second_choice(stand_in: Hub) -> None:
    for name in ("config.json", "pytorch_model.bin", "tf_model.h5"):
        (stand_in.files / name).write_text("{}")
    assert init_folder("some/bert") == stand_in.cache
    assert len(stand_in.asked) == 2
    assert not (stand_in.cache / "tf_model.h5").exists()


def test_why_there_is_none_is_said(stand_in: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    (stand_in.files / "config.json").write_text("{}")
    with pytest.raises(NotFoundError, match="some/bert holds no weights"):
        init_folder("some/bert")
    monkeypatch.setattr(hub_files, "why_unreachable", lambda endpoint: "hub.example cannot be reached from here")
    with pytest.raises(NotFoundError, match=r"no folder 'some/bert', .* hub\.example cannot be reached"):
        init_folder("some/bert")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(NotFoundError, match="switched off"):
        init_folder("some/bert")


def test_an_endpoint_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "http_proxy", "all_proxy", "HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert "127.0.0.1 cannot be reached" in str(why_unreachable("http://127.0.0.1:9"))
