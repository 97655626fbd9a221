"""What every test runs under: one compute thread per worker, so that workers do not fight over the cores.

The variables must be set before torch or an OpenMP library is loaded, hence here and not in a fixture.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import signal
from collections.abc import Generator
from pathlib import Path
from types import ModuleType

import hypothesis
import pytest

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may need a network
os.environ["NO_COLOR"] = "1"
os.environ["COLUMNS"] = "80"
for _variable in ("MADKIT_WORKSPACE", "MADKIT_CACHE", "MADKIT_DEBUG", "FORCE_COLOR", "RANK"):
    os.environ.pop(_variable, None)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts its background jobs; tests send Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline: a busy two-core machine is not a bug. Derandomised: a red run is red for everyone.
hypothesis.settings.register_profile("madkit", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("madkit")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect tests without collecting garbage: half a million objects of imports live to the end in any case.

    They are put aside afterwards, so that the collector does not look through them again and again while tests run.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


def pytest_unconfigure() -> None:
    """Give back what was put aside: bindings that count their objects would call it leaked when Python ends."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher folder like the embedded one, with random weights (16 channels): ``local:PATH``."""
    folder: Path = tiny_teachers().write_tiny_teacher(tmp_path_factory.mktemp("tiny-teacher"))
    return folder


@pytest.fixture(scope="session")
def wide_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with encoders wide enough for mixed arithmetic."""
    folder: Path = tiny_teachers().write_tiny_teacher(tmp_path_factory.mktemp("wide-teacher"), width=256)
    return folder


def tiny_teachers() -> ModuleType:
    """The module beside this file that writes them."""
    source = Path(__file__).with_name("tiny_teacher.py")
    spec = importlib.util.spec_from_file_location("tiny_teacher", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
