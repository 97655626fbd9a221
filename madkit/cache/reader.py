"""Opening a token store: its manifest, whether it is whole and whose it is, and its two parts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from madkit.cache.journal import journalled_units
from madkit.cache.layout import FORMAT, MANIFEST, PLAN, SCHEMA, verify_hint
from madkit.cache.parts import ImageTokens, TextTokens
from madkit.cache.plan import first_outside
from madkit.cache.remote import RemoteStore
from madkit.cache.remote_copy import remote_units
from madkit.cache.rows import Fetch
from madkit.core.errors import CacheError, MadkitError, NotFoundError
from madkit.core.files import read_json
from madkit.core.workspace import is_url

_NEEDED: dict[str, type] = {"identity": dict, "files": dict, "key": str, "bytes": int}
_OF_IDENTITY = ("teacher", "task", "source", "revision")

Place = Path | RemoteStore
"""Where a store lies: a folder, or a URL."""


class TokenCache:
    """A complete token store, opened for reading. Use :meth:`open`; it is also a context manager, and can be pickled.

    Attributes:
        path: the store's folder; of a remote store its local mirror.
        manifest: everything that ``manifest.json`` says.
        identity: what the store is of: teacher, weights, preprocessing, tokenizer, source, task, revision.
        parts: which parts the store has, ``images``, ``texts`` or both: what its teacher reads.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any], *, check: bool, fetch: Fetch | None = None) -> None:
        self.path = path
        self._opened: tuple[Path | str, bool] = (path.absolute(), check)
        self.manifest = dict(manifest)
        self.identity: dict[str, Any] = dict(manifest["identity"])
        self.parts = tuple(part for part in ("images", "texts") if part in manifest)
        self._images: ImageTokens | None = None
        self._texts: TextTokens | None = None
        command = extract_command(self.identity, same=True)
        gone = {
            part: {int(item["row"]): str(item["error"]) for item in manifest.get("absent", {}).get(part, ())}
            for part in self.parts
        }
        if "images" in self.parts:
            rows, columns = manifest["images"]["grid"]
            self._images = ImageTokens(
                path, check=check, grid=(int(rows), int(columns)), extract=command, absent=gone["images"], fetch=fetch
            )
        if "texts" in self.parts:
            self._texts = TextTokens(path, check=check, extract=command, absent=gone["texts"], fetch=fetch)

    @classmethod
    def open(cls, path: Place | str, *, check: bool = False) -> TokenCache:
        """Open a store.

        Args:
            path: its folder, or its URL: then ids, texts and metadata are fetched into a local mirror now, and shards
                when they are first read (see :mod:`madkit.cache.remote`).
            check: verify the checksum of everything that is read; slower.

        Raises:
            NotFoundError: there is no store.
            CacheError: the store is unfinished, of another version, files are missing or truncated, or a URL cannot be
                reached or read. Reading raises it later, too, where a shard cannot be fetched as it should be.
        """
        if isinstance(path, str) and is_url(path):
            path = RemoteStore.at(path)
        if isinstance(path, RemoteStore):
            manifest = read_manifest(path)
            cache = cls(path.mirror, manifest, check=check, fetch=path.open_mirror(manifest))
            cache._opened = (path.url, check)
            return cache
        folder = Path(path)
        manifest = read_manifest(folder)
        bad = missing_files(folder, manifest)
        if bad:
            raise CacheError(
                f"The cache {folder} is damaged: {bad[0]}" + (f" and {len(bad) - 1} more." if len(bad) > 1 else "."),
                hint=f"{extract_command(manifest['identity'], same=True)} redoes what is missing, or "
                f"{verify_hint(folder)}",
            )
        return cls(folder, manifest, check=check)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled, a cache is the place where it lies: whoever gets it opens it again (workers of a ``DataLoader``)."""
        return _opened_again, (type(self), *self._opened)

    @property
    def images(self) -> ImageTokens:
        """Tokens of images (CacheError for a store of texts alone)."""
        if self._images is None:
            raise self._lacks("images")
        return self._images

    @property
    def texts(self) -> TextTokens:
        """Tokens of texts (CacheError for a store of images alone)."""
        if self._texts is None:
            raise self._lacks("texts")
        return self._texts

    def _lacks(self, part: str) -> CacheError:
        name = self.teacher
        has, joined, example = "images", f"{name}+TEXT", f"{name}+roberta-base"
        if part == "images":
            has, joined, example = "texts", f"VISION+{name}", f"dinov2-vit-b14+{name}"
        return CacheError(
            f"The cache {self.path.name} holds {has} alone, for its teacher '{name}' reads no {part}, and here "
            f"both are needed: a teacher joined as {joined}.",
            hint=extract_command({**self.identity, "teacher": example}),
        )

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
        return bool(self.identity.get("shared_space", False))

    @property
    def logit_scale(self) -> float:
        """Factor on cosines before a softmax, as the teacher learnt it."""
        return float(self.identity.get("logit_scale", 1.0))

    def close(self) -> None:
        """Let go of open files."""
        for part in (self._images, self._texts):
            if part is not None:
                part.close()

    def __enter__(self) -> TokenCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _opened_again(kind: type[TokenCache], place: Path | str, check: bool) -> TokenCache:
    return kind.open(place, check=check)


def read_manifest(place: Place) -> dict[str, Any]:
    """Read a store's manifest.

    Raises:
        NotFoundError: there is no store.
        CacheError: its extraction is unfinished, another version of madkit wrote it, or its URL cannot be read.
    """
    manifest = read_document(place, MANIFEST)
    if manifest is None:
        plan = read_document(place, PLAN)
        if plan is not None:
            raise _unfinished(place, plan)
        raise NotFoundError(f"There is no token cache at {place}.", hint="make one: madkit extract --teacher mini")
    return checked_manifest(place, manifest)


def checked_manifest(place: Place, manifest: Any) -> dict[str, Any]:
    """Return what a store's manifest file holds, if it is a manifest (CacheError as for :func:`read_manifest`)."""
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or manifest.get("schema") != SCHEMA:
        raise CacheError(
            f"{place}/{MANIFEST} is not the manifest of a token cache that this version of madkit reads "
            f"(schema {SCHEMA}).",
            hint="extract it again into another workspace, or remove the folder",
        )
    lacking = [name for name in _NEEDED if not isinstance(manifest.get(name), _NEEDED[name])]
    if not lacking:
        lacking = [f"identity.{name}" for name in _OF_IDENTITY if name not in manifest["identity"]]
    if lacking or not ({"images", "texts"} & manifest.keys()):
        raise CacheError(
            f"{place}/{MANIFEST} is damaged: it has no '{lacking[0] if lacking else 'images'}'.",
            hint=again_command(place),
        )
    outside = first_outside(manifest["files"])
    if outside is not None:
        raise CacheError(f"{place}/{MANIFEST} names a file outside of its store: {outside}.", hint=again_command(place))
    return manifest


def again_command(place: Place) -> str:
    """Return the command that goes on with a store which has no usable manifest, and computes just what is missing."""
    try:
        plan = read_document(place, PLAN)
        if isinstance(place, Path):
            journalled_units(place)
        return f"go on with it, which computes just what is missing: {extract_command(plan['identity'], same=True)}"
    except (MadkitError, KeyError, TypeError):
        return f"remove it and extract again: madkit cache prune --store {place.name} --yes"


def read_document(place: Place, name: str) -> Any:
    """Read a JSON file of a store; None where there is none (DataError for one that is not JSON)."""
    if isinstance(place, RemoteStore):
        return place.document(name)
    return read_json(place / name) if (place / name).is_file() else None


def _unfinished(place: Place, plan: Mapping[str, Any]) -> CacheError:
    done = len(remote_units(place) if isinstance(place, RemoteStore) else journalled_units(place))
    total = sum(-(-int(plan[part]["n"]) // int(plan[part]["unit"])) for part in ("images", "texts") if part in plan)
    return CacheError(
        f"The cache {place} is unfinished ({done} of {total} shards).",
        hint=f"go on with: {extract_command(plan['identity'], same=True)}",
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


def adapter_name(identity: Mapping[str, Any]) -> str | None:
    """Return the name of the adaptation in a store's identity, None for a teacher as its publisher made it."""
    sides = (_object(identity, side) for side in ("vision", "text"))
    return next((str(side["adapter"]["name"]) for side in sides if "adapter" in side), None)


def extract_command(identity: Mapping[str, Any], *, same: bool = False) -> str:
    """Return the command that makes a store: one of this kind, or the ``same`` one to the last digit.

    What ``--compute-dtype`` and ``--decoder`` choose by themselves depends on the machine. So the command that goes on
    with a store says what they chose; the weights behind ``--weights`` have no name that could be said.
    """
    command = f"madkit extract --teacher {identity.get('teacher')} --task {identity.get('task')}"
    if (adapted := adapter_name(identity)) is not None:
        command += f" --adapter {adapted}"
    if identity.get("dtype", "float16") != "float16":
        command += f" --store-dtype {identity['dtype']}"
    if identity.get("selection", "all") != "all":
        command += f" --tokens {identity['selection']}"
    if same:
        if identity.get("compute_dtype"):
            command += f" --compute-dtype {identity['compute_dtype']}"
        seen = _object(_object(identity, "vision"), "preprocessing")  # a store of another program may hold anything
        if isinstance(seen.get("decoder"), str):
            command += f" --decoder {seen['decoder']}"
        if seen.get("resize_mode") == "squash" and "resize_edge" not in seen and "crop" not in seen:
            command += " --view whole"  # changes nothing for a teacher that squeezes images anyway
    return command


def _object(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = values.get(key)
    return found if isinstance(found, Mapping) else {}
