"""FGSM is the optimum on a linear net, and agrees with torchattacks elsewhere."""

import pytest
import torch
import torchattacks
from torch import Tensor, nn

from hardy.attacks import FGSM, PGD, attack
from hardy.attacks.norms import norm_of
from hardy.threats import Norm, Threat


def linear(weight: Tensor) -> nn.Module:
    made = nn.Linear(weight.shape[1], len(weight), bias=False)
    made.weight = nn.Parameter(weight)
    return nn.Sequential(nn.Flatten(), made).eval()


@pytest.mark.parametrize("each", [FGSM(), PGD(random_start=False)])
def test_reaches_the_closed_form_optimum_on_a_linear_net(each: FGSM | PGD, norm: Norm) -> None:
    w = 0.3 * torch.randn(27, generator=torch.Generator().manual_seed(0))
    w -= w.mean()
    net = linear(torch.stack([w, -w]))
    x = 0.5 + 0.1 * torch.randn(20, 3, 3, 3, generator=torch.Generator().manual_seed(1))  # far from the box
    y = net(x).argmax(dim=1)
    eps = 0.02 if norm == "linf" else 0.1
    found = attack(net, x, y, each, threat=Threat(norm, eps), stop="never")
    sign = torch.where(y == 0, -1.0, 1.0)[:, None, None, None]
    direction = w.sign() if norm == "linf" else w / w.norm()
    torch.testing.assert_close(found.x_adv, x + eps * sign * direction.reshape(3, 3, 3), rtol=0, atol=2e-6)
    dual = w.abs().sum() if norm == "linf" else w.norm()
    torch.testing.assert_close(found.margin, (net(x)[:, 0].abs() * 2 - 2 * eps * dual), rtol=1e-4, atol=1e-5)
    assert torch.equal(found.success, found.margin < 0)
    assert found.success.any() and not found.success.all()


@pytest.mark.parametrize("targeted", [False, True])
def test_agrees_with_torchattacks(net: nn.Module, x: Tensor, y: Tensor, targeted: bool) -> None:
    x, y = x[3:], y[3:]
    other = torchattacks.FGSM(net, eps=0.03)
    targets = (y + 2) % 5 if targeted else None
    if targeted:
        other.set_mode_targeted_by_label(quiet=True)
    want = other(x, y if targets is None else targets)
    got = attack(net, x, y, FGSM(), threat=Threat("linf", 0.03), targets=targets, stop="never").x_adv
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


def test_one_gradient_per_image_no_more(net: nn.Module, x: Tensor, y: Tensor, norm: Norm) -> None:
    found = attack(net, x, y, "fgsm", threat=Threat(norm, 0.1))
    assert found.backward_passes.tolist() == [0] * 3 + [1] * 47
    assert found.forward_passes.tolist() == [1] * 3 + [3] * 47  # plain image, gradient, verification
    assert (norm_of(found.x_adv - x, norm=norm) <= 0.1 + 1e-6).all()
