"""TI-FGSM and its blur against plain loops, torchattacks and a closed form."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
import torchattacks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hardy.attacks import attack
from hardy.attacks.goal import Goal
from hardy.attacks.mi_fgsm import MIFGSM
from hardy.attacks.state import Ball, select
from hardy.attacks.ti_fgsm import TIFGSM, gaussian_blur
from hardy.errors import ParameterError
from hardy.threats import Threat


def path(spec: TIFGSM, net: nn.Module, x: Tensor, y: Tensor, eps: float) -> list[Tensor]:
    """All points in float64, without the engine."""
    goal = Goal(label=y, target=y, must_hit=torch.zeros_like(y, dtype=torch.bool))
    threat = Ball("linf", torch.full((len(x),), eps, dtype=torch.float64))
    state, out = spec.start(x, goal, threat, torch.arange(len(x))), []
    while not spec.finished(state).all():
        leaf = spec.ask(state).x.clone().requires_grad_()
        z = net(leaf)
        (g,) = torch.autograd.grad(spec.loss(z, select(goal, torch.arange(len(x)))).sum(), leaf)
        state = spec.tell(state, z.detach(), g)
        out.append(spec.result(state))
    return out


def slow_blur(values: Tensor, kernel_size: int, reach: float) -> Tensor:
    """One plane, pixel by pixel."""
    h, w = values.shape
    half, sigma = kernel_size // 2, kernel_size // 2 / reach
    span = range(-half, half + 1)
    weight = {(a, b): math.exp(-(a * a + b * b) / (2 * sigma**2)) if half else 1.0 for a in span for b in span}
    total, out = sum(weight.values()), torch.zeros_like(values)
    for i in range(h):
        for j in range(w):
            for (a, b), k in weight.items():
                if 0 <= i + a < h and 0 <= j + b < w:
                    out[i, j] += k / total * values[i + a, j + b]
    return out


@pytest.mark.parametrize(("kernel_size", "reach"), [(1, 3.0), (3, 3.0), (5, 1.5), (15, 3.0)])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 6, 6), (1, 2, 7, 4)])
def test_blur_equals_a_plain_loop(kernel_size: int, reach: float, shape: tuple[int, ...]) -> None:
    values = torch.randn(shape, dtype=torch.float64)
    got = gaussian_blur(values, kernel_size=kernel_size, reach=reach).flatten(0, 1)
    want = torch.stack([slow_blur(plane, kernel_size, reach) for plane in values.flatten(0, 1)])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(half=st.integers(0, 8), reach=st.floats(0.1, 6), h=st.integers(1, 9), w=st.integers(1, 9))
def test_blur_is_an_average_and_its_own_transpose(half: int, reach: float, h: int, w: int) -> None:
    a, b = torch.randn(2, 2, 1, h, w, dtype=torch.float64)
    blur_a, blur_b = (gaussian_blur(v, kernel_size=2 * half + 1, reach=reach) for v in (a, b))
    torch.testing.assert_close((blur_a * b).sum(), (a * blur_b).sum(), rtol=0, atol=1e-10)
    assert (blur_a.abs() <= a.abs().max() + 1e-12).all()


def test_the_default_kernel_has_the_published_width() -> None:
    """Side 15 with three standard deviations to the border: a standard deviation of 7 / 3 pixels, cut at the border."""
    spot = torch.zeros(1, 1, 31, 31, dtype=torch.float64)
    spot[0, 0, 15, 15] = 1
    spec = TIFGSM()
    kernel = gaussian_blur(spot, kernel_size=spec.kernel_size, reach=spec.reach)[0, 0]
    assert float(kernel.sum()) == pytest.approx(1)
    assert float(kernel[15, 15] / kernel[15, 18]) == pytest.approx(math.exp(9 / (2 * (7 / 3) ** 2)))
    assert int((kernel > 0).sum()) == 15 * 15


@pytest.mark.parametrize(("decay", "kernel_size"), [(1.0, 5), (0.0, 3)])
def test_equals_a_plain_loop(net: nn.Module, x: Tensor, y: Tensor, decay: float, kernel_size: int) -> None:
    exact, x, y, eps = copy.deepcopy(net).double(), x[3:9].double(), y[3:9], 0.08
    got = torch.stack(path(TIFGSM(decay=decay, kernel_size=kernel_size, steps=4), exact, x, y, eps))
    for i in range(6):
        x_adv, g = x[i], torch.zeros_like(x[i])
        for t in range(4):
            leaf = x_adv.clone().requires_grad_()
            (grad,) = torch.autograd.grad(F.cross_entropy(exact(leaf[None]), y[i : i + 1]), leaf)
            grad = torch.stack([slow_blur(plane, kernel_size, 3.0) for plane in grad])
            g = decay * g + grad / grad.abs().mean()
            x_adv = (x[i] + (x_adv + eps / 4 * g.sign() - x[i]).clamp(-eps, eps)).clamp(0, 1)
            torch.testing.assert_close(got[t, i], x_adv, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel_size", [3, 7, 15])
def test_equals_torchattacks(net: nn.Module, x: Tensor, y: Tensor, kernel_size: int) -> None:
    exact, x, y = copy.deepcopy(net).double(), x[3:].double(), y[3:]
    other = torchattacks.TIFGSM(
        exact, eps=0.05, alpha=0.011, steps=7, decay=0.9, len_kernel=kernel_size, nsig=3, diversity_prob=0.0
    )
    other.stacked_kernel = other.stacked_kernel.double()  # rounded to float32 before
    got = path(TIFGSM(steps=7, step_size=0.011, decay=0.9, kernel_size=kernel_size), exact, x, y, 0.05)[-1]
    assert ((got - other(x, y)).abs() < 1e-7).float().mean() > 0.999  # a sign may hang on the rounded kernel


def test_a_kernel_of_one_pixel_is_mi_fgsm(net: nn.Module, x: Tensor, y: Tensor) -> None:
    specs = (TIFGSM(kernel_size=1), MIFGSM())
    a, b = (attack(net, x, y, spec, threat=Threat("linf", 0.03)) for spec in specs)
    assert torch.equal(a.x_adv, b.x_adv) and a.passes == b.passes


def test_reaches_the_corner_of_the_blurred_weights_on_a_linear_net() -> None:
    head = nn.Linear(75, 2).eval()
    net, x = nn.Sequential(nn.Flatten(), head).eval(), torch.full((4, 3, 5, 5), 0.5)
    with torch.no_grad():
        y = net(x).argmax(dim=1)
    w = (head.weight[1 - y] - head.weight[y]).detach().reshape(x.shape)
    blurred = torch.stack([torch.stack([slow_blur(plane, 3, 1.0) for plane in row]) for row in w])
    found = attack(net, x, y, TIFGSM(kernel_size=3, reach=1.0), threat=Threat("linf", 0.1), stop="never")
    torch.testing.assert_close(found.x_adv, x + 0.1 * blurred.sign(), rtol=0, atol=1e-6)


def test_verdicts_do_not_depend_on_batches(net: nn.Module, x: Tensor, y: Tensor) -> None:
    threat, order, spec = Threat("linf", 0.03), torch.randperm(50), TIFGSM(kernel_size=3)
    whole = attack(net, x, y, spec, threat=threat)
    parts = attack(net, x[order], y[order], spec, threat=threat, rows=order, batch_size=7)
    clear = whole.margin[order].abs() > 1e-5
    assert clear.sum() > 40 and torch.equal(whole.success[order][clear], parts.success[clear])


def test_defaults_are_published() -> None:
    assert TIFGSM() == TIFGSM(steps=10, step_size=None, decay=1.0, kernel_size=15, reach=3.0, stop="first_success")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "TIFGSM: steps must be at least 1"),
        ({"kernel_size": 4}, "kernel_size must be odd and at least 1; got 4"),
        ({"kernel_size": -1}, "kernel_size must be odd and at least 1; got -1"),
        ({"reach": 0.0}, "reach must be above 0 and finite"),
    ],
)
def test_wrong_settings_are_errors(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        TIFGSM(**wrong)  # type: ignore[arg-type]
