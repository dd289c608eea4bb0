"""The closed form against gradients by autograd."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardy.diagnosis.interference import interference, residuals


def gradients(layer: nn.Linear, h: Tensor, y: Tensor) -> Tensor:
    """Gradients of each image's cross-entropy by all weights of the layer, one by one."""
    rows = []
    for i in range(len(y)):
        found = torch.autograd.grad(F.cross_entropy(layer(h[i : i + 1]), y[i : i + 1]), list(layer.parameters()))
        rows.append(torch.cat([g.flatten() for g in found]))
    return torch.stack(rows)


@pytest.mark.parametrize("bias", [True, False])
def test_equals_cosines_of_gradients_by_autograd(bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 3, bias=bias).double()
    h, y = torch.randn(9, 4).double(), torch.arange(9) % 3
    g = gradients(layer, h, y)
    table = F.cosine_similarity(g[:, None], g[None], dim=2)
    off, same = ~torch.eye(9, dtype=torch.bool), y[:, None] == y[None]
    found = interference(h, layer(h).detach(), y, bias=bias)
    assert found.within.value == pytest.approx(float(table[same & off].mean()))
    assert found.between.value == pytest.approx(float(table[~same].mean()))
    assert found.negative.value == pytest.approx(float((table[off] < 0).double().mean()))
    values = torch.linalg.eigvalsh(table) / 9
    assert found.rank == pytest.approx(math.exp(float(-(values.clamp_min(1e-30).log() * values).sum())), rel=1e-6)
    rest = torch.arange(9) != 4
    again = interference(h[rest], layer(h[rest]).detach(), y[rest], bias=bias)
    assert float(found.within.without[4]) == pytest.approx(again.within.value)
    assert float(found.between.without[4]) == pytest.approx(again.between.value)


def test_the_rank_counts_directions() -> None:
    z, y = torch.zeros(6, 2), torch.tensor([0, 0, 0, 0, 0, 0])
    assert interference(torch.ones(6, 3), z, y, bias=False).rank == pytest.approx(1)
    assert interference(torch.eye(6), z, y, bias=False).rank == pytest.approx(6)
    both = interference(torch.ones(6, 3), z, torch.arange(6) % 2, bias=False)
    assert both.between.value == pytest.approx(-1) and both.within.value == pytest.approx(1)
    assert both.negative.value == pytest.approx(18 / 30)


def test_residuals_keep_digits_where_the_net_is_sure() -> None:
    r = residuals(torch.tensor([[60.0, 0.0, 0.0]]), torch.tensor([0]))
    assert float(r[0, 0]) == pytest.approx(-2 * math.exp(-60), rel=1e-6)
    found = interference(torch.ones(2, 2), torch.tensor([[300.0, 0.0], [280.0, 0.0]]), torch.tensor([0, 0]), bias=True)
    assert found.within.value == pytest.approx(1) and found.used.all()


def test_images_without_a_gradient_are_left_out() -> None:
    z, y = torch.tensor([[5000.0, 0.0], [0.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 0, 1])
    found = interference(torch.ones(3, 2), z, y, bias=False)
    assert found.used.tolist() == [False, True, True]
    assert found.between.value == pytest.approx(-1) and math.isnan(found.within.value)
    nothing = interference(torch.zeros(3, 2), z, y, bias=False)
    assert not nothing.used.any() and math.isnan(nothing.rank)
