"""Training on the GPU that computes nothing: mixed arithmetic, backward passes, and streams in which nothing waits.

PyTorch's engine asks the driver for streams and cannot differentiate there, so that the graph is walked here, calling
the derivative of each node; a gradient must have its tensor's device. Micro-batches are made when they are announced,
in the thread that asks for them: modes belong to a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from torch import Tensor

from madkit.distill.batches import page_locked
from madkit.distill.loop import ahead
from madkit.distill.loop.loop import make_accelerator
from tests.pretended_cuda import pretended_cuda


@contextmanager
def training_on_pretended_cuda(reads: set[str]) -> Iterator[None]:
    """Let everything that a run does happen on the GPU. `reads`: see `pretended_cuda`."""
    backward: Any = Tensor.backward
    inference: Any = torch.inference_mode

    def walked(self: Tensor, gradient: Tensor | None = None, *args: Any, **kwargs: Any) -> None:
        if self.device.type == "cuda":
            _differentiate(self)
        else:
            backward(self, gradient, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "backward", walked)
        patch.setattr(Tensor, "pin_memory", lambda self, *_: self)
        patch.setattr(page_locked, "_locked", lambda shape, dtype: torch.empty(shape, dtype=dtype))
        patch.setattr(Tensor, "record_stream", lambda self, stream: None)
        patch.setattr("torch.amp.autocast_mode.torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
        # in inference mode operations reach fake tensors whole, and those do not move between devices
        patch.setattr(torch, "inference_mode", lambda mode=True: torch.no_grad() if mode else inference(mode))
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
        patch.setattr(torch.cuda, "Stream", _Stream)
        patch.setattr(torch.cuda, "Event", _Stream)
        patch.setattr(torch.cuda, "current_stream", _Stream)
        patch.setattr(torch.cuda, "stream", nullcontext)
        patch.setattr(torch.cuda, "mem_get_info", lambda device: (8 * 10**10, 8 * 10**10))
        patch.setattr(torch.cuda, "set_device", lambda device: None)
        patch.setattr(torch.cuda, "synchronize", lambda device=None: None)
        patch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
        patch.setattr(ahead, "ThreadPoolExecutor", AtOnce)
        try:
            with pretended_cuda(reads):
                yield
        finally:  # what comes after in this process computes on the CPU
            AcceleratorState._reset_state(reset_partial_state=True)


def cuda_accelerator(precision: Any) -> Accelerator:
    """An Accelerator as `make_accelerator` would give it where there is a GPU."""
    accelerator = make_accelerator("fp32")
    accelerator.state._mixed_precision = "no" if precision == "fp32" else precision
    accelerator.native_amp = precision != "fp32"
    # the one is brought up to date from the other whenever Accelerate looks at it
    accelerator.state.device = PartialState._shared_state["device"] = torch.device("cuda", 0)
    return accelerator


class _Stream:
    """A stream or an event."""

    def __init__(self, device: Any = None, **_: Any) -> None:
        self.device = device

    def wait_event(self, event: Any) -> None:
        pass

    def wait_stream(self, stream: Any) -> None:
        pass

    def record(self, stream: Any = None) -> None:
        pass

    def record_event(self) -> _Stream:
        return self

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True


class AtOnce:
    """A pool whose work is done when it is handed in."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def submit(self, work: Callable[..., Any], *args: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(work(*args))
        return done

    def shutdown(self, **_: Any) -> None:
        pass

    def __enter__(self) -> AtOnce:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@torch.no_grad()
def _differentiate(loss: Tensor) -> None:
    """Add the gradients of `loss` to the leaves of its graph."""
    assert loss.grad_fn is not None
    first: Any = loss.grad_fn
    waiting: dict[Any, int] = {first: 0}
    found = [first]
    for node in found:
        for following, _ in node.next_functions:
            if following is not None:
                if following not in waiting:
                    found.append(following)
                waiting[following] = waiting.get(following, 0) + 1
    gradients: dict[Any, dict[int, Tensor]] = {node: {} for node in found}
    gradients[first][loss.output_nr] = torch.ones_like(loss)
    ready = [first]
    while ready:
        node = ready.pop()
        mine = gradients.pop(node)
        given: tuple[Tensor | None, ...] = (None,) * len(node.next_functions)
        if hasattr(node, "variable"):
            leaf, gradient = node.variable, mine[0]
            leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
        elif mine:
            metadata = node._input_metadata
            whole = [
                mine[at] if at in mine else torch.zeros(one.shape, dtype=one.dtype, device=one.device)
                for at, one in enumerate(metadata)
            ]
            given = _inputs_of(node, whole)
        for gradient, (following, at) in zip(given, node.next_functions, strict=True):
            if following is None:
                continue
            if gradient is not None:
                shape = _metadata(following, at)
                assert gradient.device == shape.device, (node, following, gradient.device)
                gradient = gradient.sum_to_size(tuple(shape.shape)).to(shape.dtype)
                before = gradients[following].get(at)
                gradients[following][at] = gradient if before is None else before + gradient
            waiting[following] -= 1
            if not waiting[following]:
                ready.append(following)


def _inputs_of(node: Any, gradients: list[Tensor]) -> tuple[Tensor | None, ...]:
    """The gradients of what a node was computed from, one for each of its `next_functions`."""
    if not isinstance(node, torch.autograd.function.BackwardCFunction):
        result = node(*gradients)
        return result if isinstance(result, tuple) else (result,)
    # a function written in Python returns something for each argument, also for those that are no tensors
    result = node.apply(*gradients)
    every = result if isinstance(result, tuple) else (result,)
    asked = iter([one for one, needed in zip(every, node.needs_input_grad, strict=True) if needed])
    return tuple(None if following is None else next(asked) for following, _ in node.next_functions)


def _metadata(node: Any, at: int) -> Any:
    return node.variable if hasattr(node, "variable") else node._input_metadata[at]
