"""Names that a user gives for sharing, checked before anything is loaded."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

from madkit.core.errors import UsageProblem
from madkit.core.registry import suggest

UNKNOWN = "unknown"
# Identifiers of common licences at https://huggingface.co/docs/hub/repositories-licenses; others are taken as they are
# where they look like one.
COMMON_LICENCES = (
    "apache-2.0",
    "mit",
    "bsd-2-clause",
    "bsd-3-clause",
    "cc0-1.0",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
    "gpl-3.0",
    "openrail",
    "other",
    UNKNOWN,
)


def check_licence(name: str) -> str:
    """Return a licence's identifier. Raises UsageProblem for text that can be none, with the nearest common one."""
    if not re.fullmatch(r"[a-z0-9]+([.-][a-z0-9]+)*", name):
        raise UsageProblem(
            f"{name!r} is no identifier of a licence.{suggest(name, COMMON_LICENCES)}",
            hint=f"as the hub writes them: {', '.join(COMMON_LICENCES[:6])}, ...",
        )
    return name


def check_repository(name: str) -> str:
    """Return the name of a repository. Raises UsageProblem for anything but `ORG/NAME`, by the hub's own rules."""
    library: Any = import_module("huggingface_hub.utils")  # it exports these without saying so to type checkers
    try:
        library.validate_repo_id(name)
    except library.HFValidationError as error:
        reason = str(error)
    else:
        if name.count("/") == 1 and not name.startswith("/"):
            return name
        reason = "an organisation (or user) and a name are needed"
    raise UsageProblem(f"{name!r} is no name of a repository on the hub ({reason}).", hint="--push ORG/NAME")
