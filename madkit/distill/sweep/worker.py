"""A process that trains one run after another for `sweep.run_many`: a JSON line in, a JSON line out.

Loading torch and its company takes longer than a small run, so a worker is asked again as long as there is work. Its
stdout carries answers alone; what the rooms print goes to stderr. It outlives nobody: when its stdin closes, because
the sweep has ended or was killed, it saves the run under way as at a SIGTERM and ends.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from madkit.core.errors import MadkitError, StoppedResumable
from madkit.core.workspace import Workspace


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Train one run; expected failures become an answer with "error", a run that another trains one with "busy"."""
    from madkit.core.free_memory import share_memory
    from madkit.distill.runs.folder import RunBusy
    from madkit.distill.stage import distill

    share_memory(request.pop("beside", 1))
    workspace = Workspace(Path(request.pop("workspace")), request.pop("cache", None))
    try:
        result = distill(workspace, **request)
    except StoppedResumable:
        raise
    except RunBusy as error:
        return {"busy": error.message}
    except MadkitError as error:
        return {"error": error.message, "hint": error.hint}
    except Exception as error:  # a failure of one run must not take the others with it
        return {"error": f"unexpected {type(error).__name__}: {error}", "hint": None}
    return {"run": str(result.path), "skipped": result.skipped, "dev": result.dev}


class _Requests:
    """Lines of stdin, read in a thread, so that its end is seen while a run is under way."""

    def __init__(self) -> None:
        self._unanswered = 0
        self._lock = threading.Lock()
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="madkit-requests", daemon=True).start()

    def _read(self) -> None:
        for line in sys.stdin:
            with self._lock:
                self._unanswered += 1
            self._lines.put(line)
        self._lines.put(None)
        with self._lock:
            if self._unanswered:
                os.kill(os.getpid(), signal.SIGTERM)

    def next(self) -> str | None:
        """The next request, waited for; None where there will be none."""
        return self._lines.get()

    def answered(self) -> None:
        """Say that the request taken last has its answer."""
        with self._lock:
            self._unanswered -= 1


def main() -> int:
    """Answer requests until stdin ends. Returns the exit code: 75 where a signal stopped a run after it was saved."""
    # whatever a library prints must not end up between the answers
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    requests = _Requests()
    while (line := requests.next()) is not None:
        try:
            reply = answer(json.loads(line))
        except StoppedResumable as stop:
            return stop.exit_code
        except KeyboardInterrupt:
            return 130
        answers.write(json.dumps(reply) + "\n")
        answers.flush()
        requests.answered()
    return 0


if __name__ == "__main__":
    sys.exit(main())
