"""The nets for small images against torchvision's ResNet, the paper's figures, and a shortcut written as loops."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock as TheirBlock
from torchvision.models.resnet import Bottleneck as TheirBottleneck
from torchvision.models.resnet import ResNet

from hardy.errors import ParameterError
from hardy.models.cifar_resnet import (
    DEPTHS,
    PadShortcut,
    cifar_resnet18,
    cifar_resnet34,
    cifar_resnet50,
    cifar_resnet_6n2,
)

# of width 8 after torch.manual_seed(0), as the first release drew them
FIRST_WEIGHTS = [-0.15234863758087158, 0.04070888087153435, -0.072135329246521]
PUBLISHED = {20: 0.27, 32: 0.46, 44: 0.66, 56: 0.85, 110: 1.7}  # millions; He et al. 2016, table 6


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("factory", "block", "blocks"),
    [
        (cifar_resnet18, TheirBlock, [2, 2, 2, 2]),
        (cifar_resnet34, TheirBlock, [3, 4, 6, 3]),
        (cifar_resnet50, TheirBottleneck, [3, 4, 6, 3]),
    ],
)
def test_the_deep_nets_are_torchvisions_with_another_stem(
    factory: Callable[..., nn.Module], block: type[nn.Module], blocks: list[int]
) -> None:
    ours = factory(num_classes=10, in_channels=3)
    with torch.device("meta"):
        theirs = ResNet(block, blocks, num_classes=10)
        theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        theirs.maxpool = nn.Identity()
    theirs.load_state_dict(ours.state_dict(), assign=True)  # same names, same shapes
    x = torch.rand(2, 3, 12, 12)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_the_first_weights_of_a_seed_have_not_changed() -> None:
    torch.manual_seed(0)
    net = cifar_resnet18(num_classes=10, in_channels=3, width=8)
    got = [net.conv1.weight[0, 0, 0, 0], net.get_submodule("layer4.1.conv2").weight[1, 2, 0, 1], net.fc.weight[3, 4]]
    torch.testing.assert_close(torch.stack(got), torch.tensor(FIRST_WEIGHTS), atol=1e-6, rtol=0)


@pytest.mark.parametrize("depth", DEPTHS)
def test_depth_and_parameters_are_those_of_the_paper(depth: int) -> None:
    net = cifar_resnet_6n2(depth, num_classes=10, in_channels=3)
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in net.modules()) == depth
    if depth in PUBLISHED:
        assert f"{count(net) / 1e6:.2g}" == f"{PUBLISHED[depth]:.2g}"


def test_projections_add_two_convolutions_and_norms() -> None:
    pad, projection = (cifar_resnet_6n2(20, num_classes=10, in_channels=3, shortcut=s) for s in ("pad", "projection"))
    assert count(pad) == 269_722
    assert count(projection) - count(pad) == 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64


@pytest.mark.parametrize(("extra", "stride", "size"), [(16, 2, 8), (3, 2, 7), (0, 1, 4), (1, 3, 5)])
def test_pad_shortcut_equals_loops(extra: int, stride: int, size: int) -> None:
    x = torch.rand(2, 4, size, size + 1)
    rows, columns = range(0, size, stride), range(0, size + 1, stride)
    want = torch.zeros(2, 4 + extra, len(rows), len(columns))
    for c in range(4):
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                want[:, extra // 2 + c, i, j] = x[:, c, row, column]
    assert torch.equal(PadShortcut(extra, stride)(x), want)


@pytest.mark.parametrize("size", [8, 9, 32, 64])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_takes_any_size_from_8_and_any_channels(size: int, channels: int) -> None:
    net = cifar_resnet_6n2(8, num_classes=7, in_channels=channels, width=5).eval()
    assert net(torch.rand(2, channels, size, size)).shape == (2, 7)
    if size < 64:
        assert cifar_resnet18(num_classes=7, in_channels=channels, width=4).eval()(
            torch.rand(2, channels, size, size)
        ).shape == (2, 7)


def test_stages_halve_the_image_and_double_the_channels() -> None:
    net, seen = cifar_resnet_6n2(14, num_classes=10, in_channels=3, width=6), {}

    def note(name: str, y: Tensor) -> None:
        seen[name] = tuple(y.shape[1:])

    for name in net.stage_names:
        net.get_submodule(name).register_forward_hook(lambda _m, _x, y, name=name: note(name, y))
    net(torch.rand(2, 3, 32, 32))
    assert seen == {"layer1": (6, 32, 32), "layer2": (12, 16, 16), "layer3": (24, 8, 8)}


def test_convolutions_start_with_variance_two_over_fan_out() -> None:
    torch.manual_seed(0)
    for name, conv in cifar_resnet18(num_classes=10, in_channels=3).named_modules():
        if isinstance(conv, nn.Conv2d):
            n, fan_out = conv.weight.numel(), conv.out_channels * conv.kernel_size[0] ** 2
            error = (2 / n) ** 0.5  # relative standard error of the variance of n normal numbers
            assert abs(conv.weight.var().item() * fan_out / 2 - 1) < 5 * error, name


def test_every_parameter_gets_a_gradient() -> None:
    net = cifar_resnet_6n2(8, num_classes=3, in_channels=1)
    net(torch.rand(4, 1, 8, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_wrong_depths_widths_and_shortcuts_are_refused() -> None:
    with pytest.raises(ParameterError, match=r"depth must be 6 n \+ 2 with n >= 1, such as .*; got 18"):
        cifar_resnet_6n2(18, num_classes=10, in_channels=3)
    with pytest.raises(ParameterError, match="depth"):
        cifar_resnet_6n2(2, num_classes=10, in_channels=3)
    with pytest.raises(ParameterError, match="width must be at least 1; got 0"):
        cifar_resnet18(num_classes=10, in_channels=3, width=0)
    with pytest.raises(ParameterError, match="stem_width must be at least 1; got 0"):
        cifar_resnet_6n2(8, num_classes=10, in_channels=3, stem_width=0)
    with pytest.raises(ParameterError, match=r"cannot take 8 away. Make the stem no wider .* or use shortcut='proj"):
        cifar_resnet_6n2(8, num_classes=10, in_channels=3, width=8, stem_width=16)
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ParameterError, match="bottom_scale must be above 0 and finite; got"):
            cifar_resnet18(num_classes=10, in_channels=3, bottom_scale=wrong)


@pytest.mark.parametrize(
    ("width", "scale", "want"), [(64, 0.5, (32, 64)), (64, 0.1, (7, 13)), (100, 0.07, (7, 14)), (10, 0.3, (3, 6))]
)
def test_scaled_widths_are_rounded_up_and_exact_products_stay(width: int, scale: float, want: tuple[int, int]) -> None:
    with torch.device("meta"):
        net = cifar_resnet18(num_classes=10, in_channels=3, width=width, bottom_scale=scale)
    found = [net.get_submodule(f"layer{i}.1.conv2").weight.shape[0] for i in range(1, 5)]
    assert found == [*want, 4 * width, 8 * width] and net.conv1.out_channels == width


def test_a_narrow_stem_is_padded_into_the_first_stage() -> None:
    net = cifar_resnet_6n2(8, num_classes=10, in_channels=3, width=8, stem_width=2).eval()
    shortcut = net.get_submodule("layer1.0.downsample")
    assert isinstance(shortcut, PadShortcut) and (shortcut.before, shortcut.behind, shortcut.stride) == (3, 3, 1)
    assert net(torch.rand(1, 3, 8, 8)).shape == (1, 10)
