"""The entry point: runs the application and turns every way to end into an exit code.

Typer carries its own copy of Click, whose exceptions are not Click's: everything here and in the commands comes from
``typer`` alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from typer.main import get_command

from madkit.cli.app import build_app
from madkit.cli.completion import leave_as_given
from madkit.cli.elsewhere import forget, placed
from madkit.cli.errors import report
from madkit.core.console import dressed_by

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code (see :mod:`madkit.core.errors` for the codes).

    Args:
        argv: arguments without the program's name; None takes them from ``sys.argv``.
    """
    forget()
    with dressed_by(placed):
        code = _run(list(sys.argv[1:] if argv is None else argv))
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = _leave_closed_pipe()
    except OSError as error:
        _silence_stdout()
        code = report(error)
    return code


def _run(arguments: list[str]) -> int:
    try:
        root = get_command(build_app())
        leave_as_given(root)  # flags alone
        root(args=arguments, prog_name="madkit")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if code == INTERRUPTED:
            print("Interrupted.", file=sys.stderr)
        return code
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        return _leave_closed_pipe()
    except Exception as error:
        return report(error)
    return 0


def _leave_closed_pipe() -> int:
    """End quietly when the reader of our output went away (``madkit ... | head``)."""
    _silence_stdout()
    return 1


def _silence_stdout() -> None:
    """Point stdout at nothing, or the interpreter's own flush at exit would complain once more."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, sys.stdout.fileno())
    os.close(nothing)
