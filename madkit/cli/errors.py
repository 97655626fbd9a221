"""How a failure looks to the user: one sentence, what to try, and an exit code. Never a traceback unless asked for."""

from __future__ import annotations

import errno
import os
import sys
import traceback

from madkit.cli.elsewhere import placed
from madkit.core.errors import MadkitError

DEBUG_VARIABLE = "MADKIT_DEBUG"


def report(error: Exception) -> int:
    """Write ``error`` to stderr and return the exit code. With ``MADKIT_DEBUG=1`` the traceback comes first."""
    if os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0"):
        traceback.print_exception(error, file=sys.stderr)
    message, hint = explain(error)
    print(f"Error: {message}", file=sys.stderr)
    if hint:
        print(f"Try: {placed(hint)}", file=sys.stderr)
    return error.exit_code if isinstance(error, MadkitError) else 1


def explain(error: Exception) -> tuple[str, str | None]:
    """Return the sentence and the hint for any exception."""
    if isinstance(error, MadkitError):
        return error.message, error.hint
    if isinstance(error, OSError) and error.errno is not None:
        return _explain_system(error)
    # torch.OutOfMemoryError is known by its name: torch may not be imported here
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "There is not enough memory for this.", "use smaller batches, fewer workers, or a larger machine."
    first_line = next(iter(str(error).splitlines()), "")
    return (
        f"Unexpected {type(error).__name__}{': ' if first_line else ''}{first_line}",
        f"the same command with {DEBUG_VARIABLE}=1 shows where; please report it with the output of: madkit env",
    )


def _explain_system(error: OSError) -> tuple[str, str | None]:
    place = f": {error.filename}" if error.filename is not None else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk is full{place}.", "free some space and run the same command again; finished work is kept."
    reason = error.strerror or os.strerror(error.errno or 0)
    hint = None
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        hint = "allow it (chmod), or use a folder of your own: --workspace DIR"
    elif error.errno in (errno.ENOENT, errno.ENOTDIR):
        hint = "check each part of that path: one is not there, or no folder"
    return f"{reason}{place}.", hint
