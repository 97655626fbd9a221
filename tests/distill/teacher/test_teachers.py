"""Who the teachers of a run are, what each may be told, what each can teach, and their sides of a set."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from madkit.cache import TokenCache
from madkit.core.errors import ConfigError, UsageProblem
from madkit.distill.batches.answers import head_for
from madkit.distill.batches.examples import ExampleSet
from madkit.distill.settings.arms import load_arm
from madkit.distill.settings.teacher_settings import TeacherSettings
from madkit.distill.teacher.side import TeacherSide
from madkit.distill.teacher.sides import TeacherSides, probe_features_of, side_of
from madkit.distill.teacher.teachers import Teacher, Teachers, name_apart, wanted_teachers
from madkit.mad.config import MADConfig
from madkit.mad.probe import probe_features
from madkit.students.load import load_student
from madkit.tasks.data import open_task

HALF = TeacherSettings(weight=0.5)
INDICES = np.asarray([5, 0, 17, 3])


# -- the configuration ------------------------------------------------------------------------------------------------


def test_a_weight_alone_or_with_settings_that_differ():
    given = {"clip": 1, "dino": {"weight": "5e-1", "mad": {"text_weight": 0, "layer": [1, -1]}}, "roberta": None}
    teachers = load_arm("mad", {"teachers": given}).teachers
    assert teachers["clip"].plain
    assert teachers["roberta"].plain
    assert (teachers["dino"].weight, teachers["dino"].mad) == (0.5, {"text_weight": 0.0, "layer": [1, -1]})
    applied = teachers["dino"].applied(MADConfig(k_text=7))
    assert (applied.text_weight, applied.layer, applied.k_text) == (0.0, (1, -1), 7)
    dotted = load_arm("mad", {"teachers.dino.mad.text_weight": 0, "teachers.dino.weight": 0.5}).teachers
    assert dotted == {"dino": TeacherSettings(weight=0.5, mad={"text_weight": 0})}


def test_a_dumped_configuration_reads_back():
    config = load_arm("mad", {"teachers": {"a": 2, "b": {"mad": {"fraction": 0.5, "layer": [0, -1]}}}})
    assert type(config).model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("arm", "given", "message"),
    [
        ("mad", {"teachers.a.mad.text_wieght": 0}, "text_wieght: unknown key. Did you mean 'text_weight'"),
        ("mad", {"teachers.a.wieght": 0}, "Did you mean 'weight'"),
        ("mad", {"teachers.a.mad": {"k_text": -1, "k_region": "x"}}, r"k_text: .* \(given: -1\); k_region: "),
        ("mad", {"teachers": {"a": 0, "b": 0}}, "all weights are 0"),
        ("mad", {"teachers": {"a": -1}}, "greater than or equal to 0"),
        ("mad", {"teachers": {"a": True}}, "teachers.a"),
        ("mad", {"teachers.a.mad.weight": 0}, "teachers.a.mad: .*nothing would be distilled"),
        ("finetune", {"teachers.a.mad.weight": 1}, "no mad in this configuration"),
    ],
)
def test_settings_that_cannot_be_meant(arm, given, message):
    with pytest.raises(ConfigError, match=message):
        load_arm(arm, given)


# -- names ------------------------------------------------------------------------------------------------------------


def test_names_come_from_the_command_line_or_from_the_configuration():
    def canonical(name):
        return {"long-name": "short"}.get(name, name)

    known = {"short": HALF, "other": TeacherSettings()}
    assert wanted_teachers([], {}, canonical) == {}
    assert wanted_teachers([], known, canonical) == known
    assert wanted_teachers(["other", "long-name"], {"short": HALF}, canonical) == {
        "other": TeacherSettings(),
        "short": HALF,
    }
    assert wanted_teachers([], {"a": TeacherSettings(weight=0), "long-name": HALF}, canonical) == {"short": HALF}
    with pytest.raises(UsageProblem, match="short was given twice"):
        wanted_teachers(["short", "long-name"], {}, canonical)
    with pytest.raises(UsageProblem, match="two entries for the teacher short"):
        wanted_teachers([], {"short": HALF, "long-name": HALF}, canonical)
    with pytest.raises(UsageProblem, match=r"settings for the teacher shrot, .* Did you mean 'short'"):
        wanted_teachers(["short"], {"shrot": HALF}, canonical)
    with pytest.raises(ConfigError, match="nobody would teach"):
        wanted_teachers(["a"], {"a": TeacherSettings(weight=0)}, canonical)


# -- caches -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def caches(benchmark, make_cache, tmp_path_factory):
    """Stores of one teacher with both sides in one space, one of images, one of texts, and of these two joined."""
    from madkit.core.workspace import Workspace

    workspace = Workspace.at(tmp_path_factory.mktemp("several"))
    (workspace.root / "data").symlink_to(benchmark[0].data)
    data = open_task(workspace, "vcr", part="tiny")
    apart = {"shared_space": False, "logit_scale": 1.0}
    written = {
        "pair": make_cache(workspace, data, teacher="pair"),
        "eye": make_cache(workspace, data, teacher="eye", parts=("images",), dim=24, **apart),
        "ear": make_cache(workspace, data, teacher="ear", parts=("texts",), dim=20, **apart),
    }
    return workspace, data, {name: TokenCache.open(path) for name, path in written.items()}


@pytest.fixture(scope="module")
def examples(caches, benchmark):
    _, data, _ = caches
    model = load_student(benchmark[1], head=head_for(data.spec, data.examples("train")))
    return model, ExampleSet(data.examples("train")[:24], model, data.regions())


def teachers_of(found, **settings):
    return Teachers(Teacher(name, cache, settings.get(name, TeacherSettings())) for name, cache in found.items())


def test_what_each_can_teach(caches):
    several = teachers_of(caches[2])
    assert several.label == "ear, eye, pair"
    mad = MADConfig(affinity_weight=0.5, relevance="shared")
    shares = several.shares(mad, own=True)
    assert shares["pair"] == mad
    assert set(shares["eye"].term_weights) == {"global_image", "token_region", "token_tag"}
    assert set(shares["ear"].term_weights) == {"global_text", "token_text"}
    affinity = MADConfig(weight=0, affinity_weight=1)
    assert list(several.shares(affinity, own=False)) == ["pair"]
    said = several.told({"mad": mad, "pre_phase": affinity})
    assert [line.partition(" ")[0] for line in said] == ["ear", "ear", "eye", "eye"]
    assert "it reads texts alone" in said[0]
    assert "affinity" in said[0]
    assert "relevance inside each modality" in said[1]
    assert several.told({"mad": MADConfig(tokens="global")}) == [
        "ear teaches no global_image: it reads texts alone.",
        "eye teaches no global_text: it reads images alone.",
    ]
    with pytest.raises(ConfigError, match=r"teacher ear would teach nothing here: it reads texts alone") as found:
        several.told({"pre_phase": affinity})
    assert found.value.hint


def test_settings_of_one_teacher_that_it_cannot_follow(caches):
    for mad in ({"relevance": "shared"}, {"affinity_weight": 1.0}):
        with pytest.raises(ConfigError, match="do not share a space"):
            teachers_of(caches[2], eye=TeacherSettings(mad=mad)).shares(MADConfig(), own=True)
    own = teachers_of(caches[2], pair=TeacherSettings(mad={"text_weight": 0}))
    assert "token_text" not in own.shares(MADConfig(), own=True)["pair"].term_weights
    assert "token_text" in own.shares(MADConfig(), own=False)["pair"].term_weights


def test_one_cache_under_two_names(caches):
    pair, eye = caches[2]["pair"], caches[2]["eye"]
    assert name_apart([pair, eye]) == ["pair", "eye"]
    with pytest.raises(UsageProblem, match="pair was given twice: both names mean the cache pair-mini-vcr"):
        name_apart([pair, eye, pair])


# -- their sides of a set ---------------------------------------------------------------------------------------------


def test_each_reads_what_its_terms_need(caches, examples):
    several = teachers_of(caches[2], pair=TeacherSettings(mad={"text_weight": 0}))
    sides = TeacherSides(examples[1], several, several.shares(MADConfig(), own=True))
    pair, eye, ear = (sides.members[name] for name in ("pair", "eye", "ear"))
    assert pair.texts.tokens is None
    assert ear.texts.tokens is not None
    assert eye.texts.globals.shape[1] == ear.images.globals.shape[1] == ear.images.regions.numel() == 0
    assert (eye.images.regions.shape[-1], ear.texts.globals.shape[1]) == (24, 20)
    assert sides.untaught == 0


@torch.no_grad()
def test_targets_and_criterion_of_all(caches, examples):
    model, held = examples
    several = teachers_of(caches[2], eye=HALF)
    shares = several.shares(MADConfig(weighting="uniform"), own=True)
    sides = TeacherSides(held, several, shares)
    inputs = held.inputs(INDICES)
    rows = held.teacher_rows(INDICES)
    targets = sides.targets(rows, INDICES, inputs)
    alone = TeacherSide(held, caches[2]["pair"], shares["pair"]).targets(rows, INDICES, inputs)
    assert torch.equal(targets["pair"].regions, alone.regions)
    assert torch.equal(targets["pair"].text_tokens, alone.text_tokens)
    criterion = sides.criterion(model, seed=3)
    assert dict(zip(criterion.names, criterion.weights, strict=True)) == {"ear": 1.0, "eye": 0.5, "pair": 1.0}
    out = model(inputs)
    said = criterion(
        out.hidden_states, out.text_length, targets, text_mask=inputs.text_mask, region_mask=out.region_mask,
        tag_regions=inputs.tag_regions, n_candidates=inputs.n_candidates, label=held.target[torch.from_numpy(INDICES)],
    )  # fmt: skip
    assert said.loss.isfinite()
    assert all(value > 0 for value in said.terms.values())
    assert {"pair/token_text", "eye/token_region", "ear/token_text", "ear/global_text"} <= set(said.terms)
    assert not {"eye/token_text", "eye/global_text", "ear/token_region", "ear/global_image"} & set(said.terms)
    # heads begin as they would without the others
    lonely = TeacherSides(held, Teachers([Teacher("pair", caches[2]["pair"])]), shares).criterion(model, seed=3)
    for name, value in lonely.criterion("pair").state_dict().items():
        assert torch.equal(value, criterion.criterion("pair").state_dict()[name])


def test_the_probe_reads_all_of_them(caches, examples):
    _, held = examples
    opened, everything = caches[2], np.arange(len(held))
    rows, C = held.teacher_rows(everything), held.n_candidates

    def features(*names):
        several = teachers_of({name: opened[name] for name in names})
        return probe_features_of(side_of(held, several, MADConfig()), rows, C)

    side = TeacherSide(held, opened["pair"], MADConfig())
    image, text = side.images.globals[rows.images], side.text_globals(rows.texts).view(len(held), C, -1)
    pair = probe_features(image, text)
    assert torch.equal(features("pair"), pair)
    both = features("eye", "ear")
    assert both.shape == (len(held), C, 24 + 20 + 2 * 20)  # one pair, as in one cache
    assert torch.equal(features("pair", "eye", "ear"), torch.cat([pair, both], -1))
    assert features("pair", "eye").shape[-1] == pair.shape[-1] + 24
    assert features("pair", "ear").shape[-1] == pair.shape[-1] + 20
    assert features("pair", "eye").isfinite().all()
