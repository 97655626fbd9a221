"""madkit: Multimodal Adaptive Distillation for vision-language students.

The names below are all that a training loop of one's own needs. They are imported on first use, so that
``import madkit`` stays free of torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from madkit.cache import TokenCache as TokenCache
    from madkit.distill.teacher.cached_teacher import CachedTeacher as CachedTeacher
    from madkit.distill.teacher.student_places import token_spans as token_spans
    from madkit.evaluate.asking import predict as predict
    from madkit.mad.config import MADConfig as MADConfig
    from madkit.mad.criterion import MADCriterion as MADCriterion
    from madkit.students.load import load_student as load_student
    from madkit.teachers.load import load_teacher as load_teacher

__version__ = "0.1.0"

__all__ = [
    "CachedTeacher",
    "MADConfig",
    "MADCriterion",
    "TokenCache",
    "__version__",
    "load_student",
    "load_teacher",
    "predict",
    "token_spans",
]

_HOMES = {
    "CachedTeacher": "madkit.distill.teacher.cached_teacher",
    "MADConfig": "madkit.mad.config",
    "MADCriterion": "madkit.mad.criterion",
    "TokenCache": "madkit.cache",
    "load_student": "madkit.students.load",
    "load_teacher": "madkit.teachers.load",
    "predict": "madkit.evaluate.asking",
    "token_spans": "madkit.distill.teacher.student_places",
}


def __getattr__(name: str) -> object:
    """Import a public name from its home module on first use (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'madkit' has no attribute {name!r}")
    value: object = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names without importing them."""
    return sorted(__all__)
