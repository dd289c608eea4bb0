"""Single values go, the others are scaled, and each image decides with its own key."""

import math

import pytest
import torch
from torch import Tensor, nn

from hardy.errors import LayerNotFoundError, ParameterError
from hardy.methods.dropout import CARD, Dropout, KeyedDropout, dropout
from hardy.seeding import fold, keys, root, uniform
from hardy.surgery import capture, set_keys


def key(n: int) -> Tensor:
    return keys(root(0, "test"), torch.arange(n))


def reference(x: Tensor, p: float, key: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for i, row in enumerate(x):
        u = uniform(key[i : i + 1], 0, (row.numel(),))[0]
        for j, value in enumerate(row.flatten()):
            if u[j] >= p:
                out[i].view(-1)[j] = value / (1 - p)
    return out


@pytest.mark.parametrize("shape", [(3, 8), (2, 3, 5, 7), (1, 1, 1, 1), (4,), (0, 3), (2, 3, 4)])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 1.0])
def test_equals_the_slow_reference(shape: tuple[int, ...], p: float) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(dropout(x, p=p, training=True, key=key(shape[0])), reference(x, p, key(shape[0])))


@pytest.mark.parametrize("shape", [(16,), (4, 1, 1), (4, 2, 2), (2, 7, 7)])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_rate_is_p_the_mean_stays_and_values_decide_alone(shape: tuple[int, ...], p: float) -> None:
    n = 1500
    y = dropout(torch.ones(n, *shape), p=p, training=True, key=key(n)).flatten(1)
    assert abs((y == 0).float().mean() - p) < 4 * (p * (1 - p) / y.numel()) ** 0.5
    assert abs(y.mean() - 1) < 4 * (p / (1 - p) / y.numel()) ** 0.5
    both = ((y[:, 0] == 0) & (y[:, 1] == 0)).float().mean()
    assert abs(both - p * p) < 4 * (p * p * (1 - p * p) / n) ** 0.5


def test_equals_torch_in_distribution() -> None:
    torch.manual_seed(0)
    x = torch.ones(4000, 12)
    ours, theirs = dropout(x, p=0.3, training=True, key=key(4000)), nn.Dropout(0.3)(x)
    torch.testing.assert_close(ours.unique(), theirs.unique())
    assert (ours.mean() - theirs.mean()).abs() < 4 * (2 * 0.3 / 0.7 / 48000) ** 0.5
    # the number of dropped values of a row is binomial in both
    for drawn in (ours, theirs):
        assert abs((drawn == 0).sum(1).float().var() / (12 * 0.3 * 0.7) - 1) < 4 * (2 / 4000) ** 0.5


def test_identity_where_there_is_nothing_to_do() -> None:
    x = torch.randn(2, 6)
    assert dropout(x, p=0.5, training=False, key=key(2)) is x
    assert dropout(x, p=0.0, training=True, key=key(2)) is x
    layer = KeyedDropout(p=0.9, seed=0)
    assert layer.eval()(x) is x
    assert (layer.train()(x) == 0).any()
    assert not dropout(x, p=1.0, training=True, key=key(2)).any()


def test_gradient_is_that_of_the_kept_values() -> None:
    x = torch.randn(5, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    y = dropout(x, p=0.4, training=True, key=key(5))
    (g,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(g, torch.where(y == 0, 0.0, 1 / 0.6).double())


def test_rows_do_not_depend_on_the_batch() -> None:
    x, k, order = torch.randn(6, 9), key(6), torch.tensor([5, 0, 3, 1])
    whole = dropout(x, p=0.5, training=True, key=k)
    assert torch.equal(dropout(x[order], p=0.5, training=True, key=k[order]), whole[order])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtype_and_memory_format_stay(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 4, 5).to(dtype, memory_format=torch.channels_last)
    y = dropout(x, p=0.5, training=True, key=key(2))
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y, dropout(x.contiguous(), p=0.5, training=True, key=key(2)))


def test_half_precision_scales_by_the_number_itself() -> None:
    y = dropout(torch.full((1, 64), 3.0).bfloat16(), p=0.1, training=True, key=key(1))
    assert y.max() == torch.tensor(3 / 0.9).bfloat16()  # 1 / 0.9 in bfloat16 is 0.16 % too small


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((3, 8, 1), (8, 8, 2), (8, 8, 2)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


@pytest.mark.parametrize(
    ("sites", "where"), [(("pooled",), "11@input"), (("stage2",), "7"), (("5",), "5"), (("pooled", "7"), "11@input")]
)
def test_attach_drops_there_with_the_rate_and_the_seed_of_the_caller(sites: tuple[str, ...], where: str) -> None:
    model, x = net(), torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    k, names = keys(root(1, "images"), torch.arange(6)), list(model.state_dict())
    before = model.eval()(x)
    model.train()
    with capture(model, [where]) as plain:
        model(x)
    only = tuple(site for site in sites if site != "7")
    with Dropout(p=0.3, sites=only).attach(model, example=x, seed=7) as a, capture(model, [where]) as f:
        assert a.sites == (where,) and list(model.state_dict()) == names and a.notes == ()
        set_keys(model, k)
        model(x)
        mine = fold(fold(k, root(7, f"dropout:{where}")), 0)
        assert torch.equal(f[where], dropout(plain[where], p=0.3, training=True, key=mine))
        assert (f[where] == 0).any() and not (f[where] == 0).all()
    with Dropout(p=0.3, sites=sites).attach(model, example=x, seed=7) as a:
        assert where in a.sites and len(a.sites) == len(sites)
    for norm in (1, 4, 7):
        model[norm].reset_running_stats()
    assert torch.equal(model.eval()(x), before)


def test_the_defaults_are_those_of_the_paper_for_hidden_units() -> None:
    assert Dropout() == Dropout(p=0.5, sites=("pooled",))


def test_dropout_of_the_net_itself_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Dropout(0.25), nn.Dropout(0.0), nn.Linear(16, 2))
    with Dropout().attach(model, example=torch.zeros(1, 3, 4, 4), seed=0) as a:
        assert a.notes == ("the net has dropout of its own, and both act: 2 (p 0.25) (1 in all)",)


@pytest.mark.parametrize("p", [-0.1, 1.5, math.nan])
def test_a_probability_out_of_range_is_an_error(p: float) -> None:
    with pytest.raises(ParameterError, match=r"Dropout: p must be in \[0, 1\]; got"):
        Dropout(p=p)


def test_a_place_that_is_not_there_is_an_error() -> None:
    with pytest.raises(LayerNotFoundError, match="no layer 'fc'"):
        Dropout(sites=("fc",)).attach(net(), example=torch.zeros(1, 3, 8, 8), seed=0)
    headless = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    with pytest.raises(LayerNotFoundError, match="no linear layer"):
        Dropout().attach(headless, example=torch.zeros(1, 3, 4, 4), seed=0)


def test_says_what_it_is() -> None:
    assert "p=0.2" in repr(KeyedDropout(p=0.2, seed=0))
    assert CARD.kind == "layer" and not CARD.live
