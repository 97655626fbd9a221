"""`madkit score`: anyone's answers against imported data, with numbers that were worked out by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from madkit.cli.main import main
from madkit.core.errors import MadkitError
from madkit.core.workspace import Workspace
from madkit.evaluate.score_file import score_file
from madkit.evaluate.submission import ANSWER_COLUMNS, VCR_COLUMNS
from madkit.tasks.importing import ImportOptions
from madkit.tasks.importing.run import import_data

from .owners_files import ANSWERS, RATIONALES, import_snli_ve, import_vcr, import_vqa

# Raw answers and what the official functions make of them (punctuation, then words), from running those functions.
GOLDEN = {
    "Yes.": "yes", "1,000": "1000", "t-shirt": "t shirt", "1,000-2,000": "10002000", "left- right": "left right",
    "10,000 people": "10000 people", "red, white": "red white", "5:30 pm": "5:30 pm", "p.m.": "pm", "5.30": "5.30",
    "U.S.A.": "usa", "10.": "10", "st. louis": "st louis", "3.5": "3.5", "none": "0", "No one": "no 1", "$5": "$5",
    "The two dogs": "2 dogs", "5%": "5%", "-5": "5", "N/A": "n", "1/2": "1 2", "dont": "don't", "2 1/2": "2 1 2",
    "im": "im", "black/white": "black white", "youre": "you're", "rock & roll": "rock & roll", '"stop"': "stop",
    "somebody'd": "somebodyd", "what?!": "what", "half-eaten": "half eaten", "three-four": "3 4",
    "e-mail, web": "e mail web", "  twelve ": "twelve", "#1": "#1",
}  # fmt: skip
LABELS = ("entailment", "neutral", "contradiction", "neutral", "entailment", "entailment")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Workspace:
    base = tmp_path_factory.mktemp("score")
    workspace = Workspace.at(base / "workspace")
    import_vcr(workspace, base / "vcr", submission=("test-10", "test-9"))
    import_snli_ve(workspace, base / "snli", LABELS)
    # every golden form is half of the ten answers, so that exactly it is right, and then four questions with a twist
    tens = [[final] * 5 + ["zzz"] * 5 for final in GOLDEN.values()]
    tens += [["yes"] * 10, ["two dogs"] * 6 + ["dogs"] * 4, ["net"] * 6 + ["netting", "mesh", "pitcher", "orange"]]
    tens += [["net"] * 6 + ["netting", "mesh", "pitcher", "orange"]]
    kinds = [("other", "what is the")] * len(GOLDEN)
    kinds += [("yes/no", "is the"), ("number", "how many"), ("other", "what"), ("other", "what")]
    import_vqa(workspace, base / "vqa", tens, kinds)
    return workspace


VQA_ANSWERS = [*GOLDEN, "Yes", "2 dogs", "net", "mesh"]


def write(path: Path, value: Any) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def vqa_results(answers=VQA_ANSWERS) -> list[dict[str, Any]]:
    return [{"question_id": 1000 + number, "answer": answer} for number, answer in enumerate(answers)]


def vcr_rows() -> list[list[Any]]:
    """Q->A right for questions 0, 1, 2; QA->R (given the right answer) for 0, 1, 3, 4; so Q->AR for 0 and 1.

    The rationale given the answer that was chosen is right for question 2 and wrong for 3 and 4: that may not count.
    """
    rows = []
    for number, (answer, rationale) in enumerate(zip(ANSWERS, RATIONALES, strict=True)):
        chosen = answer if number < 3 else (answer + 1) % 4
        scores = [[2.5 if choice == chosen else -1.0 for choice in range(4)]]
        for given in range(4):
            right = given == answer and number != 2
            best = rationale if right else (rationale + 1) % 4
            scores.append([0.9 if choice == best else 0.1 / 3 for choice in range(4)])
        rows.append([f"val-{number}", *(value for group in scores for value in group)])
    return rows


def vcr_csv(path: Path, rows: list[list[Any]], columns=VCR_COLUMNS) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    return path


def scores_of(found) -> dict[str, float]:
    return {name: one.score for name, one in found.metrics.items()}


# -- VCR --------------------------------------------------------------------------------------------------------------


def test_vcr_metrics_of_a_truth_made_by_hand(place, tmp_path, capsys):
    file = vcr_csv(tmp_path / "vcr.csv", list(reversed(vcr_rows())))  # the order of the lines says nothing
    assert main(["score", str(file), "--task", "vcr", "--workspace", str(place.root), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "madkit.score/1"
    assert {name: one["score"] for name, one in document["metrics"].items()} == {
        "Q->AR": 40.0, "Q->A": 60.0, "QA->R": 80.0,
    }  # fmt: skip
    assert next(iter(document["metrics"])) == "Q->AR"
    assert (document["questions"], document["answered"], document["vqa_rule"]) == (5, 5, None)


def test_vcr_answers_alone_give_their_own_metric(place, tmp_path):
    file = vcr_csv(tmp_path / "a.csv", [row[:5] for row in vcr_rows()], ("annot_id", *ANSWER_COLUMNS))
    assert scores_of(score_file(place, file, "vcr")) == {"Q->A": 60.0}


def test_vcr_lines_of_predictions(place, tmp_path):
    lines = [
        {"id": f"val-{number}/{part}", "prediction": right[number]}
        for number in range(5)
        for part, right in (("answer", ANSWERS), ("rationale", RATIONALES))
    ]
    lines[3]["prediction"] = (RATIONALES[1] + 1) % 4
    file = write(tmp_path / "p.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    assert scores_of(score_file(place, file, "vcr")) == {"Q->AR": 80.0, "Q->A": 100.0, "QA->R": 80.0}


def test_a_subset_is_scored_only_when_asked_for(place, tmp_path):
    file = vcr_csv(tmp_path / "vcr.csv", vcr_rows()[:2])
    with pytest.raises(MadkitError, match=r"3 missing \(val-2, val-3, val-4\)") as caught:
        score_file(place, file, "vcr")
    assert "--subset" in (caught.value.hint or "")
    found = score_file(place, file, "vcr", subset=True)
    assert (found.answered, found.questions) == (2, 5)
    assert scores_of(found) == {"Q->AR": 100.0, "Q->A": 100.0, "QA->R": 100.0}
    assert found.metrics["Q->AR"].n == 2


def test_questions_answered_in_part_count_where_their_part_is_enough(place, tmp_path, capsys):
    def lines(answers: range, rationales: range) -> str:
        rows = [(f"val-{number}/answer", ANSWERS[number]) for number in answers]
        rows += [(f"val-{number}/rationale", RATIONALES[number]) for number in rationales]
        return "".join(json.dumps({"id": name, "prediction": value}) + "\n" for name, value in rows)

    file = write(tmp_path / "p.jsonl", lines(range(4), range(2, 5)))
    with pytest.raises(MadkitError, match="3 missing"):
        score_file(place, file, "vcr")
    assert main(["score", str(file), "--task", "vcr", "--subset", "--workspace", str(place.root)]) == 0
    assert "2 of 5 questions answered, 3 more in part" in capsys.readouterr().out
    found = score_file(place, file, "vcr", subset=True)
    assert (found.answered, found.partly, found.questions) == (2, 3, 5)
    assert {name: one.n for name, one in found.metrics.items()} == {"Q->AR": 2, "Q->A": 4, "QA->R": 3}
    # without any rationale the answers are all that is asked for
    alone = score_file(place, write(tmp_path / "a.jsonl", lines(range(3), range(0))), "vcr", subset=True)
    assert (alone.answered, alone.partly) == (3, 0)
    assert {name: one.n for name, one in alone.metrics.items()} == {"Q->A": 3}


def test_a_file_for_a_split_without_labels_is_checked(place, tmp_path, capsys):
    rows = [["test-9", *[0.25] * 20], ["test-10", *[0.25] * 20]]
    where = ["--task", "vcr", "--split", "submission", "--workspace", str(place.root)]
    assert main(["score", str(vcr_csv(tmp_path / "ok.csv", rows)), *where]) == 0
    assert "no labels, so there is no score" in capsys.readouterr().out
    assert main(["score", str(vcr_csv(tmp_path / "few.csv", rows[:1])), *where]) == 1
    assert "1 missing (test-10)" in capsys.readouterr().err


# -- VQA --------------------------------------------------------------------------------------------------------------


def test_golden_vectors_through_the_whole_command(place, tmp_path, capsys):
    file = write(tmp_path / "results.json", vqa_results())
    command = ["score", str(file), "--task", "vqa", "--workspace", str(place.root), "--json"]
    assert main(command) == 0
    document = json.loads(capsys.readouterr().out)
    golden = document["by_kind"]["accuracy"]["what is the"]
    assert golden == {"score": 100.0, "n": len(GOLDEN)}
    n = len(VQA_ANSWERS)
    # ten equal answers are compared as they are ("Yes" is not "yes"); "two dogs" and "2 dogs" are one; 6 net, 1 mesh
    assert document["metrics"]["accuracy"] == {"score": round(100 * (len(GOLDEN) + 0 + 1 + 1 + 0.3) / n, 2), "n": n}
    assert document["metrics"]["accuracy (yes/no)"] == {"score": 0.0, "n": 1}
    assert document["metrics"]["accuracy (number)"] == {"score": 100.0, "n": 1}
    assert document["by_kind"]["accuracy"]["what"] == {"score": 65.0, "n": 2}
    assert document["vqa_rule"] == "current"


def test_the_rule_before_2021_normalises_predictions_always_and_answers_less(place, tmp_path):
    found = score_file(place, write(tmp_path / "r.json", vqa_results()), "vqa-v2", vqa_rule="pre2021")
    assert found.vqa_rule == "pre2021"
    assert found.metrics["accuracy (yes/no)"].score == 100.0  # "Yes" -> "yes", as the ten say
    assert found.metrics["accuracy (number)"].score == 0.0  # "2 dogs", but the ten keep their "two dogs"


def test_unnormalised_answers_would_be_wrong(place, tmp_path):
    """The control: an answer that normalises to something else scores nothing."""
    answers = [answer + " x" for answer in VQA_ANSWERS]
    found = score_file(place, write(tmp_path / "r.json", vqa_results(answers)), "vqa")
    assert found.metrics["accuracy"].score == 0.0


def test_people_see_the_rule_and_the_types(place, tmp_path, capsys):
    file = write(tmp_path / "results.json", vqa_results())
    assert main(["score", str(file), "--task", "vqa", "--workspace", str(place.root), "--vqa-rule", "pre2021"]) == 0
    out = capsys.readouterr().out
    assert "VQA rule pre2021" in out
    assert "accuracy (yes/no)" in out
    assert "accuracy: how many" in out
    assert max(map(len, out.splitlines())) <= 80


# -- SNLI-VE ----------------------------------------------------------------------------------------------------------


def pair_lines(answers, key="pairID", value="label") -> str:
    return "".join(
        json.dumps({key: f"{number % 2}.jpg#{number}", value: answer}) + "\n" for number, answer in enumerate(answers)
    )


SAID = ("entailment", "neutral", "neutral", "entailment", "entailment", "contradiction")


@pytest.mark.parametrize(("key", "value"), [("pairID", "label"), ("id", "prediction")])
def test_entailment_overall_and_per_label(place, tmp_path, key, value):
    file = write(tmp_path / "p.jsonl", pair_lines(SAID, key, value))
    found = {name: round(score, 2) for name, score in scores_of(score_file(place, file, "snli-ve")).items()}
    assert found == {
        "accuracy": 50.0,
        "accuracy (entailment)": 66.67,
        "accuracy (neutral)": 50.0,
        "accuracy (contradiction)": 0.0,
    }


def test_a_prediction_counts_before_a_label_that_stands_beside_it(place, tmp_path):
    lines = [{**json.loads(line), "prediction": "neutral"} for line in pair_lines(LABELS).splitlines()]
    file = write(tmp_path / "p.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    assert scores_of(score_file(place, file, "snli-ve"))["accuracy"] == pytest.approx(100 / 3)


def test_a_csv_of_predictions(place, tmp_path):
    rows = [f"{number % 2}.jpg#{number},{answer}" for number, answer in enumerate(SAID)]
    file = write(tmp_path / "p.csv", "\n".join(["id,prediction", *rows]) + "\n")
    assert scores_of(score_file(place, file, "snli-ve"))["accuracy"] == 50.0


# -- bad files --------------------------------------------------------------------------------------------------------


FOUR = "annot_id,answer_0,answer_1,answer_2,answer_3"


@pytest.mark.parametrize(
    ("task", "text", "words"),
    [
        ("vqa", "", "is empty"),
        (
            "vqa",
            '[{"question_id": 1000, "answer": "a"}, {"question_id": 1000, "answer": "b"}]',
            "entry 2: 1000 is answered twice, first in entry 1",
        ),
        ("vqa", '[{"question_id": 1000, "answer": 2}]', "entry 1: 'answer' must be the answer as a string"),
        ("vqa", '[{"answer": "2"}]', "entry 1: there is no id"),
        ("vqa", '[{"question_id": 1000}]', "entry 1: nothing is answered for 1000"),
        ("vqa", '[{"question_id": 1000, "answer": "a"', "truncated"),
        ("vqa", '[{"question_id": 7, "answer": "a"}]', r"40 missing \(1000, .*1 not of this split \(7\)"),
        ("vqa", "[]", "40 missing"),
        (
            "snli-ve",
            '{"pairID": "0.jpg#0", "label": 1}\n',
            "line 1: 'label' must be one of contradiction, entailment, neutral, found 1",
        ),
        ("snli-ve", '{"id": "0.jpg#0", "label": "neutral"}\n{"id"', "line 2: the last line is not complete JSON"),
        ("snli-ve", "x,y\n1,2\n", "line 1: neither JSON nor a CSV with an id"),
        ("snli-ve", "id,prediction\n0.jpg#0,neutral,1\n", "line 2: 3 values for 2 columns"),
        ("vcr", '{"id": "val-0/answer", "prediction": 7}\n', "val-0/answer has 4 choices, and the answer is 7"),
        ("vcr", '{"id": "val-0/answer", "prediction": 1.5}\n', "must be the number of a choice"),
        ("vcr", "annot_id,answer_0,answer_1\nval-0,1,2\n", "line 1: 2 of VCR's 4 score columns are missing: answer_2"),
        ("vcr", f"{FOUR}\nval-0,1,2,x,3\n", "line 2: 'answer_2' must be a number, found 'x'"),
        ("vcr", f"{FOUR}\nval-0,1,2,nan,3\n", "line 2: 'answer_2' is nan"),
        ("vcr", f"{FOUR}\nval-0,1,2,3,4\nval-0,1,2,3,4\n", "line 3: val-0 is answered twice, first on line 2"),
    ],
)
def test_bad_files_are_one_sentence_with_the_place(place, tmp_path, task, text, words):
    file = write(tmp_path / "bad.txt", text)
    with pytest.raises(MadkitError, match=words) as caught:
        score_file(place, file, task, subset="choices," in words)
    assert str(file) in caught.value.message
    assert caught.value.hint
    assert "\n" not in caught.value.message


def test_files_tasks_and_splits_that_are_not_there(place, tmp_path, capsys):
    where = ["--workspace", str(place.root)]
    file = write(tmp_path / "r.json", vqa_results())
    assert main(["score", str(tmp_path / "none.json"), "--task", "vqa", *where]) == 1
    assert "does not exist" in capsys.readouterr().err
    assert main(["score", str(file), "--task", "vqaa", *where]) == 2
    assert "Did you mean" in capsys.readouterr().err
    assert main(["score", str(file), "--task", "vqa", "--split", "tset", *where]) == 2
    assert "Did you mean 'test'" in capsys.readouterr().err
    assert main(["score", str(file), "--task", "vqa", "--vqa-rule", "2020", *where]) == 2


# -- tasks of ones own -----------------------------------------------------------------------------------------------


def test_a_task_of_ones_own_with_few_and_many_annotators(place, tmp_path):
    """Where some questions have soft scores alone, all are scored as evaluate scores them."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.jpg").write_bytes(b"not looked into")
    given = {"a": ["red"] * 10, "b": ["red"] * 3 + ["blue"] * 7, "c": ["red"], "d": {"red": 0.25, "blue": 1.0}}
    rows = [
        {
            "id": name,
            "split": "test",
            "image": "1.jpg",
            "question": "What?",
            "answers": answers,
            "form": "many" if name < "c" else "few",
        }
        for name, answers in given.items()
    ]
    path = write(tmp_path / "colours.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    import_data(place, "custom", path, ImportOptions(kind="vqa", images=tmp_path / "images"))
    file = write(tmp_path / "r.json", [{"question_id": name, "answer": "red"} for name in given])
    found = score_file(place, file, "colours")
    assert scores_of(found)["accuracy"] == pytest.approx(100 * (1 + 0.9 + 1 + 0.25) / 4)
    assert found.by_kind["accuracy"]["few"].score == pytest.approx(62.5)
    with pytest.raises(MadkitError, match="2 of 4 examples have soft scores"):
        score_file(place, file, "colours", vqa_rule="pre2021")
