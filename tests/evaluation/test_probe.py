"""The probe measures slopes that are known in closed form."""

import pytest
import torch
from torch import Tensor, nn

from hardy.evaluation.probe import PROBE, Probe
from hardy.threats import Norm, Threat


class Linear(nn.Module):
    """Two logits, plus and minus the first pixel; its gradient is ``times`` the right one."""

    def __init__(self, times: float = 1.0) -> None:
        super().__init__()
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        a = x.flatten(1)[:, 0] - 0.3
        a = self.times * a + ((1 - self.times) * a).detach()
        return torch.stack([a, -a], dim=1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("times", [1.0, 3.0, 0.25, -1.0])
@pytest.mark.parametrize("n", [1, 5, 40])
def test_slopes_are_those_of_a_linear_net(norm: Norm, times: float, n: int) -> None:
    x = torch.rand(n, 2, 3, 3, generator=torch.Generator().manual_seed(n))
    found = Probe.take(Linear(times).eval(), x, threat=Threat(norm, 0.1))
    torch.testing.assert_close(found.slope, torch.full_like(found.slope, 1 / times), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.reach, torch.full_like(found.reach, 1 / times), rtol=1e-3, atol=1e-3)
    assert found.first.shape == (PROBE, 2) and found.noise < 1e-6 and found.lost == 0
    torch.testing.assert_close(found.other_company, found.first[0])
    assert found.span == pytest.approx(float(found.first.max() - found.first.min()))


class Wide(Linear):
    """Small slopes and outputs far apart, which asks for large steps."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([super().forward(x), torch.full((len(x), 1), -50.0)], dim=1)


def test_small_steps_stay_inside_the_box() -> None:
    seen: list[Tensor] = []
    net = Wide().eval()
    net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    x = torch.rand(8, 2, 3, 3, generator=torch.Generator().manual_seed(0)).round()
    Probe.take(net, x, threat=Threat("linf", 0.1))
    assert [len(points) for points in seen] == [PROBE] * 4
    for points in seen[:3]:
        assert points.min() >= 0 and points.max() <= 1


def test_the_lost_gradient_is_that_of_border_pixels() -> None:
    class Clamped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            a = torch.where((x > 0) & (x < 1) & (x != 0.25), x, x.detach()).flatten(1)
            return torch.stack([2 * a[:, 0] + a[:, 1] + a[:, 2], 0 * a[:, 0]], dim=1)

    x = torch.full((8, 1, 2, 2), 0.5)
    x[:, 0, 0, 1] = 0  # one of the four units of gradient
    x[:, 0, 1, 0] = 0.25  # blind too, but not on the border
    assert Probe.take(Clamped().eval(), x, threat=Threat("linf", 0.1)).lost == pytest.approx(0.25)
