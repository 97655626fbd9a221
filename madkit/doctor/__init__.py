"""Whether this machine and a workspace are in order, and the command that mends what is not."""

from __future__ import annotations
