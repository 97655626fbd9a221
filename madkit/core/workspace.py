"""The workspace: the one folder that holds everything madkit makes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from madkit.core.errors import NotFoundError, UsageProblem

VARIABLE = "MADKIT_WORKSPACE"
DEFAULT = "madkit-workspace"


@dataclass(frozen=True, slots=True)
class Workspace:
    """Paths inside a workspace folder. Nothing is created here; whoever writes creates its own folder."""

    root: Path

    @classmethod
    def at(cls, path: Path | str | None = None) -> Workspace:
        """Return the workspace at ``path``, else at ``$MADKIT_WORKSPACE``, else at ``./madkit-workspace``.

        Raises:
            UsageProblem: the path is a file.
        """
        chosen = Path(path if path is not None else os.environ.get(VARIABLE) or DEFAULT).expanduser()
        if chosen.exists() and not chosen.is_dir():
            raise UsageProblem(f"The workspace {chosen} is a file.", hint="give a folder: --workspace DIR.")
        return cls(chosen)

    def require(self) -> Workspace:
        """Return self when the folder exists (NotFoundError otherwise), for commands that only read."""
        if not self.root.is_dir():
            raise NotFoundError(
                f"There is no workspace at {self.root}.",
                hint=f"give one with --workspace DIR or {VARIABLE}, or make one: madkit extract --teacher mini",
            )
        return self

    @property
    def data(self) -> Path:
        """Imported benchmarks and the embedded one."""
        return self.root / "data"

    @property
    def cache(self) -> Path:
        """Token caches of the teachers."""
        return self.root / "cache"

    @property
    def runs(self) -> Path:
        """Run folders."""
        return self.root / "runs"

    @property
    def reports(self) -> Path:
        """Tables, plots and pages."""
        return self.root / "reports"
