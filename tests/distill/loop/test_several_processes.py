"""What a loop does because others run it, too."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from accelerate.utils import InitProcessGroupKwargs

from madkit.core.errors import RunError
from madkit.distill.loop import loop
from madkit.distill.loop.step import Stepper
from tests.distill.loop.threaded_ranks import on_ranks
from tests.distill.loop.toy_loop import Killed, Toy, dying_after, train


@pytest.mark.parametrize("batches", [(9, 0), (5, 0, 9), (5, 5, 9)])
def test_processes_that_find_other_checkpoints_all_stop(tmp_path, batches) -> None:
    """Machines without a common folder; 4, 0 and 8 steps have the mean of one of them."""
    for number, count in enumerate(batches):
        if count:
            with pytest.raises(Killed):
                train(tmp_path / str(number), batch=dying_after(count))
    modules = [Toy() for _ in batches]

    def work(accelerator) -> str:
        number = accelerator.process_index
        with pytest.raises(RunError, match="go on from different steps") as caught:
            train(tmp_path / str(number), module=modules[number], accelerator=accelerator)
        return caught.value.message

    told = on_ranks(len(batches), work)
    assert [f"from {count // 4 * 4}:" in one for count, one in zip(batches, told, strict=True)] == [True] * len(told)


def test_gradients_are_averaged_in_one_message() -> None:
    """Those that one process alone has count, too; those that nobody has stay absent."""
    modules = [Toy().double() for _ in range(3)]
    extra = [torch.nn.Parameter(torch.zeros(2, 3)) for _ in modules]
    for module, single in zip(modules, extra, strict=True):
        module.register_parameter("single", single)
    generator = torch.Generator().manual_seed(3)
    given: list[list[Any]] = []
    for rank, module in enumerate(modules):
        parameters = list(module.parameters())
        given.append([torch.randn(one.shape, generator=generator, dtype=one.dtype) for one in parameters])
        for place, (one, grad) in enumerate(zip(parameters, given[rank], strict=True)):
            absent = place == 1 or (place == 2 and rank != 0)
            one.grad = None if absent else grad
    messages = []

    def work(accelerator) -> None:
        reduce = accelerator.reduce
        accelerator.reduce = lambda value, reduction: messages.append(value.dtype) or reduce(value, reduction)
        stepper = Stepper.__new__(Stepper)
        stepper.module, stepper.accelerator = modules[accelerator.process_index], accelerator
        stepper._average_gradients()

    on_ranks(3, work)
    assert len(messages) == 3 * (1 + 2)  # who has a gradient, and the two kinds of numbers
    for module in modules:
        for place, one in enumerate(module.parameters()):
            if place == 1:
                assert one.grad is None
                continue
            known = given[:1] if place == 2 else given
            torch.testing.assert_close(one.grad, sum(grads[place] for grads in known) / 3)


@pytest.mark.parametrize("name", ["WORLD_SIZE", "LOCAL_RANK"])
def test_half_of_a_launchers_variables_make_no_job(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for other in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "2")
    seen: list[dict[str, str]] = []

    def noted(**asked: Any) -> None:
        seen.append({key: value for key, value in os.environ.items() if key in ("WORLD_SIZE", "LOCAL_RANK")})
        assert not asked["cpu"]
        (group,) = (one for one in asked["kwargs_handlers"] if isinstance(one, InitProcessGroupKwargs))
        assert group.to_kwargs() == {"timeout": loop.PATIENCE}

    monkeypatch.setattr(loop, "Accelerator", noted)
    loop.make_accelerator("fp32")
    assert seen == [{}]
    assert os.environ[name] == "2"
