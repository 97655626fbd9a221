"""Versions: what madkit asks for against what is installed, from package metadata alone."""

from __future__ import annotations

import platform
import re
from importlib import metadata
from typing import Any

from madkit.doctor.findings import Finding, failed, passed, warned

GROUP = "versions"
# What an extra is for; a package of it that is missing keeps nothing else from working.
EXTRAS = {
    "lora": "adapt with --train lora",
    "s3": "caches at s3:// URLs",
    "hf": "importing saved Hugging Face datasets",
    "lmdb": "region features in LMDB",
}
PAIR = "pip install --upgrade torch torchvision"


def check_versions(distribution: str = "madkit") -> list[Finding]:
    """Compare every requirement of the installed madkit with what is there."""
    found = [passed(GROUP, "python", platform.python_version())]
    try:
        asked = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        return [*found, warned(GROUP, distribution, "it runs from a folder and is not installed", "pip install -e .")]
    from packaging.requirements import InvalidRequirement, Requirement

    requirements: list[Any] = []
    for line in asked:
        try:
            requirements.append(Requirement(line))
        except InvalidRequirement:
            continue
    plain = [one for one in requirements if "extra ==" not in str(one.marker or "")]
    good: list[str] = []
    for one in plain:
        if one.marker is not None and not one.marker.evaluate():
            continue
        version = installed(one.name)
        if version is None:
            found.append(failed(GROUP, one.name, "it is not installed", f"pip install '{one.name}{one.specifier}'"))
        elif not one.specifier.contains(version, prereleases=True):
            said = f"{version}, and madkit needs {one.specifier}"
            found.append(failed(GROUP, one.name, said, f"pip install --upgrade '{one.name}{one.specifier}'"))
        else:
            good.append(f"{one.name} {version}")
    if good:
        found.append(passed(GROUP, "packages", ", ".join(good)))
    found.append(check_pair())
    missing = [extra for extra in EXTRAS if _lacks(extra, requirements)]
    if missing:
        said = "; ".join(f"{extra} ({EXTRAS[extra]})" for extra in missing)
        found.append(passed(GROUP, "extras", f"not installed, needed for nothing else: {said}"))
    else:
        found.append(passed(GROUP, "extras", ", ".join(EXTRAS)))
    return found


def check_pair() -> Finding:
    """Torchvision is built for one torch exactly; its metadata says for which."""
    torch, vision = installed("torch"), installed("torchvision")
    if torch is None or vision is None:
        return failed(GROUP, "torch pair", "torch or torchvision is not installed", PAIR)
    said = f"torch {torch} and torchvision {vision}"
    for line in metadata.requires("torchvision") or []:
        wanted = re.fullmatch(r"torch\s*\(?==\s*([0-9.]+)[^;]*\)?\s*(;.*)?", line)
        if wanted is not None and wanted[1] != re.split(r"[+]|\.dev|rc|a\d|b\d", torch)[0]:
            return failed(GROUP, "torch pair", f"{said}, which was built for torch {wanted[1]}", PAIR)
    return passed(GROUP, "torch pair", f"{said} belong together")


def installed(name: str) -> str | None:
    """The installed version of a distribution, None where there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _lacks(extra: str, requirements: list[Any]) -> bool:
    wanted = [
        one.name
        for one in requirements
        if one.marker is not None and one.marker.evaluate({"extra": extra}) and not one.marker.evaluate({"extra": ""})
    ]
    return any(installed(name) is None for name in wanted)
