"""All checks in one go: the slow ones in a process beside, the rest meanwhile."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from madkit.core.console import counted
from madkit.core.errors import MadkitError
from madkit.doctor.disk import check_room, check_speed, trial_folder
from madkit.doctor.findings import Finding, Status, counts, failed, first_line, passed
from madkit.doctor.hub import check_hub
from madkit.doctor.machine import Probe, check_libraries, check_machine
from madkit.doctor.versions import check_versions
from madkit.doctor.workspace import check_workspace

if TYPE_CHECKING:
    from madkit.core.workspace import Workspace

STORE = "store"
# A mend that ends in a command on the workspace.
_COMMAND = re.compile(r"(^|&& |: |; )madkit (demo|extract|distill|adapt|evaluate|cache|data)( [^;:]*)?$")


@dataclass(frozen=True, slots=True)
class Examination:
    """What the doctor found, and how long it took."""

    findings: tuple[Finding, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return all(finding.status is not Status.FAIL for finding in self.findings)

    def document(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "ok": self.ok,
            "counts": counts(self.findings),
            "seconds": round(self.seconds, 2),
            "checks": [finding.as_row() for finding in self.findings],
        }


def examine(workspace: Workspace, *, deep: bool = False) -> Examination:
    """Look at versions, libraries, machine, disk, hub and a workspace.

    A workspace that does not exist is not made, and nothing is written then. In one that does, a temporary folder is
    written and removed again.

    Args:
        workspace: the workspace.
        deep: also import every library, read every byte of the caches and check the data sets' files.
    """
    began = time.monotonic()
    found: list[Finding] = []
    with _trial(workspace.root, found) as folder, Probe(folder / STORE if folder else None, deep=deep) as probe:
        found += _safely("versions", check_versions)
        found += _safely("hub", check_hub)
        found += _safely("disk", lambda: check_room(workspace.root))
        if folder is not None:
            found += _safely("disk", lambda: check_speed(folder))
        if workspace.root.is_dir():
            found += _safely("workspace", lambda: check_workspace(workspace, deep=deep))
            if deep:
                found += _safely("workspace", lambda: _read_everything(workspace))
        answer = probe.answer()
    found += check_libraries(answer)
    found += check_machine(answer)
    found = [_placed(finding, workspace) for finding in found]
    order = ["versions", "libraries", "machine", "disk", "hub", "workspace", "data", "caches", "runs"]
    found.sort(key=lambda finding: order.index(finding.group) if finding.group in order else len(order))
    return Examination(tuple(found), time.monotonic() - began)


@contextmanager
def _trial(root: Path, found: list[Finding]) -> Iterator[Path | None]:
    """A trial folder in the workspace; None, with a finding that says why, where there is none."""
    if not root.is_dir():
        found.append(passed("workspace", "folder", f"{root} does not exist yet; the first command makes it"))
        yield None
        return
    try:
        made = trial_folder(root)
        folder = made.__enter__()
    except OSError as error:
        mend = f"chmod u+w {root}, or use another --workspace DIR"
        found.append(failed("workspace", "folder", f"{root} cannot be written ({first_line(error)})", mend))
        yield None
        return
    try:
        found.append(passed("workspace", "folder", str(root)))
        yield folder
    finally:
        made.__exit__(None, None, None)


def _placed(finding: Finding, workspace: Workspace) -> Finding:
    """The finding with `--workspace` behind the madkit command that mends it, where that one would look elsewhere."""
    options = replace(workspace, cache_at=None).options()  # not every command takes a cache
    if not options or not _COMMAND.search(finding.mend):
        return finding
    return replace(finding, mend=f"{finding.mend} {shlex.join(options)}")


def _safely(group: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    """The findings of a check; one that breaks is a finding itself, and the others go on."""
    try:
        return check()
    except Exception as error:  # a doctor who falls ill must still tell the rest
        mend = "the same command with MADKIT_DEBUG=1; please report it with the output of: madkit env"
        return [failed(group, "check", f"it ended with {type(error).__name__}: {first_line(error)}", mend)]


def _read_everything(workspace: Workspace) -> list[Finding]:
    from madkit.cache.manage import list_stores
    from madkit.cache.verify import verify_cache
    from madkit.core.console import progress
    from madkit.tasks.check import check_dataset
    from madkit.tasks.data import every_dataset

    found = []
    rows = [row for row in list_stores(workspace) if row.state == "complete"]
    with progress("Reading caches", sum(row.bytes for row in rows), "bytes") as bar:
        for row in rows:
            report = verify_cache(row.path, on_file=bar.advance)
            name = row.path.name
            if report.ok:
                found.append(passed("caches", name, f"every byte of {counted(report.files, 'files')} read, all sound"))
            else:
                first = report.problems[0]
                said = f"{first.file}: {first.detail} ({len(report.problems)} in all)"
                found.append(failed("caches", name, said, f"madkit cache repair {name}"))
    with progress("Checking data", None, "checks") as bar:
        for data in every_dataset(workspace):
            try:
                wrong = [one for one in check_dataset(data, advance=bar.advance) if one.wrong]
            except MadkitError as error:
                found.append(failed("data", data.name, first_line(error), f"madkit data check {data.name}"))
                continue
            if wrong:
                said = f"{wrong[0].what}: {wrong[0].first[0] if wrong[0].first else wrong[0].wrong}"
                found.append(failed("data", data.name, said, f"madkit data check {data.name}"))
            else:
                found.append(passed("data", data.name, "its files agree with its index"))
    return found
