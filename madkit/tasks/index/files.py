"""Arrow IPC files of one record batch: written atomically, opened as a memory map."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pyarrow as pa

from madkit.core.errors import DataError, NotFoundError
from madkit.core.files import sync_folder

SCHEMA_KEY = b"madkit"
SCHEMA_VERSION = b"1"


def write_batch(path: Path, columns: dict[str, pa.Array]) -> None:
    """Write equally long columns. The file appears under its name only when it is whole.

    Raises DataError where the disk is full or the folder cannot be written; nothing is left behind.
    """
    schema = pa.schema([(name, column.type) for name, column in columns.items()], {SCHEMA_KEY: SCHEMA_VERSION})
    batch = pa.RecordBatch.from_arrays(list(columns.values()), schema=schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with temporary.open("wb") as file:
            with pa.ipc.new_file(file, schema) as writer:
                writer.write_batch(batch)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(f"{path} cannot be written ({error.strerror or error}).", hint="free some space") from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def open_batch(path: Path) -> pa.RecordBatch:
    """The record batch of a file, without reading more than its footer.

    Raises NotFoundError where the file is absent, DataError where it is damaged or of another version.
    """
    hint = "import the data again"
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        version = (reader.schema.metadata or {}).get(SCHEMA_KEY)
        if version != SCHEMA_VERSION:
            raise DataError(f"{path} was written by another version of madkit.", hint=hint)
        if reader.num_record_batches != 1:
            raise DataError(f"{path} is not one of madkit's index files.", hint=hint)
        return reader.get_batch(0)
    except FileNotFoundError:
        raise NotFoundError(f"The index file {path} does not exist.", hint=hint) from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"The index file {path} is damaged ({str(error).splitlines()[0]}).", hint=hint) from None
