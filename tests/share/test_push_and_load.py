"""`madkit export --push` through the hub's own client to a hub on this machine, and the student loaded back from it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from madkit.cli.main import main
from madkit.core import hub
from madkit.core.errors import NotFoundError
from madkit.evaluate.predict import predict
from madkit.share.folder import files_of
from madkit.students.load import load_student, student_folder

from .conftest import SharedRun
from .hub_server import COMMIT, TOKEN, HubServer

# the client's own way of sending a file, which its HTTP library no longer likes
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    made = HubServer()
    monkeypatch.setattr(constants, "ENDPOINT", made.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{made.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for name in hub.PROXIES:
        monkeypatch.delenv(name, raising=False)
    thread = threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def export(run: SharedRun, folder: Path, *options: str) -> list[str]:
    where = ["--workspace", str(run.workspace.root), "--push", "me/student"]
    return ["export", run.path.name, str(folder), *where, *options]


def test_what_is_pushed_is_what_is_loaded(
    run: SharedRun,
    server: HubServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run.score()
    out = tmp_path / "out"
    (tmp_path / "secret.txt").write_text("beside it")
    assert main(export(run, out, "--licence", "apache-2.0", "--json")) == 0, capsys.readouterr().err
    pushed = json.loads(capsys.readouterr().out)["pushed"]
    assert pushed == {
        "repository": "me/student", "url": f"{server.url}/me/student/commit/{COMMIT}", "commit": COMMIT, "private": True
    }  # fmt: skip
    held = server.repositories["me/student"]["branches"]["main"]
    assert held == {name: (out / name).read_bytes() for name in [*files_of(out), "README.md", "manifest.json"]}
    assert len(server.large) == 1  # weights go as a large file
    assert server.messages == ["Student exported by madkit from out"]
    assert b"license: apache-2.0" in held["README.md"]

    (out / "notes.txt").write_text("not part of the student")
    assert main(export(run, out)) == 0  # the repository is there: written again, as private as it was
    assert "Pushed: me/student (private)." in capsys.readouterr().out
    assert "notes.txt" not in held

    loaded = load_student("me/student")
    assert str(student_folder("me/student")).startswith(constants.HF_HUB_CACHE)
    assert loaded.head_spec.outputs == load_student(out).head_spec.outputs
    examples, regions = run.data.examples("test")[:6], run.data.regions()
    ours, theirs = (
        predict(folder, examples, regions, spec=run.data.spec, device="cpu")
        for folder in (run.path / "student", student_folder("me/student"))
    )
    assert ours == theirs
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "others"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(NotFoundError, match="me/student"):  # private: not for those without a token
        load_student("me/student")


def test_a_branch_is_made_and_a_public_repository_is_public(
    run: SharedRun, server: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(export(run, tmp_path / "out", "--public", "--revision", "v2")) == 0, capsys.readouterr().err
    assert "Pushed: me/student (public)." in capsys.readouterr().out
    branches = server.repositories["me/student"]["branches"]
    assert branches["main"] == {}
    assert "model.safetensors" in branches["v2"]


def test_what_the_hub_refuses_is_one_sentence(
    run: SharedRun,
    server: HubServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server.writes = False
    assert main(export(run, tmp_path / "out")) == 1
    assert "me/student could not be pushed: the hub does not let this token write there." in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", "hf_of_yesterday")
    assert main(export(run, tmp_path / "out")) == 1
    assert "me/student could not be pushed: the hub does not know this token." in capsys.readouterr().err
    assert server.repositories == {}
