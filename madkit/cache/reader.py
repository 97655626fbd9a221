"""Opening a token store: its manifest, whether it is whole and whose it is, and its two parts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from madkit.cache.layout import FORMAT, JOURNAL, MANIFEST, PLAN, SCHEMA
from madkit.cache.parts import ImageTokens, TextTokens
from madkit.core.errors import CacheError, NotFoundError
from madkit.core.files import read_json, read_jsonl


class TokenCache:
    """A complete token store, opened for reading. Use :meth:`open`; it is also a context manager.

    Attributes:
        path: the store's folder.
        manifest: everything that ``manifest.json`` says.
        identity: what the store is of: teacher, weights, preprocessing, tokenizer, source, task, revision.
        images: tokens of images.
        texts: tokens of texts.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any], *, check: bool) -> None:
        self.path = path
        self.manifest = dict(manifest)
        self.identity: dict[str, Any] = dict(manifest["identity"])
        rows, columns = manifest["images"]["grid"]
        command = extract_command(self.identity)
        gone = {
            part: {int(item["row"]): str(item["error"]) for item in manifest.get("absent", {}).get(part, ())}
            for part in ("images", "texts")
        }
        self.images = ImageTokens(
            path, check=check, grid=(int(rows), int(columns)), extract=command, absent=gone["images"]
        )
        self.texts = TextTokens(path, check=check, extract=command, absent=gone["texts"])

    @classmethod
    def open(cls, path: Path | str, *, check: bool = False) -> TokenCache:
        """Open a store.

        Args:
            path: its folder.
            check: verify the checksum of everything that is read; slower.

        Raises:
            NotFoundError: there is no store.
            CacheError: the store is unfinished, of another version, or files are missing or truncated.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        bad = missing_files(folder, manifest)
        if bad:
            raise CacheError(
                f"The cache {folder} is damaged: {bad[0]}" + (f" and {len(bad) - 1} more." if len(bad) > 1 else "."),
                hint=f"{extract_command(manifest['identity'])} redoes what is missing, or see: madkit cache verify",
            )
        return cls(folder, manifest, check=check)

    @property
    def key(self) -> str:
        """The 12 hex digits that name the store."""
        return str(self.manifest["key"])

    @property
    def teacher(self) -> str:
        """Canonical name of the teacher."""
        return str(self.identity["teacher"])

    @property
    def shared_space(self) -> bool:
        """Whether image and text vectors can be compared by cosine."""
        return bool(self.identity["shared_space"])

    @property
    def logit_scale(self) -> float:
        """Factor on cosines before a softmax, as the teacher learnt it."""
        return float(self.identity["logit_scale"])

    def close(self) -> None:
        """Let go of open files."""
        self.images.close()
        self.texts.close()

    def __enter__(self) -> TokenCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a store's manifest.

    Raises:
        NotFoundError: there is no store.
        CacheError: its extraction is unfinished, or another version of madkit wrote it.
    """
    path = folder / MANIFEST
    if not path.is_file():
        if (folder / PLAN).is_file():
            raise _unfinished(folder)
        raise NotFoundError(f"There is no token cache at {folder}.", hint="make one: madkit extract --teacher mini")
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or manifest.get("schema") != SCHEMA:
        raise CacheError(
            f"{path} is not the manifest of a token cache that this version of madkit reads (schema {SCHEMA}).",
            hint="extract it again into another workspace, or remove the folder",
        )
    return manifest


def _unfinished(folder: Path) -> CacheError:
    plan = read_json(folder / PLAN)
    journal = folder / JOURNAL
    done = len({(row["part"], row["unit"]) for row in read_jsonl(journal)}) if journal.is_file() else 0
    total = sum(-(-int(plan[part]["n"]) // int(plan[part]["unit"])) for part in ("images", "texts"))
    return CacheError(
        f"The cache {folder} is unfinished ({done} of {total} shards).",
        hint=f"go on with: {extract_command(plan['identity'])}",
    )


def missing_files(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Return a line for each file of the manifest that is missing or has another size."""
    bad = []
    for name, entry in manifest["files"].items():
        try:
            size = (folder / name).stat().st_size
        except FileNotFoundError:
            bad.append(f"{name} is missing")
            continue
        if size != entry["bytes"]:
            bad.append(f"{name} has {size:,} bytes instead of {entry['bytes']:,}")
    return bad


def extract_command(identity: Mapping[str, Any]) -> str:
    """Return the command that makes a store."""
    command = f"madkit extract --teacher {identity.get('teacher')} --task {identity.get('task')}"
    if identity.get("dtype", "float16") != "float16":
        command += f" --store-dtype {identity['dtype']}"
    if identity.get("selection", "all") != "all":
        command += f" --tokens {identity['selection']}"
    return command
