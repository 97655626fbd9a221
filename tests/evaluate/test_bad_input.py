"""What a user's workspace may hold by accident: one clear error each, and every other cell is computed."""

from __future__ import annotations

import json

import pytest

from madkit.cli.main import main
from madkit.evaluate import predict as predict_module


@pytest.fixture
def typed(made_up, monkeypatch, capsys):
    """Type `madkit evaluate` in the made-up workspace: (exit code, document, warnings)."""
    monkeypatch.setattr(predict_module, "predict", lambda *arguments, spec, **_: made_up.scorer(*arguments, spec))
    made_up.add_data("snli-ve", "mini-snli-ve")

    def run(*options: str):
        code = main(["evaluate", "--workspace", str(made_up.workspace.root), "--json", *options])
        printed = capsys.readouterr()
        lines = [line for line in printed.err.splitlines() if line.startswith(("Warning:", "Error:"))]
        return code, json.loads(printed.out), lines

    return run


def good(made_up):
    return [made_up.add_run(arm, seed) for arm in ("finetune", "affinity") for seed in range(2)]


def arms(document):
    return {(row["arm"], row["suite"]): row["n_seeds"] for row in document["rows"] if row["metric"] == "accuracy"}


ALL = {(arm, suite): 2 for arm in ("finetune", "affinity") for suite in ("test", "test-rendering")}


def test_a_run_of_another_schema_is_one_problem(made_up, typed):
    good(made_up)
    made_up.add_run("mad", 0, schema=7)
    code, document, warnings = typed()
    assert (code, len(warnings)) == (1, 1)
    assert "manifest schema 7; this madkit reads schema 1" in warnings[0]
    assert "Try: evaluate it with the madkit that made it" in warnings[0]
    assert arms(document) == ALL


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 1, "status": "complete"}'])
def test_a_manifest_that_cannot_be_read_is_one_problem(made_up, typed, text):
    good(made_up)
    (made_up.add_run("mad", 0) / "manifest.json").write_text(text)
    code, document, warnings = typed()
    assert (code, len(warnings)) == (1, 1)
    assert "manifest.json" in warnings[0]
    assert warnings[0].endswith("Try: remove the folder and train again")
    assert arms(document) == ALL


def test_damaged_results_are_one_problem_that_names_file_and_line(made_up, typed):
    folders = good(made_up)
    assert typed()[0] == 0
    path = folders[0] / "results.jsonl"
    first, second = path.read_text().splitlines()
    path.write_text(f"{first[:30]}\n{second}\n")
    code, document, warnings = typed()
    assert (code, len(warnings)) == (1, 1)
    assert f"{path}, line 1: not valid JSON. Try: remove the file" in warnings[0]
    assert arms(document) == ALL | {("finetune", "test"): 1, ("finetune", "test-rendering"): 1}
    path.unlink()
    assert typed()[0] == 0


def test_a_half_written_row_is_no_problem_at_all(made_up, typed):
    folders = good(made_up)
    before = typed()[1]
    path = folders[0] / "results.jsonl"
    path.write_text(path.read_text()[:-20])
    code, document, warnings = typed()
    assert (code, warnings) == (0, [])
    assert document["rows"] == before["rows"]


def test_a_suite_without_data_is_said_once_for_all_runs(made_up, typed, tmp_path):
    from madkit.core.errors import NotFoundError

    good(made_up)
    data = made_up.data["mini-snli-ve", "aaaa000011112222"]
    plain = data.examples

    def examples(suite):
        if suite not in data.names:
            raise NotFoundError(f"mini-snli-ve has no split or test suite {suite!r}.", hint="use one of: test")
        return plain(suite)

    data.examples = examples
    protocol = tmp_path / "mine.yaml"
    protocol.write_text("suites: [test, test-moon]\n")
    code, document, warnings = typed("--protocol", str(protocol))
    assert code == 1
    assert len(document["problems"]) == 4
    (warning,) = warnings
    assert "on test-moon: mini-snli-ve has no split or test suite 'test-moon'. (The same of 3 more.) Try:" in warning
    assert arms(document) == {key: 2 for key in ALL if key[1] == "test"}


def test_differences_across_revisions_are_refused_once_an_arm(made_up, typed):
    good(made_up)
    made_up.add_data("snli-ve", "mini-snli-ve", "bbbb000011112222", n=20)
    for seed in range(2):
        made_up.add_run("mad", seed, data_revision="bbbb000011112222")
    code, document, warnings = typed()
    assert code == 1
    (warning,) = warnings
    assert "mini-snli-ve, 1pct, mad: Its runs were trained on revision bbbb000011112222" in warning
    assert "those of finetune on revision aaaa000011112222: their difference is not told" in warning
    assert {key: n for key, n in arms(document).items() if key[0] != "mad"} == ALL
    assert [row["difference"] for row in document["rows"] if row["arm"] == "mad" and row["metric"] == "accuracy"] == [
        None,
        None,
    ]


def test_two_whole_revisions_are_two_tables_and_no_problem(made_up, typed):
    good(made_up)
    made_up.add_data("snli-ve", "mini-snli-ve", "bbbb000011112222", n=20)
    for arm in ("finetune", "mad"):
        for seed in range(2):
            made_up.add_run(arm, seed, data_revision="bbbb000011112222", tag="11111111")
    code, document, warnings = typed("--protocol", "smoke")
    assert (code, warnings) == (0, [])
    assert [source["revision"][:4] for source in document["sources"]] == ["aaaa", "bbbb"]


def test_nan_logits_name_the_run_and_cost_its_cells_alone(made_up, typed):
    folders = good(made_up)
    made_up.broken.add(folders[0].name)
    code, document, warnings = typed()
    assert (code, len(warnings)) == (1, 1)
    assert f"{folders[0].name} on test: The student gives NaN or infinite logits on 60 of 60" in warnings[0]
    assert "(The same of 1 more.) Try:" in warnings[0]
    assert arms(document) == ALL | {("finetune", "test"): 1, ("finetune", "test-rendering"): 1}


@pytest.mark.parametrize(("option", "value"), [("--device", "cuuda"), ("--precision", "fp16"), ("--device", "cuda:0")])
def test_a_device_or_precision_that_cannot_be_had_is_refused_before_anything(
    made_up, capsys, monkeypatch, option, value
):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    made_up.add_data("snli-ve", "mini-snli-ve")
    good(made_up)
    assert main(["evaluate", "--workspace", str(made_up.workspace.root), option, value]) == 2
    assert value in capsys.readouterr().err or value == "cuda:0"
    assert not made_up.scored


def test_answers_to_other_questions_cost_their_cell_and_no_table(made_up, typed):
    """The suite was changed between two evaluations, and by now the data is gone: both answers count as they are."""
    folders = good(made_up)
    odd, away = folders[3], made_up.workspace.root / "away"
    odd.rename(away)
    assert typed()[0] == 0
    (data,) = made_up.data.values()
    data.n = 40
    for folder in folders[:3]:
        folder.rename(folder.with_name(f"{folder.name}.kept"))
        (folder.with_name(f"{folder.name}.kept") / "manifest.json").rename(made_up.workspace.root / folder.name)
    away.rename(odd)
    assert typed()[0] == 0
    for folder in folders[:3]:
        folder.with_name(f"{folder.name}.kept").rename(folder)
        (made_up.workspace.root / folder.name).rename(folder / "manifest.json")
    made_up.data.clear()
    code, document, warnings = typed()
    assert code == 1
    assert "were scored on other questions than those of other runs" in warnings[0]
    assert {problem["where"] for problem in document["problems"]} == {f"{odd.name} on {suite}" for _, suite in ALL}
    assert arms(document) == ALL | {("affinity", "test"): 1, ("affinity", "test-rendering"): 1}
