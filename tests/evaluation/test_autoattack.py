"""The standard suite gives the verdicts of AutoAttack-standard, image by image."""

import copy

import pytest
import torch
from torch import Tensor, nn

from hardy.evaluation import Budget, evaluate
from hardy.threats import Norm, Threat

pyautoattack = pytest.importorskip("pyautoattack")


def smoother(net: nn.Module, x: Tensor, y: Tensor, eps: float) -> nn.Module:
    """Train on adversarial images for a moment, so that the two suites have hard images to agree on."""
    made = copy.deepcopy(net)
    optimizer = torch.optim.Adam(made.parameters(), 3e-3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for rows in torch.randperm(len(x)).repeat(3).split(100):
            delta = torch.zeros_like(x[rows])
            for _ in range(3):
                delta.requires_grad_()
                loss = nn.functional.cross_entropy(made((x[rows] + delta).clamp(0, 1)), y[rows])
                (g,) = torch.autograd.grad(loss, delta)
                delta = (delta.detach() + eps / 2 * g.sign()).clamp(-eps, eps)
            optimizer.zero_grad()
            nn.functional.cross_entropy(made((x[rows] + delta).clamp(0, 1)), y[rows]).backward()
            optimizer.step()
    return made.eval()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.8), ("l1", 1.5)])
@pytest.mark.parametrize("robust", [False, True])
def test_verdicts_are_those_of_autoattack_standard(
    net: nn.Module, digits: tuple[Tensor, Tensor], norm: Norm, eps: float, robust: bool
) -> None:
    model = smoother(net, digits[0][:1200], digits[1][:1200], 0.1) if robust else net
    x, y = digits[0][1200:1400], digits[1][1200:1400]
    threat = Threat(norm, eps)
    ours = evaluate(model, x, y, threat=threat, axes=["clean", "white_box"], budget=Budget(noise_draws=2))
    adversary = pyautoattack.AutoAttack(
        model, norm={"linf": "Linf", "l2": "L2", "l1": "L1"}[norm], eps=eps, version="standard", device="cpu", seed=0
    )
    x_adv, _ = adversary.run_standard_evaluation(x, y, batch_size=200)
    theirs = model(x_adv).argmax(dim=1) == y
    standing = ours.outcomes("white_box")
    assert 0.02 < theirs.float().mean() < 0.98  # something to agree on
    assert float((standing == theirs).float().mean()) >= 0.99
    assert standing.float().mean() <= theirs.float().mean() + 0.005
