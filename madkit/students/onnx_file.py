"""The program of a student as an ONNX file, for runtimes that have neither torch nor madkit.

The file is written by torch's own exporter from the very program that a `.pt2` holds, and compared with the student in
ONNX Runtime. It needs the packages of madkit's extra `onnx`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from madkit.core.errors import RunError

SUFFIX = ".onnx"
OUTPUT = "scores"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check_packages() -> None:
    """Raise RunError where a package is absent that ONNX needs."""
    for name in PACKAGES:
        try:
            import_module(name)
        except ImportError:
            raise RunError(
                f"An ONNX file needs the package {name}, which is not installed.", hint='pip install "madkit[onnx]"'
            ) from None


def save_onnx(program: Any, path: Path, names: Sequence[str], facts: tuple[str, str]) -> None:
    """Write a program of `torch.export` as one ONNX file, weights inside.

    Args:
        program: what `torch.export.export` gave.
        path: the file.
        names: of its inputs, in their order.
        facts: a key and a text of the model's metadata.
    """
    made: Any = torch.onnx.export(
        program, (), dynamo=True, input_names=list(names), output_names=[OUTPUT], verbose=False
    )
    made.model.metadata_props[facts[0]] = facts[1]
    made.save(path, external_data=False)


def open_onnx(path: Path, names: Sequence[str]) -> Callable[..., Tensor]:
    """The program of an ONNX file on the CPU, called as the student is: tensors in the order of `names`."""
    session = _session(path)
    wanted = [one.name for one in session.get_inputs()]  # inputs that a network does not read are none of the file's

    def run(*arguments: Tensor) -> Tensor:
        given = {name: value.numpy() for name, value in zip(names, arguments, strict=True)}
        return torch.from_numpy(session.run(None, {name: given[name] for name in wanted})[0])

    return run


def onnx_metadata(path: Path) -> dict[str, str]:
    """What was written beside the network."""
    found: dict[str, str] = _session(path).get_modelmeta().custom_metadata_map
    return found


def _session(path: Path) -> Any:
    runtime: Any = import_module("onnxruntime")
    return runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
