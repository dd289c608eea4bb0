"""The control: every draw is on budget, the worst is kept, and both kinds of noise occur."""

import pytest
import torch
from torch import Tensor, nn

from hardy.attacks import Noise, attack
from hardy.attacks.goal import Goal
from hardy.attacks.norms import norm_of
from hardy.attacks.state import Ball
from hardy.errors import ParameterError
from hardy.threats import Norm, Threat


def points(norm: Norm, draws: int, eps: float) -> Tensor:
    """All draws for eight gray images, far from the box."""
    x = torch.full((8, 1, 5, 5), 0.5)
    zeros = torch.zeros(8, dtype=torch.int64)
    goal, attack_ = Goal(zeros, zeros, zeros.bool()), Noise(draws=draws)
    state, out = attack_.start(x, goal, Ball(norm, torch.full((8,), eps)), torch.arange(8)), []
    while not attack_.finished(state).all():
        query = attack_.ask(state)
        assert not query.gradient
        out.append(query.x - x)
        state = attack_.tell(state, torch.zeros(8, 2), None)
    return torch.stack(out)


def test_linf_alternates_uniform_noise_and_corners() -> None:
    made = points("linf", 100, 0.1)
    even, odd = (made[i::2] for i in (0, 1))
    torch.testing.assert_close(odd.abs(), torch.full_like(odd, 0.1))
    assert even.abs().max() <= 0.1 + 1e-6
    bound = 4 / even.numel() ** 0.5  # four standard errors
    assert abs(odd.sign().mean()) < bound and abs(even.mean()) < 0.1 * bound
    assert abs(even.var() / (0.1**2 / 3) - 1) < 4 * (4 / 5 / even.numel()) ** 0.5  # kurtosis of a uniform is 9/5


def test_l2_is_a_new_direction_each_time() -> None:
    delta = points("l2", 100, 0.3).flatten(2)
    torch.testing.assert_close(delta.norm(dim=2), torch.full((100, 8), 0.3), rtol=1e-4, atol=0)
    cosine = (delta[1:] * delta[:-1]).sum(dim=2) / 0.3**2
    assert abs(cosine.mean()) < 4 * (1 / 25 / cosine.numel()) ** 0.5  # variance 1/d


def test_l1_fills_the_ball_anew_each_time() -> None:
    delta = points("l1", 100, 2.0).flatten(2)
    length = delta.abs().sum(dim=2) / 2
    assert length.max() <= 1 + 1e-6 and abs(length.mean() - 25 / 26) < 4 * 0.038 / 800**0.5  # of u^(1/d), d = 25
    share = delta[1:] * delta[:-1]
    assert abs(share.mean() / share.std()) < 4 / share.numel() ** 0.5


def test_keeps_the_worst_draw(net: nn.Module, x: Tensor, y: Tensor, norm: Norm) -> None:
    threat, seen = Threat(norm, 0.05), []
    tapped = net.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].clone(), output.detach())))
    found = attack(net, x[3:4], y[3:4], Noise(draws=6), threat=threat, stop="never")
    tapped.remove()
    assert len(seen) == 1 + 6 + 1
    margins = []
    for _, z in seen[1:7]:
        own = z[0, y[3]]
        margins.append(float(own - torch.cat([z[0, : y[3]], z[0, y[3] + 1 :]]).max()))
    assert float(found.margin) == pytest.approx(min(margins), abs=1e-6)
    assert torch.equal(found.x_adv, seen[1 + margins.index(min(margins))][0][:1])
    assert norm_of(found.x_adv - x[3:4], norm=norm) <= 0.05 + 1e-6


def test_needs_a_draw() -> None:
    with pytest.raises(ParameterError, match="draws must be at least 1; got 0"):
        Noise(draws=0)
