"""The commands as a user meets them: exit codes, one JSON document, one sentence for a failure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from madkit.cli.main import main


def madkit(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return int(code or 0), captured.out, captured.err


def test_extract_cache_and_teachers(workspace: Path, tiny_teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = f"local:{tiny_teacher}"
    common = ("--teacher", teacher, "--task", "snli-ve", "--workspace", workspace, "--device", "cpu")
    code, out, _ = madkit(
        capsys, "extract", "--teacher", teacher, "--task", "snli-ve", "--workspace", workspace, "--dry-run", "--json"
    )
    (plan,) = json.loads(out)["stores"]
    assert (code, plan["pending"], plan["skipped"], plan["images"]) == (0, plan["items"], 0, 10)
    assert not (workspace / "cache").exists()

    code, out, _ = madkit(capsys, "extract", *common, "--shard-mb", "0.002", "--json")
    (first,) = json.loads(out)["stores"]
    assert code == 0
    assert {"path", "items", "bytes", "computed", "skipped"} <= first.keys()
    assert (first["path"], first["computed"]) == (plan["path"], plan["items"])
    assert plan["bytes"] <= first["bytes"]
    code, out, err = madkit(capsys, "extract", *common)
    assert (code, "nothing to do" in err) == (0, True)

    code, out, _ = madkit(capsys, "cache", "list", "--workspace", workspace, "--json")
    assert [row["state"] for row in json.loads(out)["stores"]] == ["complete"]
    code, out, _ = madkit(capsys, "cache", "info", "--workspace", workspace, "--json")
    assert json.loads(out)["stores"][0]["identity"]["source"] == "snli-ve"
    code, out, _ = madkit(capsys, "cache", "verify", "--sample", "3", "--workspace", workspace, "--json")
    (verified,) = json.loads(out)["stores"]
    assert (code, verified["ok"]) == (0, True)
    assert verified["sample"]["images"]["worst"] > 0.99999
    assert verified["sample"]["texts"]["n"] > 0

    shard = Path(first["path"]) / "images/tokens/c/0/0/0"
    data = bytearray(shard.read_bytes())
    data[3] ^= 1
    shard.write_bytes(data)
    code, out, err = madkit(capsys, "cache", "verify", "--workspace", workspace, "--json")
    assert code == 3
    (problem,) = json.loads(out)["stores"][0]["problems"]
    assert (problem["file"], problem["detail"]) == ("images/tokens/c/0/0/0", "wrong checksum in row 0")
    assert "Error: 1 of 1 caches is not sound." in err
    assert f"Try: madkit cache repair --workspace {workspace} {first['path'].rpartition('/')[2]}" in err
    shard.unlink()
    code, out, _ = madkit(capsys, "extract", *common, "--json")
    assert 0 < json.loads(out)["stores"][0]["computed"] <= 3
    assert madkit(capsys, "cache", "verify", "--workspace", workspace)[0] == 0

    out = madkit(capsys, "cache", "info", "--workspace", workspace)[1]
    assert "choices.decoder" in out
    assert "{'name'" not in out
    assert "Nothing to remove" in madkit(capsys, "cache", "prune", "--workspace", workspace)[1]
    name = Path(first["path"]).name
    code, out, _ = madkit(capsys, "cache", "prune", "--store", name, "--workspace", workspace)
    assert (code, Path(first["path"]).exists()) == (0, True)
    assert f"madkit cache prune --workspace {workspace} --store {name} --yes" in out
    assert madkit(capsys, "cache", "prune", "--store", name, "--yes", "--workspace", workspace)[0] == 0
    assert not Path(first["path"]).exists()


def test_teachers_list_and_show(tiny_teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = madkit(capsys, "teachers", "list", "--json")
    rows = {row["name"]: row for row in json.loads(out)["teachers"]}
    assert code == 0
    assert (rows["clip-vit-l14"]["dim"], rows["clip-vit-l14"]["image_tokens"]) == (768, 256)
    code, out, _ = madkit(capsys, "teachers", "show", "clip-vit-b32", "--json")
    facts = json.loads(out)
    assert (facts["target"], facts["activation"], facts["dim"]) == ("open_clip:ViT-B-32/openai", "quick-gelu", 512)
    code, out, _ = madkit(capsys, "teachers", "show", f"local:{tiny_teacher}", "--json")
    assert json.loads(out)["image_tokens"] == 16
    assert "clip-vit-l14" in madkit(capsys, "teachers", "list")[1]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["extract", "--teacher", "clip-vit-l4"], 2, "Did you mean 'clip-vit-l14'?"),
        (["extract", "--teacher", "open_clip:ViT-L-14/opena"], 2, "Did you mean 'openai'?"),
        (["extract", "--teacher", "clip-vit-l14", "--weights", "/nowhere/x"], 1, "do not exist"),
        (["teachers", "show", "minni"], 2, "Did you mean 'mini'?"),
        (["cache", "verify"], 1, "has no token caches"),
        (["cache", "info", "nope"], 1, "no token cache named 'nope'"),
        (["cache", "list", "--cache", "s4://bucket"], 2, "no storage called 's4://'. Did you mean 's3'?"),
        (["cache", "list", "--cache", "htps://host"], 2, "Did you mean 'https'?"),
        (["extract", "--teacher", "clip-vit-l14", "--cache", "s4://b"], 2, "called 's4://'. Did you mean 's3'?"),
        (["extract", "--teacher", "clip-vit-l14", "--cache", "s4://b", "--dry-run"], 2, "Did you mean 's3'?"),
        (["extract", "--teacher", "clip-vit-l14", "--cache", "http://host"], 1, "can only be read"),
    ],
)
def test_failures_are_one_sentence(
    arguments: list[str], code: int, words: str, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, out, err = madkit(capsys, *arguments, "--workspace", workspace)
    assert (found, out) == (code, "")
    assert words in err
    assert "Traceback" not in err


def test_without_weights_and_network_one_sentence_says_how(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tests run with HF_HUB_OFFLINE=1."""
    code, out, err = madkit(capsys, "extract", "--teacher", "clip-vit-l14", "--workspace", workspace)
    assert (code, out) == (1, "")
    first, second = [line for line in err.splitlines() if line]
    assert first.startswith("Error: The weights of 'clip-vit-l14' (open_clip ViT-L-14/openai) are not on this machine")
    assert "--weights PATH" in second
