"""Passes that decide run in full float32, and the caller's settings survive."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from hardy.attacks import attack
from hardy.attacks.precision import BACKENDS, full_precision
from hardy.threats import Threat

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def settings() -> Iterator[list[str]]:
    before = [backend.fp32_precision for backend in BACKENDS]
    yield before
    torch.set_float32_matmul_precision("highest")
    for backend, value in zip(BACKENDS, before, strict=True):
        backend.fp32_precision = value


def test_the_old_settings_are_switched_and_put_back() -> None:
    torch.set_float32_matmul_precision("medium")
    before = [backend.fp32_precision for backend in BACKENDS]
    with full_precision(CPU):
        assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.get_float32_matmul_precision() == "medium" and torch.backends.cudnn.allow_tf32
    assert [backend.fp32_precision for backend in BACKENDS] == before


def test_the_new_settings_are_switched_and_put_back(settings: list[str]) -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    before = [backend.fp32_precision for backend in BACKENDS]
    with full_precision(CPU):
        assert {backend.fp32_precision for backend in BACKENDS} == {"ieee"}
    assert [backend.fp32_precision for backend in BACKENDS] == before != settings


def test_settings_survive_an_error() -> None:
    torch.set_float32_matmul_precision("high")
    with pytest.raises(ZeroDivisionError), full_precision(CPU):
        _ = 1 / 0
    assert torch.get_float32_matmul_precision() == "high"


def test_every_verdict_under_autocast_is_made_in_float32(net: nn.Module, x: Tensor, y: Tensor) -> None:
    dtypes: list[tuple[torch.dtype, bool]] = []
    tap = net.register_forward_hook(lambda _, __, out: dtypes.append((out.dtype, torch.is_grad_enabled())))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = attack(net, x, y, "pgd", threat=Threat("linf", 0.02))
    tap.remove()
    assert {dtype for dtype, searching in dtypes if not searching} == {torch.float32}
    with torch.no_grad():
        assert torch.equal(low.clean_correct, net(x).argmax(dim=1) == y)
        assert torch.equal(low.success, net(low.x_adv).argmax(dim=1) != y)
