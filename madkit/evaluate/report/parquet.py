"""Results as a Parquet file: the rows of the CSV with their types, `seeds` and `per_seed` as lists."""

from __future__ import annotations

from typing import TYPE_CHECKING

from madkit.evaluate.report.text import COLUMNS, flat_rows

if TYPE_CHECKING:
    from madkit.evaluate.results import Results

TEXTS = ("protocol", "task", "source", "revision", "student", "teacher", "arm", "shots", "suite", "metric", "baseline")
COUNTS = ("n_seeds", "n_examples", "n_images", "seeds_needed")


def as_parquet(results: Results) -> bytes:
    """`flat_rows` as a Parquet file. Columns have their types also where a whole column is empty."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    special = {"mini": pa.bool_(), "seeds": pa.list_(pa.int64()), "per_seed": pa.list_(pa.float64())}
    texts = dict.fromkeys((*TEXTS, "vqa_rule"), pa.string())
    types = {**dict.fromkeys(COLUMNS, pa.float64()), **texts, **dict.fromkeys(COUNTS, pa.int64()), **special}
    table = pa.Table.from_pylist(flat_rows(results), schema=pa.schema(list(types.items())))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content
