"""A student by its name on the hub, from a hub on this machine: what is fetched, what is kept, and what is said."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from madkit.cli.main import main
from madkit.core import hub
from madkit.core.errors import NotFoundError
from madkit.students.heads import HeadSpec
from madkit.students.load import load_student, save_student
from madkit.students.start import new_student

COMMIT = "0123456789abcdef0123456789abcdef01234567"
UNSAFE = ("pytorch_model.bin", "training_args.pkl", "modeling.py")


class Hub(ThreadingHTTPServer):
    """As much of the hub's protocol as its client needs to fetch a repository: a listing, and files with an ETag."""

    def __init__(self, repository: str, files: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.repository, self.files = repository, files
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path, repository = self.path.partition("?")[0], self.server.repository
        files = sorted(file.name for file in self.server.files.iterdir())
        if path.startswith(f"/api/models/{repository}/"):
            sizes = {name: (self.server.files / name).stat().st_size for name in files}
            listing: object = {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
            if "/tree/" in path:
                listing = [{"type": "file", "path": name, "size": size, "oid": name} for name, size in sizes.items()]
            self._send(json.dumps(listing).encode(), {"Content-Type": "application/json"}, with_body)
            return
        name = path.rpartition("/")[2]
        if not path.startswith(f"/{repository}/resolve/") or name not in files:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound" if repository not in path else "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if with_body:
            self.server.asked.append(name)
        self._send((self.server.files / name).read_bytes(), {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT}, with_body)

    def _send(self, body: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with the student `me/birds`, unsafe files beside it, and an empty hub cache."""
    folder = tmp_path / "served"
    head = HeadSpec("classification", ("owl", "wren"))
    save_student(new_student("mini-uniter", init="random", region_dim=12, head=head, layers=1).student, folder)
    (folder / "manifest.json").write_text('{"kind": "student"}')
    for name in UNSAFE:
        (folder / name).write_bytes(b"import os")
    found = Hub("me/birds", folder)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    for name in (*hub.PROXIES, "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", found.url)
    template = found.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setenv("MADKIT_WORKSPACE", str(tmp_path / "workspace"))
    yield found
    found.shutdown()
    found.server_close()


def test_a_student_is_fetched_once_and_nothing_unsafe_with_it(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    student, original = load_student("me/birds"), load_student(served.files)
    assert student.head_spec.outputs == ("owl", "wren")
    for name, value in original.state_dict().items():
        assert torch.equal(value, student.state_dict()[name]), name
    assert sorted(served.asked) == ["config.json", "manifest.json", "model.safetensors", "vocab.txt"]
    cached = {path.name for path in Path(constants.HF_HUB_CACHE).rglob("*")}
    assert not cached & set(UNSAFE)
    served.asked.clear()
    load_student("me/birds")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    load_student("me/birds")
    assert served.asked == []


def test_a_folder_of_that_name_goes_first(served: Hub, tmp_path: Path) -> None:
    head = HeadSpec("classification", ("mine", "not"))
    here = new_student("mini-uniter", init="random", region_dim=12, head=head, layers=1).student
    save_student(here, tmp_path / "me" / "birds")
    assert load_student("me/birds").head_spec.outputs == ("mine", "not")
    (tmp_path / "me" / "birds" / "config.json").unlink()
    with pytest.raises(NotFoundError, match="no student 'me/birds': neither a known name nor a folder with config"):
        load_student("me/birds")
    assert served.asked == []


def test_a_repository_without_safetensors_is_not_read(served: Hub) -> None:
    (served.files / "model.safetensors").unlink()
    with pytest.raises(NotFoundError, match="me/birds holds no weights that can be read safely"):
        load_student("me/birds")
    assert not set(served.asked) & set(UNSAFE)
    with pytest.raises(NotFoundError, match=r"me/nothing could not be fetched \(RepositoryNotFoundError\)"):
        load_student("me/nothing")


def test_the_command_asks_it_and_says_why_it_cannot(
    served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"image": "a.png", "text": "a bird"}\n')
    command = ["predict", "me/birds", str(questions), "--regions", "pixels", "--device", "cpu"]
    from PIL import Image

    Image.new("RGB", (20, 30), "red").save(tmp_path / "a.png")
    assert main(command) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["id"], set(row["scores"])) == ("line-1", {"owl", "wren"})

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    began = time.monotonic()
    for switched_off, reason in ((True, "the hub is switched off (HF_HUB_OFFLINE)"), (False, "127.0.0.1 cannot be")):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", switched_off)
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        for arguments in (command, command[:2]):  # on lines of one's own, and on imported data
            assert main(arguments) == 1
            err = capsys.readouterr().err
            assert err.startswith(
                "Error: There is no folder 'me/birds', and the files of a student of that name on the"
            )
            assert reason in err
            assert len(err.splitlines()) == 2
    assert time.monotonic() - began < 10


def test_a_run_that_was_mistyped_is_not_looked_for_on_the_hub(
    served: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "workspace" / "runs" / "vcr" / "one-run"
    run.mkdir(parents=True)
    (run / "manifest.json").write_text("{}")
    assert main(["predict", "vcr/one-rum"]) == 1
    err = capsys.readouterr().err
    assert "There is no run 'vcr/one-rum'" in err
    assert "hub" not in err
    assert served.asked == []
