"""Which image file and which texts to show of a cache: those of one example of the data that it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from madkit.cache import TokenCache
from madkit.core.errors import CacheError, NotFoundError
from madkit.core.registry import suggest
from madkit.core.workspace import Workspace
from madkit.look.relevance import Relevance, relevance_of
from madkit.tasks.data import TaskData, find_dataset, open_task
from madkit.tasks.example import Example


@dataclass(frozen=True, slots=True)
class Shown:
    """An example's image file, and its relevant tokens for each text."""

    example: str
    path: Path
    found: tuple[Relevance, ...]


def show_example(
    workspace: Workspace,
    cache: TokenCache,
    *,
    example: str | None = None,
    texts: Sequence[str] = (),
    top: int = 8,
) -> Shown:
    """Choose an example and read what the cache says of it.

    Args:
        workspace: where the data is.
        cache: an open store.
        example: id of an example or a question; the first one that the cache knows where left out.
        texts: other texts of the cache to compare the image with, in place of the example's own: what it asks, and
            its right choice.
        top: patches and words to choose, at most.

    Raises:
        NotFoundError: no such example, or no data.
        CacheError: the cache has no tokens of it.
    """
    data = find_dataset(workspace, str(cache.identity["source"]), str(cache.identity["revision"])) or open_task(
        workspace, str(cache.identity["task"]), build=False, part="auto"
    )
    chosen = _find(data, cache, example)
    said = tuple(texts) or _own_texts(chosen)
    found = tuple(relevance_of(cache, chosen.image.id, text, top=top) for text in said)
    return Shown(chosen.id, chosen.image.path, found)


def _find(data: TaskData, cache: TokenCache, wanted: str | None) -> Example:
    names = cache.identity.get("splits", "all")
    splits = [name for name in ("dev", *data.own_splits()) if name in (data.own_splits() if names == "all" else names)]
    near: list[str] = []
    for split in dict.fromkeys(splits):
        for example in data.examples(split):
            if wanted is None:
                if bool(cache.images.present([example.image.id])[0]):
                    return example
            elif wanted in (example.id, example.question_id):
                return example
            elif len(near) < 5000:
                near.append(example.question_id)
    if wanted is None:
        raise CacheError(f"The cache {cache.path.name} has no values for any image of its data.")
    raise NotFoundError(
        f"{data.name} has no example '{wanted}' in {', '.join(dict.fromkeys(splits))}.{suggest(wanted, near)}",
        hint=f"see some: madkit data show {data.name}",
    )


def _own_texts(example: Example) -> tuple[str, ...]:
    texts = [segment.text for segment in example.context]
    if example.candidates:
        texts.append(example.candidates[example.label or 0].text)
    return tuple(dict.fromkeys(texts))
