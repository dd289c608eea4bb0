"""Noise inside a net: against the same by hand, and against its probability."""

import math

import pytest
import torch
from scipy.special import ndtr
from torch import Tensor, nn

from hardy import seeding
from hardy.diagnosis.feature_noise import feature_scale, noisy_predictions
from hardy.errors import LayerNotFoundError, ParameterError


@pytest.fixture
def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    ).eval()


@pytest.fixture
def x() -> Tensor:
    return torch.rand(20, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def ask(
    net: nn.Module, x: Tensor, *, site: str = "0", stds: tuple[float, ...] = (0.0, 0.5, 2.0), **facts: int
) -> Tensor:
    rows = torch.arange(len(x)) + 100
    return noisy_predictions(net, x, site=site, stds=stds, rows=rows, seed=3, **facts)


def test_equals_noise_added_by_hand(net: nn.Sequential, x: Tensor) -> None:
    found = ask(net, x)
    keys = seeding.fold(seeding.keys(seeding.root(3, "isolation:0"), torch.arange(20) + 100), 0)
    with torch.no_grad():
        y = net[0](x)
        for std, answers in zip((0.0, 0.5, 2.0), found, strict=True):
            assert torch.equal(net[1:](y + std * seeding.normal(keys, 0, y.shape[1:])).argmax(1), answers)


def test_no_noise_changes_nothing_and_nothing_stays_behind(net: nn.Sequential, x: Tensor) -> None:
    state = torch.random.get_rng_state()
    assert torch.equal(ask(net, x, stds=(0.0,))[0], net(x).argmax(1))
    assert not hasattr(net, "_hardy") and not net[0]._forward_hooks
    assert torch.equal(torch.random.get_rng_state(), state)


def test_batches_and_order_do_not_matter(net: nn.Sequential, x: Tensor) -> None:
    whole = ask(net, x)
    assert torch.equal(ask(net, x, batch_size=3), whole)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    kept = {"site": "0", "stds": (0.0, 0.5, 2.0), "seed": 3}
    assert torch.equal(noisy_predictions(net, x[order], rows=order + 100, **kept), whole[:, order])
    other = noisy_predictions(net, x, rows=torch.arange(20) + 100, **{**kept, "seed": 4})
    assert not torch.equal(other, whole)


def test_a_linear_net_flips_as_often_as_it_must() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Identity(), nn.Linear(4, 2, bias=False)).eval()
    net[2].weight.data = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    x = torch.zeros(4000, 1, 2, 2)
    x[:, 0, 0, 0] = 0.5
    kept = noisy_predictions(net, x, site="1", stds=(0.4,), rows=torch.arange(4000), seed=0)[0] == 0
    p = float(ndtr(0.5 / (0.4 * math.sqrt(2))))
    assert abs(float(kept.double().mean()) - p) < 4 * math.sqrt(p * (1 - p) / 4000)


def test_one_call_of_a_layer_that_is_called_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.head = nn.ReLU(), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.act(x.flatten(1))
            out: Tensor = self.head(self.act(y * 0))
            return out

    net, x = Twice().eval(), torch.rand(30, 1, 2, 2)
    first, second = (ask(net, x, site=f"act#{call}", stds=(5.0,))[0] for call in (0, 1))
    assert len(first.unique()) == 1 and len(second.unique()) == 2  # what the first call returns is thrown away


def test_the_scale_of_features(net: nn.Sequential, x: Tensor) -> None:
    with torch.no_grad():
        z, moved = net[0](x), net[0](x.flip(3))
    own, shift = feature_scale(net, x, x.flip(3), x, site="0", batch_size=7)
    assert own == pytest.approx(float(z.std(correction=0)), rel=1e-5)
    assert shift == pytest.approx(float((moved - z).square().mean().sqrt()), rel=1e-5)
    assert math.isnan(feature_scale(net, x, x[:0], x[:0], site="0")[1])


def test_errors(net: nn.Sequential, x: Tensor) -> None:
    with pytest.raises(ParameterError, match=r"stds must be finite numbers of at least 0.*got \[-1.0\]"):
        ask(net, x, stds=(-1.0,))
    with pytest.raises(ParameterError, match="one or more"):
        ask(net, x, stds=())
    with pytest.raises(ParameterError, match="batch_size"):
        ask(net, x, batch_size=0)
    with pytest.raises(LayerNotFoundError, match="no layer"):
        ask(net, x, site="nowhere")
    with pytest.raises(ParameterError, match="eval mode"):
        ask(net.train(), x)
    assert ask(net.eval(), x[:0]).shape == (3, 0)
