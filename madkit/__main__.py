"""``python -m madkit``, which is also what ``accelerate launch -m madkit`` starts."""

from __future__ import annotations

import sys

from madkit.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
