"""Which cache is read where teachers were adapted: compared by the examples that they learnt from, never by names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from madkit.adapt.config import AdaptConfig
from madkit.adapt.config import resolve as resolve_adaptation
from madkit.adapt.folder import AdaptFolder, AdaptIdentity
from madkit.cache import choose_cache
from madkit.core.errors import CacheError, NotFoundError, UsageProblem
from madkit.core.files import digest_of, read_json
from madkit.core.workspace import Workspace
from madkit.distill.settings.arms import load_arm
from madkit.distill.stage import distill
from madkit.distill.teacher.adaptation import TeacherPick, pick_teacher
from madkit.tasks.data import open_task
from madkit.tasks.id_lists import labelled_examples

torch.set_num_threads(1)
OWN = str(Path(__file__).parents[1] / "own.yaml")
TASK, SHOTS, SEED = "snli-ve", "40", 1
BASE = {"vision": "weights of the eyes", "text": "weights of the reader"}
QUICK = {"optim.steps": 2, "optim.batch_size": 4, "eval.limit": 4, "confidence.folds": 2}


class Place:
    """A workspace with a teacher's cache, and whatever adaptations of it a test makes."""

    def __init__(self, workspace: Workspace, make_cache: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        workspace.cache.unlink()  # the shared ones stay as they are
        workspace.cache.mkdir()
        self.workspace, self.make_cache, self.monkeypatch = workspace, make_cache, monkeypatch
        self.data = open_task(workspace, TASK, part="tiny")

    def base(self) -> str:
        """The cache of the teacher as it was published."""
        sides = {side: {"weights": weights} for side, weights in BASE.items()}
        return self.make_cache(self.workspace, self.data, teacher="mini", **sides).name

    def adaptation(self, name: str, *, shots: str = SHOTS, seed: int = SEED, **facts: Any) -> dict[str, str]:
        """The run of `madkit adapt`, as it is written down; returns the mark that its caches carry."""
        examples = labelled_examples(self.data, shots, seed)
        identity = AdaptIdentity(
            "mini", BASE, TASK, self.data.source, self.data.revision, True, shots, seed,
            digest_of([example.id for example in examples]),
        )  # fmt: skip
        config = resolve_adaptation(AdaptConfig(), len(examples))
        folder = AdaptFolder(self.workspace, identity, config, name)
        mark = {"name": name, "digest": digest_of([name, shots, seed])[:16]}
        written = {"adapter": {"sha256": mark["digest"] + "0" * 48}, "items": len(examples)}
        folder.finish({**written, "examples_used": len(examples), **facts})
        return mark

    def adapted(self, name: str = "mine", **options: Any) -> str:
        """The cache of an adapted teacher, whose vectors are other ones."""
        mark = self.adaptation(name, **options)
        sides = {
            side: {"weights": digest_of([weights, mark["digest"]]), "adapter": mark} for side, weights in BASE.items()
        }
        noise = self.make_cache.__globals__["noise"]
        with self.monkeypatch.context() as patch:
            patch.setitem(self.make_cache.__globals__, "noise", lambda *parts, shape: noise(name, *parts, shape=shape))
            return self.make_cache(self.workspace, self.data, teacher="mini", **sides).name

    def pick(self, adaptation: Any, teacher: str | None = None, *, shots: str = SHOTS, seed: int = SEED) -> TeacherPick:
        labelled = labelled_examples(self.data, shots, seed)
        return pick_teacher(self.workspace, self.data, teacher, adaptation, labelled, shots=shots, seed=seed)

    def run(self, student: Path, arm: str, teacher: str | None = None, **settings: Any) -> Any:
        values = {**QUICK, **{key.replace("__", "."): value for key, value in settings.items()}}
        return distill(
            self.workspace, task=TASK, shots=SHOTS, seed=SEED, arm=arm, student=student, teacher=teacher,
            config_overrides=values,
        )  # fmt: skip


@pytest.fixture
def place(workspace: Workspace, make_cache: Any, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(workspace, make_cache, monkeypatch)


def test_without_any_adaptation_the_choice_is_as_before(place: Place) -> None:
    place.base()
    for adaptation in ("named", "never"):
        assert place.pick(adaptation) == TeacherPick(None)
        assert place.pick(adaptation, "mini") == TeacherPick("mini")
    for teacher in (None, "mini"):
        pick = place.pick("if-there", teacher)
        assert (pick.store, pick.adapted, pick.unadapted, pick.fair) == (teacher, None, None, True)
        assert "madkit adapt --teacher mini --task snli-ve --shots 40 --seed 1" in pick.said
        assert "\n" not in pick.said
    with pytest.raises(NotFoundError, match="requires one") as caught:
        place.pick("required")
    assert caught.value.hint == "madkit adapt --teacher mini --task snli-ve --shots 40 --seed 1"


def test_a_teacher_adapted_on_this_very_subset(place: Place) -> None:
    base, adapted = place.base(), place.adapted()
    for adaptation in ("if-there", "required"):
        for teacher in (None, "mini"):
            pick = place.pick(adaptation, teacher)
            assert (pick.store, pick.unadapted, pick.fair) == (adapted, base, True)
            assert pick.adapted is not None
            assert (pick.adapted.name, pick.adapted.base, pick.adapted.train) == ("mine", "mini", "lora")
            assert pick.adapted.same_examples
            assert "exactly this run's labelled examples" in pick.said
    for adaptation in ("named", "never"):
        assert place.pick(adaptation).store == base
        assert place.pick(adaptation, "mini").store == "mini"  # an adapted one does not answer to that name
    for name in ("mine", adapted, adapted.rpartition("-")[2]):
        assert place.pick("named", name).store == adapted
        with pytest.raises(UsageProblem, match="takes no adapted teacher") as caught:
            place.pick("never", name)
        assert caught.value.hint is not None
        assert "--teacher mini" in caught.value.hint
    assert place.pick("if-there", base).store == base
    with pytest.raises(UsageProblem, match="requires an adapted teacher"):
        place.pick("required", base)


def test_one_that_saw_other_labels_is_never_chosen_and_says_so_where_it_is_named(place: Place) -> None:
    base, adapted = place.base(), place.adapted("other", seed=2)
    mine = {example.id for example in labelled_examples(place.data, SHOTS, 1)}
    theirs = {example.id for example in labelled_examples(place.data, SHOTS, 2)}
    pick = place.pick("if-there")
    assert (pick.store, pick.adapted) == (base, None)
    assert "(1 on others)" in pick.said
    named = place.pick("if-there", "other")
    assert named.store == adapted
    assert not named.fair
    assert named.adapted is not None
    assert (named.adapted.same_examples, named.adapted.outside) == (False, len(theirs - mine))
    assert named.adapted.outside
    assert "not comparable" in named.said


def test_where_only_one_that_saw_other_labels_is_there_nothing_is_chosen(place: Place) -> None:
    place.adapted("other", seed=2)
    for adaptation in ("named", "if-there", "never"):
        with pytest.raises(CacheError, match="caches of adapted teachers only") as caught:
            place.pick(adaptation)
        assert caught.value.hint is not None
        assert "madkit extract --teacher mini --task snli-ve" in caught.value.hint


def test_a_part_of_the_labels_is_fair_but_not_this_subset(place: Place) -> None:
    place.base()
    labels = {example.id for example in labelled_examples(place.data, SHOTS, SEED)}
    part = {example.id for example in labelled_examples(place.data, "12", SEED)}
    assert part < labels
    place.adapted("few", shots="12")
    assert place.pick("if-there").adapted is None
    named = place.pick("if-there", "few")
    assert named.fair
    assert named.adapted is not None
    assert (named.adapted.same_examples, named.adapted.outside) == (False, 0)


def test_a_name_proves_nothing(place: Place) -> None:
    """The adaptation was made again under its old name, or its folder is gone: nobody can say what it saw."""
    place.base()
    place.adapted()
    manifest = place.workspace.adapters / "mine" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(read_json(manifest)["adapter"]["sha256"][:16], "f" * 16))
    assert place.pick("if-there").adapted is None
    named = place.pick("if-there", "mine")
    assert not named.fair
    assert named.adapted is not None
    assert named.adapted.outside is None
    manifest.unlink()
    assert place.pick("if-there", "mine").adapted == named.adapted


def test_an_adaptation_is_not_named_like_a_teacher_and_an_older_one_that_is_leaves_the_name_to_the_teacher(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mini", "clip-vit-b32"):
        with pytest.raises(UsageProblem, match=f"'{name}' is the name of a teacher") as caught:
            place.adaptation(name)
        assert caught.value.hint is not None
        assert "--name mini-mini-snli-ve" in caught.value.hint
    assert place.adaptation("mini-2")["name"] == "mini-2"
    base = place.base()
    with monkeypatch.context() as patch:
        patch.setattr("madkit.adapt.folder.KNOWN", {})  # as it was once
        patch.setattr("madkit.teachers.known.TeacherName.slug", "another")
        place.adaptation("mini", seed=2, untouched=True)
        assert place.pick("named", "mini") == TeacherPick("mini")  # it kept its base, and is not spoken of
        adapted = place.adapted("mini", seed=2)
    for adaptation in ("named", "never", "if-there"):
        pick = place.pick(adaptation, "mini")
        assert (pick.store, pick.adapted) == ("mini", None)
    assert choose_cache(place.workspace, place.data, "mini").path.name == base
    assert place.pick("named", adapted).adapted is not None


def test_only_an_older_adaptation_named_like_a_teacher_is_there(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("madkit.adapt.folder.KNOWN", {})  # as it was once
        adapted = place.adapted("clip-vit-b16", seed=2)
    with pytest.raises(NotFoundError, match=f"no token cache of 'clip-vit-b16' for mini-snli-ve, only of {adapted}"):
        choose_cache(place.workspace, place.data, "clip-vit-b16")
    with pytest.raises(CacheError, match="adapted teachers only") as caught:
        place.pick("never")
    assert f"or name the adapted one: --teacher {adapted}" in str(caught.value.hint)
    assert place.pick("named", adapted).adapted is not None


def test_adaptations_that_are_not_in_any_cache(place: Place) -> None:
    place.base()
    place.adaptation("unread")
    said = place.pick("if-there").said
    assert "madkit extract --adapter unread --task snli-ve" in said
    with pytest.raises(NotFoundError, match="has read nothing") as caught:
        place.pick("required")
    assert caught.value.hint == "madkit extract --adapter unread --task snli-ve"
    with pytest.raises(NotFoundError, match="has read nothing") as caught:
        place.pick("named", "unread")
    assert caught.value.hint == "madkit extract --adapter unread --task snli-ve"


def test_an_adaptation_that_kept_its_base_is_the_base(place: Place) -> None:
    place.base()
    place.adaptation("kept", untouched=True)
    for adaptation in ("if-there", "required"):
        pick = place.pick(adaptation)
        assert (pick.store, pick.adapted) == (None, None)
        assert "kept mini as it was" in pick.said
        assert pick.kept is not None
        assert (pick.kept.name, pick.kept.base, pick.kept.same_examples, pick.kept.outside) == ("kept", "mini", True, 0)
        assert "kept as it was by its adaptation" in pick.kept.line
    assert place.pick("never").kept is None
    other = place.adaptation("other", seed=SEED + 1)
    assert other
    assert place.pick("if-there", seed=SEED + 1).kept is None  # that one got better, and its cache is not there
    for adaptation in ("named", "if-there", "never"):
        pick = place.pick(adaptation, "kept")
        assert (pick.store, pick.adapted) == ("mini", None)
        assert "kept mini as it was" in pick.said


def test_two_on_the_same_examples_have_to_be_told_apart(place: Place) -> None:
    place.base()
    first = place.adapted("one")
    place.adaptation("two")
    assert place.pick("if-there").store == first
    mark = {"name": "two", "digest": "2" * 16}
    manifest = place.workspace.adapters / "two" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(read_json(manifest)["adapter"]["sha256"][:16], mark["digest"]))
    sides = {side: {"weights": digest_of([weights, mark["digest"]]), "adapter": mark} for side, weights in BASE.items()}
    place.make_cache(place.workspace, place.data, teacher="mini", **sides)
    with pytest.raises(CacheError, match="Several teachers were adapted"):
        place.pick("if-there")
    assert place.pick("if-there", "one").store == first


def test_adaptations_of_a_studys_seeds_are_of_one_kind(place: Place) -> None:
    place.base()
    kinds = set()
    for seed in (1, 2):
        place.adapted(f"seed-{seed}", seed=seed)
        pick = place.pick("if-there", seed=seed)
        assert pick.adapted is not None
        kinds.add(pick.adapted.kind)
    assert len(kinds) == 1
    place.adapted("more", shots="60")
    other = place.pick("if-there", shots="60").adapted
    assert other is not None
    assert other.kind not in kinds


def test_how_the_cache_was_chosen_changes_no_run(place: Place, student: Path) -> None:
    """Without an adaptation `mad` and `mad-no-adaptation` are the same run but for their names."""
    place.base()
    mad, never = place.run(student, "mad"), place.run(student, "mad-no-adaptation")

    def losses(done: Any) -> list[str]:
        lines = (done.path / "metrics.jsonl").read_text().splitlines()
        return [line for line in lines if '"loss"' in line]

    assert losses(mad) == losses(never)
    assert losses(mad)
    named = place.run(student, "mad", adaptation="named")
    assert named.skipped
    assert named.path == mad.path


def test_a_run_with_an_adapted_teacher(place: Place, student: Path) -> None:
    """It is taught by the adapted one, asks the untouched one how sure it is, and says so."""
    base, adapted = place.base(), place.adapted()
    plain, mad = place.run(student, "mad-no-adaptation"), place.run(student, "mad")
    assert (plain.manifest["teacher"], plain.manifest["cache_key"]) == ("mini", base)
    assert plain.manifest["confidence_cache"] is None
    assert (mad.manifest["teacher"], mad.manifest["cache_key"]) == ("mine", adapted)
    assert mad.manifest["confidence_cache"] == base
    assert mad.manifest["adapted"]["same_examples"]
    assert "mini, adapted on exactly this run's labelled examples" in (mad.path / "summary.md").read_text()

    def sure(done: Any) -> Any:
        return read_json(done.path / "confidence.json")["confidence"]

    assert sure(mad) == sure(plain)
    same = place.run(student, "mad", confidence__teacher="same")
    assert sure(same) != sure(plain)
    assert same.path != mad.path


def test_the_confidence_of_who_knows_the_labels_is_not_taken(place: Place, student: Path) -> None:
    place.adapted()
    with pytest.raises(CacheError, match="its own confidence in labelled examples says nothing") as caught:
        place.run(student, "mad")
    assert caught.value.hint is not None
    assert "madkit extract --teacher mini --task snli-ve" in caught.value.hint
    assert place.run(student, "mad-no-confidence").manifest["confidence_cache"] is None


def test_soft_labels_come_from_who_has_not_seen_the_labels(place: Place, student: Path) -> None:
    """Nothing but the probe reads the teacher here, so the run is that of the untouched one to the bit."""
    base, adapted = place.base(), place.adapted()
    plain, taught = place.run(student, "soft-labels", "mini"), place.run(student, "soft-labels", "mine")
    assert (taught.manifest["cache_key"], taught.manifest["confidence_cache"]) == (adapted, base)
    assert plain.manifest["confidence_cache"] is None

    def learnt(done: Any) -> tuple[str, Any]:
        return (done.path / "metrics.jsonl").read_text(), done.manifest["pool"]["probe"]

    assert learnt(taught) == learnt(plain)
    same = place.run(student, "soft-labels", "mine", confidence__teacher="same")
    assert learnt(same) != learnt(plain)
    beside = place.run(student, "mad-no-confidence", pool__soft_labels__weight=1, pool__batch_size=4)
    assert (beside.manifest["teacher"], beside.manifest["confidence_cache"]) == ("mine", base)


def test_soft_labels_of_who_knows_the_labels_are_not_taken(place: Place, student: Path) -> None:
    place.adapted()
    with pytest.raises(CacheError, match="is what it learnt by heart, and a cache of mini as it was") as caught:
        place.run(student, "soft-labels", "mine")
    assert caught.value.hint == "madkit extract --teacher mini --task snli-ve; or --set confidence.teacher=same"
    assert place.run(student, "soft-labels", "mine", confidence__teacher="same").manifest["confidence_cache"] is None


@pytest.mark.parametrize(
    ("arm", "settings", "asked"),
    [
        ("mad", {}, (True, True)),
        ("kd-all", {}, (False, False)),
        ("mad", {"mad.weighting": "uniform"}, (False, False)),
        ("kd-all", {"teachers": {"mini": {"mad": {"weighting": "teacher-only"}}}}, (True, True)),
        ("soft-labels", {}, (True, False)),  # soft labels are for questions without a label
        ("affinity", {"pre_phase.soft_labels.weight": 1}, (True, False)),
        (OWN, {"pool.objective.weighting": "uniform"}, (False, False)),
        (OWN, {"pool.objective.weighting": "teacher-only"}, (True, True)),
        ("kd-all", {"pool.rationale_answer": "probe"}, (True, True)),
    ],
)
def test_who_asks_a_teacher_what_it_makes_of_labelled_examples(
    arm: str, settings: dict[str, Any], asked: tuple[bool, bool]
) -> None:
    config = load_arm(arm, settings)
    assert tuple(config.weighs or config.probes_pool(unlabelled=some) for some in (True, False)) == asked


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        ({}, True),  # the pool shares the criterion, in which one teacher weighs
        ({"teachers.mini.weight": 0}, False),
        ({"pool.objective.weighting": "uniform"}, False),
        ({"pool.weight": 0, "pool.soft_labels.weight": 1}, True),
    ],
)
def test_a_pool_is_asked_about_for_a_teacher_that_weighs(settings: dict[str, Any], asked: bool) -> None:
    mine = {"teachers.mini.mad.weighting": "teacher-student", "teachers.other.weight": 1, "pool.batch_size": 8}
    config = load_arm("kd-all", mine | settings)
    assert config.probes_pool(unlabelled=True) == asked


def test_the_adaptation_is_no_part_of_a_runs_digest() -> None:
    from madkit.distill.runs.folder import RunIdentity

    identity = RunIdentity("vcr", "mini-vcr", "r", True, "s", "d", "mad", "1pct", 0, "mini", "mini-0", "e")
    config = load_arm("mad")
    plain = config.model_copy(update={"adaptation": "named"})
    assert identity.digest(config) == identity.digest(plain)
    assert replace(identity, confidence_cache="mini-1").digest(config) != identity.digest(config)
