"""A process that trains one run after another for `sweep.run_many`: a JSON line in, a JSON line out.

Loading torch and its company takes longer than a small run, so a worker is asked again as long as there is work. Its
stdout carries answers alone; what the rooms print goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from madkit.core.errors import MadkitError, StoppedResumable
from madkit.core.workspace import Workspace


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Train one run; expected failures become an answer with "error"."""
    from madkit.distill.stage import distill

    workspace = Workspace(Path(request.pop("workspace")), request.pop("cache", None))
    try:
        result = distill(workspace, **request)
    except StoppedResumable:
        raise
    except MadkitError as error:
        return {"error": error.message, "hint": error.hint}
    except Exception as error:  # a failure of one run must not take the others with it
        return {"error": f"unexpected {type(error).__name__}: {error}", "hint": None}
    return {"run": str(result.path), "skipped": result.skipped, "dev": result.dev}


def main() -> int:
    """Answer requests until stdin ends. Returns the exit code: 75 where a signal stopped a run after it was saved."""
    # whatever a library prints must not end up between the answers
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line))
        except StoppedResumable as stop:
            return stop.exit_code
        except KeyboardInterrupt:
            return 130
        answers.write(json.dumps(reply) + "\n")
        answers.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
