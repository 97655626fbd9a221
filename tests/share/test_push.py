"""Pushing, against a stand-in for the hub's client; and every way not to reach it, in one sentence at once."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from madkit.cli.main import main
from madkit.core import hub
from madkit.core.errors import RunError, UsageProblem
from madkit.share import push
from madkit.share.folder import export_run, files_of
from madkit.share.names import check_licence, check_repository
from madkit.share.push import push_folder

from .conftest import SharedRun


class Refused(RuntimeError):
    """An error of the hub, with its answer."""

    response: SimpleNamespace


class Hub:
    """Takes what is uploaded; `error` is raised by the call of that name."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.error: tuple[str, Exception] | None = None
        self.private = True

    def __call__(self, **_: Any) -> Hub:
        return self

    def _note(self, name: str, **facts: Any) -> None:
        self.calls.append((name, facts))
        if self.error is not None and self.error[0] == name:
            raise self.error[1]

    def create_repo(self, repo_id: str, **facts: Any) -> None:
        self._note("create_repo", repo_id=repo_id, **facts)

    def create_branch(self, repo_id: str, **facts: Any) -> None:
        self._note("create_branch", repo_id=repo_id, **facts)

    def upload_folder(self, **facts: Any) -> Any:
        self._note("upload_folder", **facts)
        return SimpleNamespace(commit_url="https://hub.example/me/x/commit/abc", oid="abc", pr_url=None)

    def model_info(self, repo_id: str) -> Any:
        self._note("model_info", repo_id=repo_id)
        return SimpleNamespace(private=self.private)


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", made)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_made_up")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(push, "why_unreachable", lambda endpoint: None)
    return made


@pytest.fixture
def out(run: SharedRun, tmp_path: Path) -> Path:
    export_run(run.workspace, str(run.path), tmp_path / "out")
    return tmp_path / "out"


def test_what_was_exported_is_uploaded_privately_and_nothing_beside_it(reached: Hub, out: Path) -> None:
    (out / "secret.txt").write_text("mine")
    done = push_folder(out, "me/student")
    names = [name for name, _ in reached.calls]
    assert names == ["create_repo", "upload_folder", "model_info"]
    assert reached.calls[0][1] == {"repo_id": "me/student", "private": True, "exist_ok": True}
    uploaded = reached.calls[1][1]
    assert sorted(uploaded["allow_patterns"]) == sorted([*files_of(out), "README.md", "manifest.json"])
    assert uploaded["folder_path"] == out
    assert done == push.Pushed("me/student", "https://hub.example/me/x/commit/abc", "abc", True)


def test_branch_pull_request_and_visibility_are_passed_on(reached: Hub, out: Path) -> None:
    reached.private = False
    done = push_folder(out, "me/student", private=False, revision="v2", create_pr=True)
    facts = dict(reached.calls)
    assert facts["create_repo"]["private"] is False
    assert facts["create_branch"]["branch"] == "v2"
    assert (facts["upload_folder"]["revision"], facts["upload_folder"]["create_pr"]) == ("v2", True)
    assert not done.private


@pytest.mark.parametrize(
    ("status", "words"), [(401, "does not know this token"), (403, "write there"), (500, "Refused: it broke")]
)
@pytest.mark.parametrize("call", ["create_repo", "upload_folder"])
def test_a_refusal_is_one_sentence(reached: Hub, out: Path, call: str, status: int, words: str) -> None:
    error = Refused("it broke.\nfor many reasons")
    error.response = SimpleNamespace(status_code=status)
    reached.error = (call, error)
    with pytest.raises(RunError, match=words) as found:
        push_folder(out, "me/student")
    assert "\n" not in str(found.value)
    assert found.value.hint


def test_what_happened_to_a_file_is_told_with_its_name(reached: Hub, out: Path) -> None:
    """The client says which file and hides why behind it."""
    error = RuntimeError("Error while uploading 'model.safetensors' to the Hub.")
    error.__cause__ = OSError("the connection was reset")
    reached.error = ("upload_folder", error)
    with pytest.raises(RunError, match=r"'model\.safetensors' to the Hub \(OSError: the connection was reset\)\."):
        push_folder(out, "me/student")
    error.__cause__ = Refused("no")
    error.__cause__.response = SimpleNamespace(status_code=403)
    with pytest.raises(RunError, match="the hub does not let this token write there") as found:
        push_folder(out, "me/student")
    assert found.value.hint is not None
    assert "write access" in found.value.hint


def test_without_token_network_or_permission_it_ends_at_once(
    reached: Hub, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.monotonic()
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(RunError, match="no token"):
        push_folder(out, "me/student")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_made_up")
    monkeypatch.setattr(push, "why_unreachable", hub.why_unreachable)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for name in hub.PROXIES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RunError, match=r"127\.0\.0\.1 cannot be reached"):
        push_folder(out, "me/student")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RunError, match="switched off"):
        push_folder(out, "me/student")
    assert reached.calls == []
    assert time.monotonic() - began < 10


def test_only_an_exported_folder_is_pushed(reached: Hub, tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="is no exported student"):
        push_folder(tmp_path, "me/student")
    assert reached.calls == []


@pytest.mark.parametrize(
    "name", ["", "me", "me/", "/x", "a/b/c", "a b/c", "me/x..y", "me/-x", "me/x--y", "m/" + "x" * 99]
)
def test_names_that_the_hub_refuses_are_refused_here(name: str) -> None:
    with pytest.raises(UsageProblem, match="is no name of a repository"):
        check_repository(name)


def test_good_names_pass() -> None:
    assert check_repository("My-Org/uniter.mad_1pct") == "My-Org/uniter.mad_1pct"
    assert check_licence("bsd-3-clause-clear") == "bsd-3-clause-clear"
    with pytest.raises(UsageProblem, match="Did you mean 'mit'"):
        check_licence("MIT")


def test_the_command_exports_and_pushes(
    run: SharedRun, reached: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["export", run.path.name, str(tmp_path / "out"), "--workspace", str(run.workspace.root)]
    assert main([*base, "--licence", "mit", "--push", "me/student", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["written"], found["licence"], found["scores"]) == (True, "mit", 0)
    assert found["pushed"] == {
        "repository": "me/student", "url": "https://hub.example/me/x/commit/abc", "commit": "abc", "private": True
    }  # fmt: skip
    assert set(found["files"]) == {path.name for path in (tmp_path / "out").iterdir()}
    assert main(base) == 0
    out, err = capsys.readouterr()
    assert out.startswith("Nothing to do: this student was there (6 files, ")
    assert "has no results yet" in err
    reached.error = ("create_repo", OSError("no route"))
    assert main([*base, "--push", "me/student"]) == 1
    assert (
        capsys.readouterr().err.splitlines()[-2].startswith("Error: me/student could not be pushed: OSError: no route")
    )


@pytest.mark.parametrize(
    "arguments", [["--public"], ["--create-pr"], ["--revision", "x"], ["--push", "x"], ["--licence", "M I T"]]
)
def test_options_that_cannot_be_meant_are_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "a", "b", *arguments]) == 2
    assert capsys.readouterr().err.startswith("Error: ")
