from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from madkit.distill.runs.compute import SMALL, check_code, code_identity, parameter_count, settle_threads

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_parameters_are_counted_from_the_header(tmp_path):
    save_file({"a": np.zeros((3, 4), np.float32), "b": np.zeros(5, np.float16)}, tmp_path / "x.safetensors")
    assert parameter_count(tmp_path / "x.safetensors") == 17


def test_small_students_compute_with_one_thread(capsys):
    torch.set_num_threads(3)
    assert settle_threads(0, SMALL, CPU, None) == 3
    assert settle_threads(0, SMALL - 1, torch.device("cuda"), None) == 3
    assert settle_threads(0, SMALL - 1, CPU, None) == 1 == torch.get_num_threads()
    assert settle_threads(2, SMALL - 1, CPU, None) == 2 == torch.get_num_threads()
    assert capsys.readouterr().err == ""


def test_a_run_goes_on_with_the_threads_it_began_with(capsys):
    assert settle_threads(0, 1, CPU, {"threads": 2}) == 2
    assert settle_threads(2, 1, CPU, {"threads": 2}) == 2
    assert settle_threads(0, 1, CPU, {"status": "running"}) == 1  # of an older version
    assert capsys.readouterr().err == ""
    assert settle_threads(1, 1, CPU, {"threads": 2}) == 1
    assert "began with 2 compute threads and goes on with 1" in capsys.readouterr().err


def test_code_that_has_changed_is_told(capsys):
    assert len(code_identity()["sources"]) == 16
    check_code(None)
    check_code({"code": dict(code_identity())})
    assert capsys.readouterr().err == ""
    check_code({"code": {**code_identity(), "sources": "0" * 16}})
    assert "code has changed" in capsys.readouterr().err
