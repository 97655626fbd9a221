"""What the embedded benchmark consists of: tasks, splits, suites and their sizes."""

from __future__ import annotations

from dataclasses import dataclass

from .concepts import concepts, unseen_in_pretraining

SOURCES = {"vcr": "mini-vcr", "snli-ve": "mini-snli-ve", "vqa": "mini-vqa"}
# A change of anything that changes a pixel, a word or a label must change this number: it is part of the data revision.
DESIGN = 1
QUESTIONS_PER_CHUNK = 500


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """One drawn split: how many questions, about which concepts, with which answer priors.

    `also_shifted`: its scenes are rendered a second time in the shifted style. `code` keeps image numbers of different
    splits apart.
    """

    name: str
    code: int
    questions: int
    unseen_only: bool = False
    steep_answers: bool = False
    also_shifted: bool = False

    @property
    def pool(self) -> tuple[int, ...]:
        """Concepts that questions of this split speak about."""
        return unseen_in_pretraining() if self.unseen_only else tuple(c.index for c in concepts())


_TRAIN = {"full": 20_000, "demo": 8_000, "tiny": 240}
_DEV = {"full": 2_000, "demo": 500, "tiny": 60}
_TEST = {"full": 2_000, "demo": 1_000, "tiny": 60}
PARTS = tuple(_TRAIN)


def splits_of(task: str, part: str) -> tuple[SplitPlan, ...]:
    """The drawn splits of a task. Rewordings, other renderings and shortcut rules are derived from `test`."""
    test = _TEST[part]
    plans = [
        SplitPlan("train", 1, _TRAIN[part]),
        SplitPlan("dev", 2, _DEV[part]),
        SplitPlan("test", 3, test, also_shifted=True),
        SplitPlan("test-concepts", 4, test, unseen_only=True),
    ]
    if task == "vqa":
        plans.append(SplitPlan("test-priors", 5, test, steep_answers=True))
    return tuple(plans)
