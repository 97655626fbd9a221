"""Domain-shift suites made from imported data, some with a small model that is trained here.

    from madkit.shifts import SHIFTS, ShiftOptions, make_shift

Every builder is `build(workspace, data, options) -> list[Made]`, imported on first use. A finished suite is never made
twice: the builder finds it, says so and returns it.
"""

from __future__ import annotations

from madkit.shifts.interface import Builder, Made, Shift, ShiftOptions
from madkit.shifts.known import SHIFTS, get_shift, make_shift

__all__ = ["SHIFTS", "Builder", "Made", "Shift", "ShiftOptions", "get_shift", "make_shift"]
