"""The last feature map of nets of every shape: the whole of it, and of its branch."""

import pytest
import torch
from torch import Tensor, nn

import hardy
from hardy.errors import LayerNotFoundError
from hardy.last_map import last_map
from hardy.surgery import capture

X = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Branches(nn.Module):
    """Two branches that are concatenated and taken by a norm; the concatenation itself is no module's output."""

    def __init__(self, known: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 2)
        self.a, self.b = nn.Conv2d(4, 5, 1), nn.Conv2d(4, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(11) if known else None
        self.fc = nn.Linear(11, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).relu()
        z = torch.cat([self.a(y), self.b(y)], dim=1)
        if self.norm is not None:
            z = self.norm(z)
        out: Tensor = self.fc(z.relu().mean((2, 3)))
        return out


@pytest.mark.parametrize(
    ("net", "site"),
    [
        ("cifar_resnet20", "net.layer3.2.conv2"),
        ("cifar_vgg16", "net.features.40"),
        ("cifar_googlenet", "net.inception5b"),
        ("timm:resnet10t", "net.layer4.0.conv2"),  # its shortcut has a convolution, which is called later
        ("timm:mobilenetv2_050", "net.conv_head"),
        ("torchvision:squeezenet1_1", "net.features.12"),
        ("torchvision:densenet121", "net.features.denseblock4"),
    ],
)
def test_it_is_the_last_convolution_or_what_it_is_a_part_of(net: str, site: str) -> None:
    model = hardy.load_model(net, num_classes=4).eval()
    found, note = last_map(model, X)
    assert found == site and bool(note) is (
        net in {"cifar_googlenet", "torchvision:squeezenet1_1", "torchvision:densenet121"}
    )
    with capture(model, [found]) as seen, torch.no_grad():
        model(X)
    assert seen[found].ndim == 4


def test_a_concatenation_is_taken_where_a_module_takes_it() -> None:
    assert last_map(Branches(known=True).eval(), X)[0] == "norm@input"
    site, note = last_map(Branches(known=False).eval(), X)
    assert site == "b" and "no module takes or returns the whole" in note


def test_a_net_without_convolutions_has_none() -> None:
    with pytest.raises(LayerNotFoundError):
        last_map(nn.Sequential(nn.Flatten(), nn.Linear(3072, 3)), X)
