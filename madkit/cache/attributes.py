"""What the Zarr groups of a store say of themselves, for programs that read the arrays without madkit's manifest.

The root group has the plan, fixed before the first encoding. The groups of the two parts repeat what concerns them and
add mean and variance, which are known when all units are there: they are written when the store is completed, from the
same numbers as the array ``statistics``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from madkit.cache.layout import SCHEMA
from madkit.cache.plan import Part, StorePlan
from madkit.cache.statistics import GLOBAL_MEAN, GLOBAL_VAR, TOKEN_MEAN, TOKEN_VAR

_OF_DATA = ("task", "source", "revision", "splits")
_OF_VALUES = ("compute_dtype", "dtype", "selection")


def part_attributes(
    plan: StorePlan, part: Part, statistics: npt.NDArray[np.float32], absent: int
) -> dict[str, dict[str, Any]]:
    """Return the attributes of a part's group.

    Args:
        plan: the store's plan.
        part: ``images`` or ``texts``.
        statistics: [4, D], the content of the part's ``statistics`` array.
        absent: how many items of the part have no values.
    """
    identity = plan.identity
    numbers = {"global_mean": GLOBAL_MEAN, "global_variance": GLOBAL_VAR}
    if "tokens" in plan.arrays(part):
        numbers = {"token_mean": TOKEN_MEAN, "token_variance": TOKEN_VAR, **numbers}
    return {
        "madkit": {
            "schema": SCHEMA,
            "teacher": identity.get("teacher"),
            "encoder": identity.get("vision" if part == "images" else "text"),
            **{name: identity.get(name) for name in _OF_VALUES},
            "data": {name: identity.get(name) for name in _OF_DATA},
            "items": plan.images.n if part == "images" else plan.text.n,
            "absent": absent,
            **{name: [float(value) for value in statistics[row]] for name, row in numbers.items()},
        }
    }
