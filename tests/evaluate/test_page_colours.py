"""The arms' colours: told apart by eyes of all kinds, and seen on both papers.

Colour blindness is simulated with the matrices of Machado, Oliveira and Fernandes (2009) for severity 1; distances are
those of CIELAB (1976), where 2.3 is just noticeable; contrast is that of WCAG 2.2, which asks 3 of graphics and 4.5 of
text.
"""

from __future__ import annotations

import re
from importlib import resources
from itertools import combinations

import numpy as np
import pytest

EYES = {
    "usual": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
XYZ = np.array([[0.412456, 0.357576, 0.180437], [0.212673, 0.715152, 0.072175], [0.019334, 0.119192, 0.950304]])
WHITE = np.array([0.95047, 1.0, 1.08883])


def linear(colour: str) -> np.ndarray:
    value = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    t = XYZ @ np.clip(rgb, 0, 1) / WHITE
    f = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(one: str, other: str) -> float:
    low, high = sorted(float(XYZ[1] @ linear(colour)) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def schemes() -> dict[str, dict[str, str]]:
    style = (resources.files("madkit.evaluate.report") / "page.css").read_text(encoding="utf-8")
    light, dark = (dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6});", part)) for part in style.split("}")[:2])
    return {"light": light, "dark": {**light, **dark}}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("eyes", EYES)
def test_arms_are_told_apart(scheme, eyes):
    colours = schemes()[scheme]
    seen = [lab(np.asarray(EYES[eyes]) @ linear(colours[f"a{number}"])) for number in range(6)]
    assert min(np.linalg.norm(one - other) for one, other in combinations(seen, 2)) > 12


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_stand_out_from_their_paper(scheme):
    colours = schemes()[scheme]
    for paper in ("card", "paper"):
        assert min(contrast(colours[f"a{number}"], colours[paper]) for number in range(6)) > 3
        for text in ("ink", "soft", "accent", "good", "bad"):
            assert contrast(colours[text], colours[paper]) > 4.5, text


def test_the_measure_is_that_of_the_standards():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert lab(linear("#ffffff")) == pytest.approx([100, 0, 0], abs=0.02)
    assert lab(linear("#ff0000")) == pytest.approx([53.24, 80.09, 67.20], abs=0.05)
