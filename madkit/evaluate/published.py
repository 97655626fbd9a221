"""Published results of VCR, SNLI-VE and VQA to lay beside one's own: quoted with their sources, never mixed in.

They are of other students, other pretraining and, mostly, other splits than one's own; every report says so, and says
it again where one's own results are on the embedded benchmark.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import resources
from typing import Any

from madkit.evaluate.results import Published, Results

NOTE = (
    "Quoted from the sources named, in percent; nothing here was measured by madkit. They are of other students with "
    "other pretraining, fine-tuned on all labels, and each for the split that it names: look at the split before "
    "comparing."
)
MINI_NOTE = (
    "{names} above: madkit's embedded benchmark, a toy world. Its figures cannot be compared with the published ones, "
    "which are of the real benchmark."
)


def published() -> list[Published]:
    """All quoted results, by data set ("vcr", "snli-ve", "vqa") in the order of the file."""
    import yaml

    text = (resources.files("madkit.evaluate") / "published.yaml").read_text(encoding="utf-8")
    found: list[Published] = []
    for entry in yaml.safe_load(text):
        for row in entry["rows"]:
            metrics: dict[str, Any] = {name: value for name, value in row.items() if name not in ("model", "split")}
            found.append(
                Published(
                    task=entry["data"],
                    data=entry["data"],
                    model=row["model"],
                    split=row["split"],
                    metrics={name: float(value) for name, value in metrics.items()},
                    source=entry["source"],
                    url=entry["url"],
                    note=entry["note"],
                )
            )
    return found


def beside_published(results: Results) -> Results:
    """`results` with the quoted results of the benchmarks that it has tables of, real or embedded."""
    names = {source.task if source.is_mini else source.name for source in results.sources}
    return replace(results, published=tuple(one for one in published() if one.data in names))


def notes(results: Results) -> list[str]:
    """What has to stand beside the quoted results of a document; nothing where it has none."""
    if not results.published:
        return []
    shown = {one.data for one in results.published}
    mini = [source.name for source in results.sources if source.is_mini and source.task in shown]
    return [NOTE, *([MINI_NOTE.format(names=", ".join(dict.fromkeys(mini)))] if mini else [])]
