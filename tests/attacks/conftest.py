"""A small net whose behaviour is realistic, and images that it gets right."""

import pytest
import torch
from torch import Tensor, nn

from hardy.threats import Norm


@pytest.fixture(scope="module")
def net() -> nn.Module:
    """A random ReLU net with batch norm for 3 x 6 x 6 images, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32, 5),
        )
        made(torch.rand(64, 3, 6, 6))  # statistics that are not the initial ones
    return made.eval()


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.rand(50, 3, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def y(net: nn.Module, x: Tensor) -> Tensor:
    """What the net says, but wrong for the first three images."""
    with torch.no_grad():
        labels = net(x).argmax(dim=1)
    labels[:3] = (labels[:3] + 1) % 5
    return labels


@pytest.fixture(params=["linf", "l2"])
def norm(request: pytest.FixtureRequest) -> Norm:
    chosen: Norm = request.param
    return chosen
