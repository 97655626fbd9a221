"""Processes of one job as a launcher would start them, forked after the imports: python forks.py N ARGUMENTS OF MADKIT.

What the processes print goes to stdout and stderr as it is; the exit status is that of the first one.
"""

from __future__ import annotations

import importlib
import os
import socket
import sys

import torch

from madkit.cli.main import main

torch.set_num_threads(1)
for _name in ("accelerate", "scipy.stats", "madkit.evaluate.sharing"):  # once, and not in every process
    importlib.import_module(_name)

if __name__ == "__main__":
    count = int(sys.argv[1])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
    children = []
    for rank in range(count):
        child = os.fork()
        if not child:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            code = 1
            try:
                code = main(sys.argv[2:])
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print("exit codes", *codes, file=sys.stderr)
    sys.exit(codes[0])
