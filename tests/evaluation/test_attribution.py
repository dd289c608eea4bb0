"""The default attribution in closed form; what a callable must give, and that the model is left as it was."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hardy.errors import DataError, HardyError, ShapeError
from hardy.evaluation.attribution import attribution_name, attributions, saliency
from hardy.evaluation.context import Context
from hardy.evaluation.material import Material
from hardy.threats import Threat


def linear(c: int, h: int, w: int, classes: int = 3) -> tuple[nn.Module, Tensor]:
    layer = nn.Linear(c * h * w, classes)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(classes, c * h * w, generator=torch.Generator().manual_seed(0)))
    return nn.Sequential(nn.Flatten(), layer).eval(), layer.weight.detach().reshape(classes, c, h, w)


def images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def context_of(model: nn.Module, x: Tensor, y: Tensor, **facts: Any) -> Context:
    rows = torch.arange(len(x))
    threat = Threat("linf", 0.1)
    return Context(model=model, x=x, y=y, rows=rows, predictions=y, num_classes=3, threat=threat, **facts)


@pytest.mark.parametrize("shape", [(7, 3, 6, 6), (2, 1, 8, 8), (1, 2, 5, 7)])
def test_the_saliency_of_a_linear_net_is_the_size_of_its_weights(shape: tuple[int, ...]) -> None:
    model, weight = linear(*shape[1:])
    y = torch.arange(shape[0]) % 3
    torch.testing.assert_close(saliency(model, images(*shape), y), weight[y].abs().amax(dim=1))


def test_it_is_the_slope_of_the_logit_and_not_of_a_saturated_probability() -> None:
    model, weight = linear(1, 4, 4)
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([1e4, 0.0, 0.0]))  # type: ignore[index,union-attr]
    got = saliency(model, images(2, 1, 4, 4), torch.tensor([0, 0]))
    torch.testing.assert_close(got, weight[[0, 0], 0].abs())


def test_a_gradient_that_is_not_finite_counts_as_none() -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            total = x.flatten(1).sum(dim=1)
            return torch.stack([total.sqrt(), total], dim=1)

    x = torch.zeros(2, 1, 4, 4)
    x[1] = 0.25  # sum 4
    got = saliency(Root().eval(), x, torch.tensor([0, 0]))
    assert torch.equal(got, torch.stack([torch.zeros(4, 4), torch.full((4, 4), 0.25)]))


def test_batches_do_not_matter_and_the_model_is_left_as_it_was(net: nn.Module, x: Tensor, y: Tensor) -> None:
    state = {name: value.clone() for name, value in net.state_dict().items()}
    small, large = (attributions(context_of(net, x[:30], y[:30], batch_size=size)) for size in (7, 128))
    assert small.shape == (30, 8, 8) and not small.requires_grad and bool((small >= 0).all())
    torch.testing.assert_close(small, large, rtol=1e-5, atol=1e-6)
    assert all(p.grad is None for p in net.parameters()) and not net.training
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("grad", [False, True])
def test_a_callable_sees_batches_with_gradients_on_and_may_do_what_it_likes_to_the_model(grad: bool) -> None:
    model, weight = linear(3, 4, 4)
    seen: list[int] = []

    def times_input(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        seen.append(len(x))
        model.train()
        x.requires_grad_()
        model(x).gather(1, y[:, None]).sum().backward()
        assert x.grad is not None
        return (x * x.grad).sum(dim=1).double()

    x, y = images(5, 3, 4, 4), torch.tensor([0, 1, 2, 1, 0])
    material = Material(attribution=times_input)
    with torch.set_grad_enabled(grad):
        got = attributions(context_of(model, x, y, batch_size=2, material=material))
    torch.testing.assert_close(got, (x * weight[y]).sum(dim=1))
    assert seen == [2, 2, 1] and got.dtype == torch.float32 and not got.requires_grad and not x.requires_grad
    assert not model.training and all(p.grad is None for p in model.parameters())


def per_channel(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return x.clone()


def one_nan(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    made = x[:, 0].clone()
    made[1, 2, 2] = math.nan
    return made


@pytest.mark.parametrize(
    ("attribution", "error", "text"),
    [
        (per_channel, ShapeError, r"per_channel: .* \(4, 5, 5\); got torch.float32 \(4, 3, 5, 5\)"),
        (lambda _m, x, _y: x[:2, 0], ShapeError, r"got torch.float32 \(2, 5, 5\)"),
        (lambda _m, x, _y: x[:, 0].long(), ShapeError, r"got torch.int64 \(4, 5, 5\)"),
        (lambda *_: [0.0], ShapeError, "got list"),
        (one_nan, DataError, "one_nan: attributions must be finite; got NaN or infinity in 1 of 4 images"),
        (lambda _m, x, _y: x[:, 0] / 0, DataError, "in 4 of 4 images"),
    ],
)
def test_what_a_callable_gives_is_checked(attribution: Callable[..., Any], error: type[HardyError], text: str) -> None:
    model, _ = linear(3, 5, 5)
    context = context_of(model, images(4, 3, 5, 5), torch.zeros(4).long(), material=Material(attribution=attribution))
    with pytest.raises(error, match=text):
        attributions(context)


def test_attributions_have_names() -> None:
    assert attribution_name(None) == "gradient of the true class's logit"
    assert attribution_name(one_nan) == "one_nan"
