"""Configuration: precedence, and every mistake at once."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pydantic
import pytest

from madkit.core.config import StrictModel, flat, key_parts, left_by, load_config
from madkit.core.errors import ConfigError, NotFoundError


class Loss(StrictModel):
    weight: float = 1.0
    tokens: Literal["all", "adaptive"] = "adaptive"
    k_text: int | None = None


class Training(StrictModel):
    steps: int = pydantic.Field(100, gt=0)
    rate: float = 5e-5
    name: str = "x"
    loss: Loss = Loss()
    extra: Loss | None = None
    stages: list[Loss] = []


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_flags_beat_the_file_which_beats_defaults(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "steps: 7\nrate: 1e-4\nloss: {weight: 2, k_text: 3}\n")
    config = load_config(Training, path, {"steps": 9, "loss.weight": 0.5, "name": None, "extra.k_text": 4})
    assert (config.steps, config.rate, config.name) == (9, 1e-4, "x")
    assert config.loss == Loss(weight=0.5, k_text=3)
    assert config.extra == Loss(k_text=4)
    assert load_config(Training, None, {}) == Training()
    assert load_config(Training, write(tmp_path / "empty.yaml", "# nothing\n"), {}) == Training()


def test_a_mapping_goes_over_a_section_key_by_key(tmp_path: Path) -> None:
    """What it does not name stays as the file has it; lists and single values replace, None switches off."""
    path = write(tmp_path / "c.yaml", "loss: {tokens: all, k_text: 3}\nextra: {k_text: 4}\nstages: [{k_text: 1}]\n")
    config = load_config(Training, path, {"loss": {"weight": 0.5}, "extra": {"weight": 2.0}, "stages": [{"weight": 3}]})
    assert config.loss == Loss(weight=0.5, tokens="all", k_text=3)
    assert config.extra == Loss(weight=2.0, k_text=4)
    assert config.stages == [Loss(weight=3)]
    below = {"loss": {"weight": 7.0}}
    off = load_config(Training, path, {"extra": None, "loss": {"k_text": None}}, below=below, nulls=True)
    assert (off.extra, off.loss) == (None, Loss(weight=7.0, tokens="all"))
    load_config(Training, None, {"loss.weight": 1.0}, below=below)
    assert below == {"loss": {"weight": 7.0}}, "what lies below is the caller's"


def test_a_mistake_of_the_file_is_the_files_beside_a_mapping(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "loss: {k_txt: 3}\n")
    with pytest.raises(ConfigError, match=r"configuration in .*c\.yaml"):
        load_config(Training, path, {"loss": {"weight": 0.5}})
    with pytest.raises(ConfigError, match="configuration:"):
        load_config(Training, write(path, ""), {"loss": {"k_txt": 3}})


def test_all_mistakes_are_reported_at_once_with_near_misses(tmp_path: Path) -> None:
    path = write(
        tmp_path / "c.yaml",
        "stesp: 7\nrate: fast\nloss: {wieght: 2, tokens: adaptiv}\nextra: {k_txt: 1}\nstages: [{weigth: 1}]\nqqq: 1\n",
    )
    with pytest.raises(ConfigError) as caught:
        load_config(Training, path, {"steps": 0})
    lines = caught.value.message.splitlines()
    assert lines[0] == f"8 problems with the configuration in {path}:"
    text = "\n".join(sorted(line.strip() for line in lines[1:]))
    assert text == "\n".join(
        [
            "extra.k_txt: unknown key. Did you mean 'k_text'?",
            "loss.tokens: input should be 'all' or 'adaptive' (given: 'adaptiv'); did you mean 'adaptive'?",
            "loss.wieght: unknown key. Did you mean 'weight'?",
            "qqq: unknown key.",
            "rate: input should be a valid number, unable to parse string as a number (given: 'fast')",
            "stages.0.weigth: unknown key. Did you mean 'weight'?",
            "steps: input should be greater than 0 (given: 0)",
            "stesp: unknown key. Did you mean 'steps'?",
        ]
    )


def test_a_part_of_a_key_may_hold_dots_in_quotes() -> None:
    class Named(StrictModel):
        names: dict[str, Loss] = {}

    assert key_parts('names."timm:vit.lvd142m".weight') == ("names", "timm:vit.lvd142m", "weight")
    assert key_parts('"a.b"') == ("a.b",)
    assert key_parts("a..b") == ("a", "", "b")
    config = load_config(Named, None, {'names."timm:vit.lvd142m".weight': 2, "names.plain.k_text": 5})
    assert config.names == {"timm:vit.lvd142m": Loss(weight=2), "plain": Loss(k_text=5)}
    with pytest.raises(ConfigError, match=r"names\.a\.b\.wieght: unknown key"):
        load_config(Named, None, {'names."a.b".wieght': 2})


def test_settings_are_told_apart_however_they_are_spelt() -> None:
    given = {"names": {"timm:vit.lvd142m": {"weight": 2}, "plain": {}}, "loss.k_text": 1, "loss": {"k_text": None}}
    leaves = flat(given)
    assert leaves == {'names."timm:vit.lvd142m".weight': 2, "names.plain": {}, "loss.k_text": None}
    assert flat(leaves) == leaves
    assert [*flat({"a.b": 1, "a": None, '"a"': {"b": 2}})] == ["a", "a.b"], "in the order in which they count"
    low = {"loss.k_text": 1, "loss.weight": 2, "extra": None, "stages": [1], "lossy": 3}
    assert left_by(low, {"loss.weight": 5, "extra.k_text": 3}) == {"loss.k_text": 1, "stages": [1], "lossy": 3}
    assert left_by(low, {"loss": None, "stages": []}) == {"extra": None, "lossy": 3}
    assert left_by(low, {"loss": {}, "extra": {}}) == {key: low[key] for key in low if key != "extra"}


def test_an_override_of_none_is_a_value_where_that_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "loss: {k_text: 3}\nextra: {weight: 2}\n")
    given = {"loss.k_text": None, "extra": None}
    assert load_config(Training, path, given).loss.k_text == 3
    config = load_config(Training, path, given, nulls=True)
    assert config.loss.k_text is None
    assert config.extra is None


def test_the_file_is_named_only_where_it_holds_a_mistake(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "steps: 7\n")
    for given in ({"stesp": 1}, {"loss.wieght": 1}, {"loss": {"wieght": 1}}, {"steps": 0}):
        with pytest.raises(ConfigError) as caught:
            load_config(Training, path, given)
        assert caught.value.message.startswith("1 problem with the configuration:\n")
    with pytest.raises(ConfigError, match=r"2 problems with the configuration in .*c\.yaml"):
        load_config(Training, write(path, "steps: 0\n"), {"stesp": 1})


def test_required_values_and_validators(tmp_path: Path) -> None:
    class Strict(StrictModel):
        task: str
        seeds: int = 1

        @pydantic.model_validator(mode="after")
        def check(self) -> Strict:
            if self.seeds == 13:
                raise ValueError("Thirteen seeds bring bad luck")
            return self

    with pytest.raises(ConfigError, match="task: required, but not given"):
        load_config(Strict, None, {})
    with pytest.raises(ConfigError, match=r"\(top level\): thirteen seeds bring bad luck"):
        load_config(Strict, None, {"task": "vcr", "seeds": 13})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 1\nrate: 2\nsteps: 3\n", "line 3: the key 'steps' stands twice"),
        ("loss: {weight: 1, weight: 2}\n", "line 1: the key 'weight' stands twice"),
        ("steps: 1\n? [a, b]\n: 2\n", "line 2: a key is no plain name"),
        ("steps: [1\nrate: 2\n", "line 2: "),
        ("- steps\n", "must hold a mapping of names to values"),
        ("1: 2\n", "must hold a mapping of names to values"),
        ("steps: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
        ("steps: \x00\n", "is not valid YAML"),
    ],
)
def test_broken_yaml_is_one_error_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "c.yaml", text)
    with pytest.raises(ConfigError) as caught:
        load_config(Training, path, {})
    assert message in caught.value.message
    assert str(path) in caught.value.message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    write(tmp_path / "present.yaml", "steps: 3\n")
    with pytest.raises(NotFoundError, match=r"no configuration file .*absent\.yaml\.$") as caught:
        load_config(Training, tmp_path / "folder" / "absent.yaml", {})
    assert "madkit config list" in (caught.value.hint or "")
    with pytest.raises(NotFoundError, match=r"Did you mean 'present\.yaml'\?$"):
        load_config(Training, tmp_path / "presnt.yaml", {})


def test_a_file_that_is_no_text_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"steps: \xba\n")
    with pytest.raises(ConfigError, match=r"c\.yaml is not valid YAML \(invalid start byte at position 7\)\.$"):
        load_config(Training, path, {})


def test_a_merge_key_may_stand_beside_what_it_merges(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "loss: &base {weight: 3}\nextra:\n  <<: *base\n  k_text: 2\n")
    assert load_config(Training, path, {}).extra == Loss(weight=3, k_text=2)


def test_models_are_frozen_and_finite() -> None:
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        Training().steps = 3
    with pytest.raises(ConfigError, match="rate: input should be a finite number"):
        load_config(Training, None, {"rate": float("nan")})
