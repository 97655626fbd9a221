"""Files from the Hugging Face hub or its local cache, or one sentence on how else to get them. Never a long wait."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from madkit.core.console import info
from madkit.core.errors import NotFoundError
from madkit.core.hub import SWITCHED_OFF, why_unreachable


def hub_file(
    repository: str,
    names: Sequence[str],
    *,
    wanted: str,
    hint: str,
    revision: str | None = None,
    former: str | None = None,
) -> Path:
    """Return the first of ``names`` that ``repository`` has, from the local hub cache or downloaded.

    The hub is asked only where it answers: without a network its client would retry for half a minute.

    Args:
        repository: ``owner/name``.
        names: file names, best first.
        wanted: what is wanted, to begin the error's sentence ("the weights of ...").
        hint: how to get the file otherwise.
        revision: branch, tag or commit; None for the main branch.
        former: what the repository was called once, under which caches may still have it.

    Raises:
        NotFoundError: not in the cache, and the hub is switched off, out of reach or without such a file.
    """
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    for known in (repository,) if former is None else (repository, former):
        for name in names:
            cached = try_to_load_from_cache(known, name, revision=revision)
            if isinstance(cached, str):
                return Path(cached)
    reason = SWITCHED_OFF if constants.HF_HUB_OFFLINE else why_unreachable(constants.ENDPOINT)
    if reason is None:
        for name in names:
            try:
                info(f"Fetching {name} of {repository} from the hub.")
                return Path(hf_hub_download(repository, name, revision=revision))
            except Exception as error:  # the hub's client raises several unrelated families of exceptions
                reason = f"{repository} could not be fetched ({type(error).__name__})"
    raise NotFoundError(f"{wanted} are not on this machine, and {reason}.", hint=hint)


def hub_folder(
    repository: str,
    revision: str | None,
    files: Sequence[str],
    weights: Sequence[Sequence[str]],
    *,
    complete: Callable[[Path], bool],
    wanted: str,
    hint: str,
) -> Path:
    """Return a local folder with a repository's files, from the hub cache or downloaded.

    Args:
        repository: ``owner/name``.
        revision: branch, tag or commit; None for the main branch.
        files: names of the small files, those that exist are fetched.
        weights: groups of patterns of weight files, best first; the first group that yields any is enough.
        complete: whether a folder holds all that is needed.
        wanted: as for :func:`hub_file`.
        hint: as for :func:`hub_file`.

    Raises:
        NotFoundError: not in the cache, and the hub is switched off, out of reach or without such files.
    """
    from huggingface_hub import constants, snapshot_download

    for patterns in weights:  # asked for by name: the client calls a copy incomplete that lacks any other file
        wishes = [*files, *patterns]
        with suppress(Exception):
            cached = snapshot_download(repository, revision=revision, allow_patterns=wishes, local_files_only=True)
            if complete(Path(cached)):
                return Path(cached)
    reason = SWITCHED_OFF if constants.HF_HUB_OFFLINE else why_unreachable(constants.ENDPOINT)
    if reason is None:
        try:
            for patterns in weights:
                info(f"Fetching {repository} from the hub.")
                folder = Path(snapshot_download(repository, revision=revision, allow_patterns=[*files, *patterns]))
                if complete(folder):
                    return folder
            reason = f"{repository} holds no weights that can be read safely"
        except Exception as error:
            reason = f"{repository} could not be fetched ({type(error).__name__})"
    raise NotFoundError(f"{wanted} are not on this machine, and {reason}.", hint=hint)
