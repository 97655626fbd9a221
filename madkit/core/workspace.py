"""The workspace: the one folder that holds everything madkit makes, but for token caches that lie elsewhere."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from madkit.core.errors import NotFoundError, UsageProblem

VARIABLE = "MADKIT_WORKSPACE"
DEFAULT = "madkit-workspace"
CACHE_VARIABLE = "MADKIT_CACHE"
MIRROR_VARIABLE = "MADKIT_CACHE_DIR"


@dataclass(frozen=True, slots=True)
class Workspace:
    """Paths inside a workspace folder. Nothing is created here; whoever writes creates its own folder.

    Attributes:
        root: the folder.
        cache_at: where token caches lie, a folder or a URL; None for ``cache`` in the workspace.
    """

    root: Path
    cache_at: str | None = None

    @classmethod
    def at(cls, path: Path | str | None = None, *, cache: Path | str | None = None) -> Workspace:
        """Return the workspace at ``path``, else at ``$MADKIT_WORKSPACE``, else at ``./madkit-workspace``.

        Args:
            path: the folder.
            cache: folder or URL of the token caches, else ``$MADKIT_CACHE``, else ``cache`` in the workspace.

        Raises:
            UsageProblem: one of the paths is a file, or the workspace is a URL.
        """
        chosen = Path(path if path is not None else os.environ.get(VARIABLE) or DEFAULT).expanduser()
        if re.match(r"[a-z0-9+]+:/", str(chosen)):  # two slashes have become one in a Path
            raise UsageProblem(
                f"The workspace {chosen} is a URL.",
                hint="a workspace is a folder; its caches may lie at a URL: --cache URL",
            )
        if chosen.exists() and not chosen.is_dir():
            raise UsageProblem(f"The workspace {chosen} is a file.", hint="give a folder: --workspace DIR.")
        place = str(cache) if cache is not None else os.environ.get(CACHE_VARIABLE, "")
        if place and not is_url(place):
            folder = Path(place).expanduser()
            if folder.exists() and not folder.is_dir():
                raise UsageProblem(f"The cache folder {folder} is a file.", hint="give a folder or a URL: --cache URL")
            place = str(folder)
        return cls(chosen, place.rstrip("/") if is_url(place) else place or None)

    def options(self) -> list[str]:
        """What a command line has to say to find this workspace: nothing that it would take by itself."""
        try:
            usual = Workspace.at()
        except UsageProblem:  # what lies where it would look is no workspace
            usual = None
        found = [] if usual is not None and self.root == usual.root else ["--workspace", str(self.root)]
        if self.cache_at is not None and (usual is None or self.cache_at != usual.cache_at):
            found += ["--cache", self.cache_at]
        return found

    def require(self) -> Workspace:
        """Return self when the folder exists (NotFoundError otherwise), for commands that only read."""
        if not self.root.is_dir():
            raise NotFoundError(
                f"There is no workspace at {self.root}.",
                hint=f"give one with --workspace DIR or {VARIABLE}, or make one: madkit extract --teacher mini",
            )
        return self

    def require_cache(self) -> Workspace:
        """Return self when there can be caches to read (NotFoundError otherwise); a URL is asked later."""
        if self.cache_at is None:
            return self.require()
        if self.cache_url is None and not self.cache.is_dir():
            raise NotFoundError(f"There is no cache folder at {self.cache}.", hint="check --cache or MADKIT_CACHE")
        return self

    @property
    def data(self) -> Path:
        """Imported benchmarks and the embedded one."""
        return self.root / "data"

    @property
    def cache(self) -> Path:
        """Token caches of the teachers; where these lie at a URL, the folder of their local mirrors."""
        if self.cache_at is None:
            return self.root / "cache"
        return mirror_folder(self.cache_at) if is_url(self.cache_at) else Path(self.cache_at)

    @property
    def cache_url(self) -> str | None:
        """The URL of the token caches; None where they are in a folder."""
        return self.cache_at if self.cache_at is not None and is_url(self.cache_at) else None

    @property
    def runs(self) -> Path:
        """Run folders."""
        return self.root / "runs"

    @property
    def adapters(self) -> Path:
        """Runs that adapted a teacher."""
        return self.root / "adapters"

    @property
    def reports(self) -> Path:
        """Tables, plots and pages."""
        return self.root / "reports"


def is_url(place: str) -> bool:
    """Whether ``place`` is a URL and not a path."""
    return "://" in place


def mirror_root() -> Path:
    """Return the folder of what can be had again: ``$MADKIT_CACHE_DIR``, else ``madkit`` in the user's cache folder.

    Mirrors of remote caches lie in it, and indexes of region files that no workspace knows.
    """
    chosen = os.environ.get(MIRROR_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "madkit"


def mirror_folder(url: str) -> Path:
    """Return the local folder for what is read from below ``url``: its end for people, and its digest."""
    url = url.rstrip("/")
    words = re.sub(r"[^A-Za-z0-9.]+", "-", url)[-40:].strip("-.")
    return mirror_root() / "mirrors" / f"{words}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
