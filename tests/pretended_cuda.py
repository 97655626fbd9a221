"""A GPU that computes nothing: on it a tensor of another device is refused, as on a real one.

PyTorch's fake tensors know their shape, dtype and device; tensors of the host stay what they are. A module that is
moved to this GPU keeps its parameters, which change their place, and gets other buffers instead of its own: what
``torch.nn.Module.to`` does between CPU and CUDA. A value that the host would have to wait for is an error, too.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import pytest
import torch
from packaging.version import Version
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import madkit
from madkit.mad.example_means import _column
from madkit.mad.terms import _at_the_first
from madkit.teachers.interface import Teacher, TextOutput, VisionOutput
from madkit.teachers.preprocess import _channels

PACKAGE = Path(madkit.__file__).parent


class _HostIsReal(TorchDispatchMode):
    """Keeps what is on the host from a fake mode around it, until it meets something fake or goes to the GPU."""

    def __init__(self, fake: FakeTensorMode, reads: set[str] | None) -> None:
        super().__init__()
        self._fake = fake
        self._reads = reads

    def _faked(self, value: Any) -> Any:
        real = isinstance(value, Tensor) and not isinstance(value, FakeTensor)
        return self._fake.from_tensor(value) if real else value

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = tree_leaves((args, kwargs))
        if torch.is_inference_mode_enabled() and _is_composite(func):  # they come whole, moves and reads too
            with self:
                return func.decompose(*args, **kwargs)
        if self._reads is not None and (read := _read_back(func, given, kwargs)) is not None:
            self._reads.add(_reader())
            with unset_fake_temporarily():
                return read()
        if self._reads is not None and func is torch.ops.aten.index.Tensor and any(map(_is_mask, args[1])):
            self._reads.add(_reader())  # the host waits for how many are meant: all of them
            args = (args[0], [_all_of(each) if _is_mask(each) else each for each in args[1]])
        elsewhere = any(isinstance(each, torch.device) and each.type != "cpu" for each in given)
        if elsewhere or any(isinstance(each, FakeTensor) for each in given):
            return func(*tree_map(self._faked, args), **tree_map(self._faked, kwargs))
        with unset_fake_temporarily():
            return func(*args, **kwargs)


@contextmanager
def pretended_cuda(reads: set[str] | None = None) -> Iterator[None]:
    """Let modules be moved to a GPU that is not there, and compute there.

    Args:
        reads: gets who has waited for values of the GPU ("madkit/room/module.py function"), which then are zeros, and
            true where a mask is asked; None: whoever waits for one is refused.
    """
    if Version(torch.__version__) < Version("2.11"):
        pytest.skip("fake tensors on a GPU want its driver before PyTorch 2.11")
    to: Any = nn.Module.to

    def moved(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
        if device is None or device.type != "cuda":
            return to(self, *args, **kwargs)
        for module in self.modules():
            for parameter in module._parameters.values():
                if parameter is not None and parameter.device.type != "cuda":
                    _swap(parameter, nn.Parameter(_there(parameter, dtype), requires_grad=parameter.requires_grad))
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = _there(buffer, dtype)
        return self

    _forget_kept_tensors()  # of another pretended GPU, perhaps
    try:
        with patch.object(nn.Module, "to", moved), FakeTensorMode() as fake, _HostIsReal(fake, reads):
            yield
    finally:
        _forget_kept_tensors()


def _forget_kept_tensors() -> None:
    """Small tensors that madkit makes once for a device."""
    for keeps in (_at_the_first, _channels, _column):
        keeps.cache_clear()


def _is_mask(index: Any) -> bool:
    return isinstance(index, FakeTensor) and index.dtype == torch.bool and index.dim() == 1


def _all_of(mask: Tensor) -> Tensor:
    return torch.empty(len(mask), dtype=torch.long, device=mask.device)


def _is_composite(func: Any) -> bool:
    """Whether an operation is made of others alone."""
    known = func.namespace != "prim"  # what a tensor is asked about itself
    return known and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


def _read_back(func: Any, given: list[Any], kwargs: dict[str, Any]) -> Callable[[], Any] | None:
    """What the host gets where an operation brings values of the GPU to it."""
    tensor = next((each for each in given if isinstance(each, FakeTensor)), None)
    if tensor is None or tensor.device.type != "cuda":
        return None
    if func is torch.ops.aten._local_scalar_dense.default:
        # what is asked is whether all is well
        return lambda: True if tensor.dtype == torch.bool else torch.zeros((), dtype=tensor.dtype).item()
    device = kwargs.get("device")
    if func is torch.ops.aten._to_copy.default and device is not None and torch.device(device).type == "cpu":
        kind = kwargs.get("dtype") or tensor.dtype
        return lambda: torch.zeros(tuple(tensor.shape), dtype=kind)
    return None


def _reader() -> str:
    """The innermost function of madkit that is being computed."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):  # whatever the folder around it is called
            function = re.sub(r"\.<locals>\.<\w+comp>$", "", frame.f_code.co_qualname)  # no functions since Python 3.12
            return f"madkit/{path.relative_to(PACKAGE).as_posix()} {function}"
        frame = frame.f_back
    return "elsewhere"


def _there(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    return torch.empty(tensor.shape, dtype=kind, device="cuda")


def _swap(one: Any, other: Any) -> None:
    """``torch.utils.swap_tensors``, which refuses fake tensors for the references that their mode keeps."""
    one.__class__, other.__class__ = other.__class__, one.__class__
    mine, its = dict(one.__dict__), dict(other.__dict__)
    one.__dict__.clear()
    one.__dict__.update(its)
    other.__dict__.clear()
    other.__dict__.update(mine)
    torch._C._swap_tensor_impl(one, other)


def read_everything(teacher: Teacher, texts: list[str]) -> list[VisionOutput | TextOutput]:
    """Encode two pictures and some texts, one of them in windows, on the pretended GPU."""
    found: list[VisionOutput | TextOutput] = []
    if teacher.vision is not None:
        found.append(teacher.vision.encode(torch.zeros(2, 3, *teacher.vision.image_size, dtype=torch.uint8)))
    if teacher.text is not None:
        found += [teacher.text.encode(some) for some in (texts, texts[:1], [" ".join(texts * 5)])]
    return found
