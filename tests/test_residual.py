"""Sums with a shortcut, in nets that people use and in nets made to mislead."""

from typing import Literal

import pytest
import timm
import torch
from torch import Tensor, nn

from hardy.models.cifar_resnet import cifar_resnet_6n2
from hardy.residual import Block, residual_blocks, residual_branches
from hardy.surgery import Insert, after, capture


def images(size: int) -> Tensor:
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))


class Zero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


class Fork(nn.Module):
    """Adds a part split off to what was made of the other part, as Res2Net does; that is no shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(3, 4, 1), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.conv1(x).chunk(2, 1)
        return (self.conv3(self.conv2(a) + b)).mean((2, 3))


class Slices(Fork):
    """The same with slices."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return torch.relu(self.conv3(torch.relu(self.conv2(x[:, :2])) + x[:, 2:])).mean((2, 3))


class Deep(nn.Module):
    """A shortcut with two convolutions is no projection."""

    def __init__(self) -> None:
        super().__init__()
        self.short = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
        self.branch = nn.Sequential(*[nn.Conv2d(3, 3, 1) for _ in range(4)], nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return (self.short(x) + self.branch(x)).mean((2, 3))


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gamma = nn.Conv2d(3, 3, 1), nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (0.5 * (self.conv(x) * self.gamma) + x).mean((2, 3))


class TestResidual:
    @pytest.mark.parametrize(
        ("name", "count", "first", "last"),
        [
            ("resnet18", 8, "layer1.0.bn2", "layer4.1.bn2"),
            ("seresnet50", 16, "layer1.0.se", "layer4.2.se"),
            ("res2net50_26w_4s", 16, "layer1.0.bn3", "layer4.2.bn3"),
            ("efficientnet_b0", 9, "blocks.1.1.drop_path", "blocks.5.3.drop_path"),
            ("convnext_atto", 12, "stages.0.blocks.0.drop_path", "stages.3.blocks.1.drop_path"),
            (
                "cspdarknet53",
                23,
                "stages.0.blocks.0.drop_path",
                "stages.4.blocks.3.drop_path",
            ),  # the block is half a map
            ("dpn48b", 16, "features.conv2_1.c1x1_c1", "features.conv5_3.c1x1_c1"),  # adds to the first channels
            ("repghostnet_050", 11, "blocks.0.0.ghost2", "blocks.8.3.ghost2"),
            ("resnetv2_50", 16, "stages.0.blocks.0.drop_path", "stages.3.blocks.2.drop_path"),
        ],
    )
    def test_of_timm(self, name: str, count: int, first: str, last: str) -> None:
        found = residual_branches(timm.create_model(name), images(64))
        assert (len(found), found[0], found[-1]) == (count, first, last)

    @pytest.mark.parametrize("name", ["densenet121", "vgg11_bn", "googlenet", "repvgg_a0"])
    def test_nets_without_shortcuts_have_none(self, name: str) -> None:
        assert residual_branches(timm.create_model(name.replace("googlenet", "inception_v3")), images(96)) == ()

    @pytest.mark.parametrize("shortcut", ["pad", "projection"])
    def test_shortcuts_that_change_the_shape(self, shortcut: Literal["pad", "projection"]) -> None:
        net = cifar_resnet_6n2(8, num_classes=3, in_channels=3, width=4, shortcut=shortcut)
        assert residual_branches(net, images(16)) == tuple(f"layer{i}.0.bn2" for i in (1, 2, 3))

    @pytest.mark.parametrize("net", [Fork(), Slices(), Deep()], ids=["split", "slice", "two convolutions"])
    def test_a_part_split_off_and_a_deep_shortcut_are_none(self, net: nn.Module) -> None:
        assert residual_branches(net, images(8)) == ()

    def test_a_scaled_branch_is_found_at_its_module(self) -> None:
        assert residual_branches(Scaled(), images(8)) == ("conv",)

    @pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "convnext_atto"])
    def test_without_its_branches_a_net_is_its_shortcuts(self, name: str) -> None:
        net, x = timm.create_model(name, num_classes=3).eval(), images(64)
        sites = residual_branches(net, x)
        blocks = [site.rpartition(".")[0] for site in sites]
        held = Insert(None, seed=0)
        with (
            after(net, sites, lambda _, __: Zero(), method="zero", example=x, held=held),
            capture(net, [f"{b}@input" for b in blocks] + blocks) as seen,
        ):
            net(x)
        for block in blocks:
            if getattr(net.get_submodule(block), "downsample", None) is None:
                want = seen[f"{block}@input"]
                assert torch.equal(seen[block], want.relu() if name == "resnet18" else want)


class Entries(nn.Module):
    """A block without a module of its own, with a projection, behind a pre-activation that both sides share."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.short, self.conv1 = nn.Conv2d(8, 16, 1, 2), nn.Conv2d(8, 16, 3, 2, padding=1)
        self.deep, self.conv2 = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 16, 1)
        self.squeeze = nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        y = self.conv2(self.deep(torch.relu(self.conv1(x))))
        y = y * self.squeeze(y.mean((2, 3), keepdim=True)).sigmoid()
        return (self.short(x) + y).mean((2, 3))


class TestBlocks:
    def test_blocks_name_their_entry_last_convolution_and_projection(self) -> None:
        assert residual_blocks(Entries(), images(8)) == (
            Block(entry=("conv1@input", "short@input"), conv="conv2", projection="short"),
        )
        blocks = residual_blocks(timm.create_model("resnet18", num_classes=3), images(32))
        assert blocks[0] == Block(("layer1.0.conv1@input",), "layer1.0.conv2", None)
        entry = ("layer2.0.conv1@input", "layer2.0.downsample@input")
        assert blocks[2] == Block(entry, "layer2.0.conv2", "layer2.0.downsample.0")
        assert len(blocks) == 8

    def test_there_are_as_many_as_branches(self) -> None:
        for name in ("res2net50_26w_4s", "regnety_002", "mobilenetv3_small_050"):
            model = timm.create_model(name, num_classes=3)
            assert len(residual_blocks(model, images(64))) == len(residual_branches(model, images(64)))

    def test_a_net_without_sums_has_none(self) -> None:
        assert residual_blocks(Fork(), images(8)) == residual_blocks(Slices(), images(8)) == ()
