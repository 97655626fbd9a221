from __future__ import annotations

from madkit.distill.runs.folder import RunIdentity
from madkit.distill.runs.summary import spark, summary_text
from madkit.distill.settings.config import DistillConfig

IDENTITY = RunIdentity(
    task="vcr", source="mini-vcr", data_revision="abc", is_mini=True, student="tiny", student_digest="0", arm="mad",
    shots="1pct", seed=3, teacher="mini", cache_key="mini-1", examples="1",
)  # fmt: skip
FACTS = {
    "steps": 40, "kept_step": 20, "resumed_from": 30, "stopped_early": True, "examples_labelled": 1400,
    "questions_labelled": 700, "seconds": 5.0, "device": "cpu", "processes": 2, "threads": 1, "pre_phase": None,
}  # fmt: skip
LOOKS = [{"step": step, "dev": {"Q->AR": score, "n": 50}} for step, score in ((10, 30.0), (20, 40.0), (40, 35.0))]
STEPS = [{"step": step, "loss": 2.0 / step, "terms": {"task": 1.0 / step, "text": 1.0 / step}} for step in range(1, 41)]


def test_a_summary_says_what_how_long_and_what_next():
    config = DistillConfig.model_validate({"optim": {"ema": 0.99, "learning_rate": 1e-3}})
    text = summary_text(IDENTITY, config, FACTS, LOOKS, STEPS, [("madkit evaluate", "every suite")])
    for line in (
        "# tiny, mad, 1pct, seed 3",
        "| labels | 1pct: 700 questions, 1,400 examples |",
        "| steps | 40 (weights of step 20, stopped early, went on from step 30) |",
        "| average of the weights | decay 0.99 |",
        "| time | 5.0 s on cpu, 2 steps/s with all beside them, 2 process(es), 1 thread(s) |",
        "|  | first 10 steps | last 10 steps |",
        "| loss | 0.5858 | 0.05671 |",
        "| text | 0.2929 | 0.02836 |",
        "`▁█▅` Q->AR  ",
        "| 20 * | 40.00 |",
        "madkit evaluate   # every suite",
    ):
        assert line in text.splitlines()
    assert "say nothing about the real one" in text


def test_a_summary_of_little_is_short():
    text = summary_text(IDENTITY, DistillConfig(), {**FACTS, "resumed_from": 0, "stopped_early": False}, LOOKS[2:])
    assert "## Losses" not in text
    assert "▁" not in text
    assert "## Next" not in text
    assert "| steps | 40 (weights of step 20) |" in text


def test_bars_from_low_to_high():
    assert spark([1.0, 8.0, 4.5]) == "▁█▅"
    assert spark([3.0, 3.0]) == "▁▁"
