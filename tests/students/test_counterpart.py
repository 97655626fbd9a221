"""Students of regions as their clip-vil counterparts: the same network and weights, but for what reads the features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from madkit.core.errors import UsageProblem
from madkit.core.files import read_json
from madkit.students.counterpart import clip_vil_family, counterpart, counterpart_folder, feature_tensors
from madkit.students.families import FAMILIES, family_of
from madkit.students.heads import HeadSpec
from madkit.students.interface import StudentInputs
from madkit.students.load import load_student, save_student
from madkit.students.start import new_student

torch.set_num_threads(1)
REGIONS = [name for name in FAMILIES.names() if family_of(name).visual == "regions"]


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A small student of the family that a test is given, with layers that do something."""
    name = f"mini-{request.getfixturevalue('name')}"
    made = new_student(name, init="random", region_dim=24).student
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in made.encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    save_student(made, tmp_path / name, with_head=False)
    return tmp_path / name


def inputs(dim: int) -> StudentInputs:
    generator = torch.Generator().manual_seed(3)
    boxes = torch.rand(2, 5, 2, generator=generator) * 0.5
    return StudentInputs(
        input_ids=torch.randint(10, 40, (2, 6), generator=generator),
        token_type_ids=torch.zeros(2, 6, dtype=torch.long),
        text_mask=torch.ones(2, 6, dtype=torch.bool),
        image_index=torch.arange(2),
        region_features=torch.randn(2, 5, dim, generator=generator),
        region_boxes=torch.cat([boxes, boxes + 0.4], -1),
        region_mask=torch.ones(2, 5, dtype=torch.bool),
        tag_regions=torch.full((2, 6), -1),
        n_candidates=1,
    )


@pytest.mark.parametrize("name", REGIONS)
def test_it_is_the_same_network_but_for_what_reads_the_features(name: str, folder: Path) -> None:
    made = counterpart(folder, 24).student
    assert made.family.visual == "teacher"
    own = load_student(folder, head=made.head_spec)
    theirs = own.encoder.state_dict()
    fresh = feature_tensors(own.family, own.encoder.config)
    assert 0 < len(fresh) <= 3
    for key, value in made.encoder.state_dict().items():
        assert torch.equal(value, theirs[key]) == (key not in fresh), key
    made.encoder.load_state_dict({key: theirs[key] for key in fresh}, strict=False)
    with torch.no_grad():
        expected, found = (one.encoder.eval()(inputs(24)).states for one in (own, made))
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", REGIONS)
def test_it_takes_the_teachers_width_and_is_made_once(name: str, folder: Path, tmp_path: Path) -> None:
    path = counterpart_folder(tmp_path / "students", folder, 10)
    made = load_student(path, head=HeadSpec("multiple-choice"))
    assert (made.region_dim, made.identity.name) == (10, f"mini-{name}-clip-vil")
    with torch.no_grad():
        assert made(inputs(10)).hidden_states[-1].isfinite().all()
    assert read_json(path / "beginning.json")["drawn"]
    stamp = (path / "model.safetensors").stat().st_mtime_ns
    assert counterpart_folder(tmp_path / "students", folder, 10) == path
    assert (path / "model.safetensors").stat().st_mtime_ns == stamp
    assert counterpart_folder(tmp_path / "students", folder, 12) != path


def test_what_is_drawn_depends_on_nothing_but_the_student() -> None:
    torch.manual_seed(5)
    first = counterpart("mini-uniter", 16).student.encoder.state_dict()
    torch.manual_seed(6)
    state = torch.random.get_rng_state()
    again = counterpart("mini-uniter", 16).student.encoder.state_dict()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, again[key]) for key, value in first.items())


def test_every_family_of_regions_has_one_and_the_others_say_why_not() -> None:
    for name in REGIONS:
        other = clip_vil_family(family_of(name), name)
        assert other.model is family_of(name).model
    with pytest.raises(UsageProblem, match="sees the pixels themselves") as caught:
        clip_vil_family(family_of("vilt"), "vilt-base")
    assert caught.value.hint is not None
    assert "uniter" in caught.value.hint
    with pytest.raises(UsageProblem, match="no student 'nobody'"):
        counterpart("nobody", 16)


def test_widths_are_read_from_the_network_itself() -> None:
    family = family_of("uniter")
    config = replace(family.sizes["mini"], region_dim=7)
    assert feature_tensors(family, config) == {
        "img_embeddings.img_linear.weight", "img_embeddings.img_linear.bias", "img_embeddings.mask_embedding.weight",
    }  # fmt: skip
