"""A process that has imported everything and forks for each command line it is given, so that hundreds can be killed.

Started by the fixture ``forks``. A request is a JSON line: ``argv`` of madkit, ``processes`` (as a launcher would start
them), and ``kill``: the ``signal`` for process ``rank`` once it has begun ``units`` units or ``seconds`` are over,
whichever is first. The answer has, for each process, its exit code (negative: killed), how many units it began to
write, how many it encoded to their end, and what it printed.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import select
import signal
import socket
import sys
import tempfile
import time
from typing import Any

import torch

from madkit.cache.writer import StoreWriter
from madkit.cli.main import main
from madkit.extract.pipeline import WriterThread

torch.set_num_threads(1)
for _name in ("accelerate", "open_clip", "torch.distributed", "madkit.extract.stage", "madkit.teachers.clip_pair"):
    importlib.import_module(_name)  # once, and not in every process


def start(argv: list[str], environment: dict[str, str], printed: Any) -> tuple[int, int]:
    """Fork a process that runs madkit; return its id and a pipe that gets ``u`` for each unit it begins to write.

    And ``e`` for each that it has encoded to its end and handed over.
    """
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        return child, read
    os.close(read)
    os.environ.update(environment)
    os.dup2(printed.fileno(), 1)
    os.dup2(printed.fileno(), 2)
    faulthandler.dump_traceback_later(100, exit=True)  # no test waits for ever
    os.fsync = lambda descriptor: None  # a kill leaves the page cache alone; only a power cut would need the sync
    real = StoreWriter.write_unit

    def announced(self: StoreWriter, *unit: Any) -> None:
        os.write(write, b"u")
        real(self, *unit)

    handed = WriterThread.put

    def encoded(self: WriterThread, *unit: Any) -> None:
        handed(self, *unit)
        os.write(write, b"e")

    StoreWriter.write_unit = announced
    WriterThread.put = encoded
    code = 1
    try:
        code = main(argv)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(request: dict[str, Any]) -> dict[str, Any]:
    count, kill = request.get("processes", 1), request.get("kill")
    printed = [tempfile.TemporaryFile() for _ in range(count)]  # noqa: SIM115
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
    started = []
    for rank in range(count):
        environment = {**place, "RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {}
        started.append(start(request["argv"], environment, printed[rank]))
    begun, encoded = [0] * count, [0] * count
    if kill is not None:
        child, pipe = started[kill["rank"]]
        end = time.monotonic() + kill["seconds"]
        while begun[kill["rank"]] < kill["units"] and (left := end - time.monotonic()) > 0:
            if select.select([pipe], [], [], left)[0]:
                data = os.read(pipe, 1)
                if not data:
                    break
                begun[kill["rank"]] += data == b"u"
                encoded[kill["rank"]] += data == b"e"
        time.sleep(kill.get("then", 0))
        os.kill(child, kill["signal"])
    codes = []
    for rank, (child, pipe) in enumerate(started):
        while data := os.read(pipe, 100):
            begun[rank] += data.count(b"u")
            encoded[rank] += data.count(b"e")
        os.close(pipe)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    texts = []
    for file in printed:
        file.seek(0)
        texts.append(file.read().decode())
        file.close()
    return {"codes": codes, "begun": begun, "encoded": encoded, "printed": texts}


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        answers.write(json.dumps(run(json.loads(line))) + "\n")
        answers.flush()
