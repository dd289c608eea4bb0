"""A user's file is run only when it is named, and its factory gets what its signature asks for."""

import pickle
from pathlib import Path

import pytest
import torch

from hardy.errors import ConfigError, ParameterError
from hardy.models import build

FILE = """
import torch
from torch import nn
from hardy.models import build as build_model

class Net(nn.Module):
    def __init__(self, num_classes=3, in_channels=3):
        super().__init__()
        self.fc = nn.Linear(in_channels, num_classes)
    def forward(self, x):
        return self.fc(x.mean((2, 3)))

def plain():
    return Net()

def wrong(num_classes):
    return "net"

def normalised(num_classes):
    return build_model("cifar_resnet8", num_classes=num_classes)

def broken(num_classes):
    raise RuntimeError("my own bug")

constant = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "nets.py"
    path.write_text(FILE)
    return str(path)


def test_factory_gets_classes_channels_and_seeded_weights(file: str) -> None:
    model = build(f"{file}:Net", num_classes=5, in_channels=2, seed=3)
    assert model.source.builder == "external" and model.source.name == f"{file}:Net"
    assert model.net.fc.weight.shape == (5, 2)
    assert torch.equal(model.net.fc.weight, build(f"{file}:Net", num_classes=5, in_channels=2, seed=3).net.fc.weight)
    x = torch.rand(2, 2, 4, 4)
    torch.testing.assert_close(model(x), model.net(x))  # a user's net gets pixels in [0, 1], unless told otherwise
    assert build(f"{file}:Net", mean=(0.5,) * 3, std=(0.5,) * 3).source.mean == (0.5,) * 3
    assert build(f"{file}:Net").source.num_classes == 3  # the default in its signature
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))  # noqa: S301


def test_a_factory_without_arguments_needs_num_classes(file: str) -> None:
    assert build(f"{file}:plain", num_classes=3).source.num_classes == 3
    with pytest.raises(ParameterError, match="num_classes must be given"):
        build(f"{file}:plain")


def test_a_factory_may_return_a_classifier(file: str) -> None:
    model = build(f"{file}:normalised", num_classes=4)
    assert model.source.name == "cifar_resnet8" and model.source.num_classes == 4
    with pytest.raises(ParameterError, match="has its own mean and std"):
        build(f"{file}:normalised", num_classes=4, mean=(0.0,) * 3)


def test_errors_name_the_factory_and_the_users_own_are_kept(file: str) -> None:
    with pytest.raises(ConfigError, match=r"has no factory 'plane'; did you mean 'plain'\?"):
        build(f"{file}:plane")
    with pytest.raises(ConfigError, match="has no factory 'constant'"):
        build(f"{file}:constant")
    with pytest.raises(ParameterError, match=r"must return an nn.Module; got str"):
        build(f"{file}:wrong", num_classes=2)
    with pytest.raises(RuntimeError, match="my own bug"):
        build(f"{file}:broken", num_classes=2)
    with pytest.raises(ParameterError, match="not allowed; a factory's own arguments"):
        build(f"{file}:plain", num_classes=3, args={"width": 2})
