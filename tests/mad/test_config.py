from __future__ import annotations

import subprocess
import sys

import pytest

from madkit.core.config import load_config
from madkit.core.errors import ConfigError
from madkit.mad.config import MADConfig


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weight": 0}, "both 0: nothing would be distilled"),
        ({"k_txt": 3}, "Did you mean 'k_text'"),
        ({"tokens": "adaptiv"}, "tokens"),
        ({"tokens": "global", "global_image_weight": 0, "global_text_weight": 0}, "leaves no term"),
        ({"fraction": 1.5}, "fraction"),
        ({"gamma": -1}, "gamma"),
        ({"layer": [1, 1]}, "none twice"),
        ({"affinity_weight": 1, "affinity_form": "word", "k_text": 0}, "needs words"),
    ],
)
def test_mistakes_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(MADConfig, None, values)


def test_defaults_and_what_is_switched_on() -> None:
    config = MADConfig()
    assert set(config.term_weights) == {"global_image", "global_text", "token_text", "token_region", "token_tag"}
    assert set(MADConfig(tokens="global").term_weights) == {"global_image", "global_text"}
    assert set(MADConfig(k_region=0, tag_targets=False).term_weights) == {"global_image", "global_text", "token_text"}
    assert MADConfig(weight=0, affinity_weight=1).term_weights == {}
    assert not config.standardised
    assert MADConfig(distance="mse").standardised
    assert MADConfig(layer=[1, -1]).layers == (1, -1)


def test_a_dumped_configuration_reads_back() -> None:
    config = MADConfig(fraction=0.3, layer=(1, -1), affinity_weight=0.5)
    assert MADConfig.model_validate(config.model_dump(mode="json")) == config


def test_reading_the_configuration_needs_no_torch() -> None:
    code = "import sys, madkit.mad.config, madkit.mad.schedule; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
