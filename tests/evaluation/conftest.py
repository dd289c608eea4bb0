"""A small net, trained for a second on the embedded digits, and its twins from other seeds."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn


@pytest.fixture(scope="session")
def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    return torch.tensor(data.images / 16, dtype=torch.float32)[:, None], torch.tensor(data.target)


@pytest.fixture(scope="session")
def trained(digits: tuple[Tensor, Tensor]) -> Callable[[int], nn.Module]:
    x, y = digits[0][:1200], digits[1][:1200]
    made: dict[int, nn.Module] = {}

    def train(seed: int) -> nn.Module:
        if seed not in made:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                net = nn.Sequential(
                    nn.Conv2d(1, 12, 3, padding=1),
                    nn.BatchNorm2d(12),
                    nn.ReLU(),
                    nn.Conv2d(12, 16, 3, stride=2, padding=1),
                    nn.ReLU(),
                    nn.Flatten(),
                    nn.Linear(256, 10),
                )
                optimizer = torch.optim.Adam(net.parameters(), 5e-3)
                for batch in torch.randperm(1200).repeat(4).split(100):
                    optimizer.zero_grad()
                    F.cross_entropy(net(x[batch]), y[batch]).backward()
                    optimizer.step()
                optimizer.zero_grad()
            made[seed] = net.eval()
        return made[seed]

    return train


@pytest.fixture(scope="session")
def net(trained: Callable[[int], nn.Module]) -> nn.Module:
    return trained(0)


@pytest.fixture(scope="session")
def x(digits: tuple[Tensor, Tensor]) -> Tensor:
    return digits[0][1300:1420].clone()


@pytest.fixture(scope="session")
def y(digits: tuple[Tensor, Tensor]) -> Tensor:
    return digits[1][1300:1420].clone()
