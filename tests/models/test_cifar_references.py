"""Every built-in net but the ResNets against the paper's forward pass, written out on its state dict."""

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.densenet import DenseNet
from torchvision.models.vgg import cfgs, make_layers

from hardy.errors import ParameterError, ShapeError
from hardy.models import build
from hardy.models.cifar_densenet import cifar_densenet121
from hardy.models.cifar_googlenet import TABLE, CifarGoogLeNet, Inception, cifar_googlenet
from hardy.models.cifar_lenet import lenet5
from hardy.models.cifar_senet import SqueezeExcite, cifar_senet18
from hardy.models.cifar_vgg import cifar_vgg16, cifar_vgg19
from hardy.models.cifar_wrn import cifar_wrn

State = Mapping[str, Tensor]


def shaken(net: nn.Module) -> nn.Module:
    """Give norms and biases values that show where they are used."""
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.weight, module.running_var):
                nn.init.uniform_(value, 0.5, 1.5, generator=generator)
            for value in (module.bias, module.running_mean):
                nn.init.normal_(value, 0, 0.2, generator=generator)
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.bias, 0, 0.2, generator=generator)
    return net.double().eval()


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def conv(s: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = s[f"{name}.weight"]
    return F.conv2d(x, weight, s.get(f"{name}.bias"), stride, padding=weight.shape[-1] // 2)


def norm_act(s: State, name: str, x: Tensor) -> Tensor:
    mean, var, weight, bias = (
        s[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return ((x - mean) / (var + 1e-5).sqrt() * weight + bias).relu()


def head(s: State, name: str, x: Tensor) -> Tensor:
    return x.mean((2, 3)) @ s[f"{name}.weight"].T + s[f"{name}.bias"]


@pytest.mark.parametrize(("factory", "table"), [(cifar_vgg16, "D"), (cifar_vgg19, "E")])
def test_the_convolutions_of_vgg_are_torchvisions(factory: object, table: str) -> None:
    ours = shaken(factory(num_classes=10, in_channels=3))  # type: ignore[operator]
    with torch.device("meta"):
        theirs = make_layers(cfgs[table], batch_norm=True)
    state = {k.removeprefix("features."): v for k, v in ours.state_dict().items() if k.startswith("features.")}
    theirs.load_state_dict(state, assign=True)
    x = images(1, 3, 32, 32)
    torch.testing.assert_close(ours(x), head(ours.state_dict(), "classifier", theirs.double().eval()(x)))


@pytest.mark.parametrize(("side", "last"), [(17, 1), (28, 1), (32, 1), (33, 2), (64, 2)])
def test_vgg_takes_17_pixels_and_more_and_keeps_the_last_row_of_odd_maps(side: int, last: int) -> None:
    net = cifar_vgg16(num_classes=10, in_channels=1, width=1)
    assert net.features(torch.rand(2, 1, side, side)).shape[2:] == (last, last)
    assert net(torch.rand(2, 1, side, side)).shape == (2, 10)


@pytest.mark.parametrize("shape", [(16, 32), (32, 16), (8, 8)])
def test_vgg_refuses_images_that_are_too_small_before_it_computes(shape: tuple[int, int]) -> None:
    net = cifar_vgg16(num_classes=10, in_channels=1, width=1)
    net.features.register_forward_pre_hook(lambda *_: pytest.fail("computed"))
    with pytest.raises(
        ShapeError, match=rf"at least 17x17 pixels for five poolings; got {shape[0]}x{shape[1]}. Enlarge"
    ):
        net(torch.rand(2, 1, *shape))


def pre_activation_block(s: State, name: str, x: Tensor, stride: int, *, gate: bool) -> Tensor:
    activated = norm_act(s, f"{name}.bn1", x)
    shortcut = conv(s, f"{name}.downsample", activated, stride) if f"{name}.downsample.weight" in s else x
    y = conv(s, f"{name}.conv2", norm_act(s, f"{name}.bn2", conv(s, f"{name}.conv1", activated, stride)))
    if gate:
        squeezed = conv(s, f"{name}.se.fc1", y.mean((2, 3), keepdim=True)).relu()
        y = y * (1 / (1 + (-conv(s, f"{name}.se.fc2", squeezed)).exp()))
    return y + shortcut


@pytest.mark.parametrize(("depth", "factor"), [(10, 1), (16, 4), (28, 2)])
def test_wide_resnet_is_the_papers(depth: int, factor: int) -> None:
    net, x = shaken(cifar_wrn(depth, factor, num_classes=10, in_channels=3, width=3)), images(2, 3, 13, 12)
    s = net.state_dict()
    y = conv(s, "conv1", x)
    for stage in (1, 2, 3):
        for block in range((depth - 4) // 6):
            stride = 2 if stage > 1 and block == 0 else 1
            y = pre_activation_block(s, f"layer{stage}.{block}", y, stride, gate=False)
    torch.testing.assert_close(net(x), head(s, "fc", norm_act(s, "bn1", y)))


def test_the_first_block_of_wrn_k_1_has_the_identity_as_its_shortcut() -> None:
    assert cifar_wrn(10, 1, num_classes=10, in_channels=3).get_submodule("layer1.0").downsample is None
    assert cifar_wrn(10, 2, num_classes=10, in_channels=3).get_submodule("layer1.0").downsample is not None


# Zagoruyko, Komodakis 2016, table 4
MILLIONS = {(40, 1): 0.6, (40, 2): 2.2, (40, 4): 8.9, (40, 8): 35.7, (28, 10): 36.5, (28, 12): 52.5, (22, 8): 17.2}
MILLIONS |= {(22, 10): 26.8, (16, 8): 11.0, (16, 10): 17.1}


@pytest.mark.parametrize(("depth", "factor"), MILLIONS)
def test_wide_resnets_have_as_many_parameters_as_in_the_papers_table(depth: int, factor: int) -> None:
    with torch.device("meta"):
        net = cifar_wrn(depth, factor, num_classes=10, in_channels=3)
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 1) == MILLIONS[depth, factor]


def test_senet_is_a_pre_activation_resnet_with_gates() -> None:
    net, x = shaken(cifar_senet18(num_classes=10, in_channels=3, width=32)), images(2, 3, 13, 12)
    s = net.state_dict()
    y = norm_act(s, "bn1", conv(s, "conv1", x))
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            stride = 2 if stage > 1 and block == 0 else 1
            y = pre_activation_block(s, f"layer{stage}.{block}", y, stride, gate=True)
    torch.testing.assert_close(net(x), head(s, "fc", y))


@pytest.mark.parametrize(("channels", "inside"), [(64, 4), (512, 32), (16, 1), (3, 1)])
def test_gates_have_a_sixteenth_of_the_channels_and_at_least_one(channels: int, inside: int) -> None:
    assert SqueezeExcite(channels).fc1.out_channels == inside


def test_both_norms_of_a_block_of_senet_feed_a_rectifier() -> None:
    net = cifar_senet18(num_classes=10, in_channels=3, width=4)
    fed: dict[str, str] = {}
    made: dict[int, str] = {}
    kept = []  # so that identities stay unique
    for name, module in net.named_modules():
        if isinstance(module, nn.BatchNorm2d | nn.ReLU):

            def note(_m: nn.Module, given: tuple[Tensor], y: Tensor, name: str = name) -> None:
                kept.append(y)
                if id(given[0]) in made and isinstance(_m, nn.ReLU):
                    fed[made[id(given[0])]] = name
                made[id(y)] = name

            module.register_forward_hook(note)
    net(torch.rand(2, 3, 8, 8))
    blocks = [f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)]
    assert fed == {"bn1": "relu"} | {f"{b}.bn{k}": f"{b}.relu{k}" for b in blocks for k in (1, 2)}
    assert all(type(net.get_submodule(name)) is nn.BatchNorm2d for name in fed)


def test_densenet_is_the_papers() -> None:
    net, x = shaken(cifar_densenet121(num_classes=10, in_channels=3, growth=3)), images(2, 3, 17, 16)
    s = net.state_dict()
    y = conv(s, "features.conv0", x)
    for block, layers in enumerate((6, 12, 24, 16), start=1):
        for layer in range(1, layers + 1):
            name = f"features.denseblock{block}.denselayer{layer}"
            new = conv(s, f"{name}.conv1", norm_act(s, f"{name}.norm1", y))
            y = torch.cat([y, conv(s, f"{name}.conv2", norm_act(s, f"{name}.norm2", new))], dim=1)
        if block < 4:
            name = f"features.transition{block}"
            y = F.avg_pool2d(conv(s, f"{name}.conv", norm_act(s, f"{name}.norm", y)), 2)
    torch.testing.assert_close(net(x), head(s, "classifier", norm_act(s, "features.norm5", y)))


def test_densenet_has_torchvisions_names_without_the_norm_of_its_stem() -> None:
    with torch.device("meta"):
        ours, theirs = cifar_densenet121(num_classes=1000, in_channels=3).state_dict(), DenseNet().state_dict()
    assert theirs.keys() - ours.keys() == {k for k in theirs if k.startswith("features.norm0.")}
    assert ours.keys() <= theirs.keys()
    assert [k for k in ours if ours[k].shape != theirs[k].shape] == ["features.conv0.weight"]


def test_densenet_takes_8_pixels_and_starts_as_torchvisions() -> None:
    torch.manual_seed(0)
    net = cifar_densenet121(num_classes=10, in_channels=3, growth=16)
    assert net.eval()(torch.rand(1, 3, 8, 8)).shape == (1, 10)
    for name in ("features.conv0", "features.denseblock4.denselayer9.conv2"):
        weight = net.get_submodule(name).weight
        fan_in, n = weight[0].numel(), weight.numel()
        assert abs(weight.var().item() * fan_in / 2 - 1) < 4 * (2 / n) ** 0.5, name  # 4 standard errors


def unit(s: State, name: str, x: Tensor) -> Tensor:
    return norm_act(s, f"{name}.bn", conv(s, f"{name}.conv", x))


def test_googlenet_is_the_papers_with_two_small_kernels_for_each_large_one() -> None:
    net, x = shaken(cifar_googlenet(num_classes=10, in_channels=3, width=8)), images(2, 3, 13, 12)
    s = net.state_dict()
    y = unit(s, "conv1", x)
    for name in ("3a", "3b", "pool", "4a", "4b", "4c", "4d", "4e", "pool", "5a", "5b"):
        if name == "pool":
            y = F.max_pool2d(y, 3, 2, padding=1)
            continue
        at = f"inception{name}"
        five = unit(s, f"{at}.branch3.2", unit(s, f"{at}.branch3.1", unit(s, f"{at}.branch3.0", y)))
        pooled = unit(s, f"{at}.branch4.1", F.max_pool2d(y, 3, 1, padding=1))
        three = unit(s, f"{at}.branch2.1", unit(s, f"{at}.branch2.0", y))
        y = torch.cat([unit(s, f"{at}.branch1", y), three, five, pooled], dim=1)
    torch.testing.assert_close(net(x), head(s, "fc", y))


def test_inception_modules_return_the_channels_of_the_papers_table() -> None:
    with torch.device("meta"):
        net: CifarGoogLeNet = cifar_googlenet(num_classes=10, in_channels=3)
    found = {n.removeprefix("inception"): m.channels for n, m in net.named_children() if isinstance(m, Inception)}
    assert found == dict(zip(TABLE, (256, 480, 512, 512, 512, 528, 832, 832, 1024), strict=True))


def lenet(s: State, x: Tensor) -> Tensor:
    for name in ("conv1", "conv2"):
        x = F.max_pool2d(F.conv2d(x, s[f"{name}.weight"], s[f"{name}.bias"]).relu(), 2)
    x = x.flatten(1)
    for name in ("fc1", "fc2"):
        x = (x @ s[f"{name}.weight"].T + s[f"{name}.bias"]).relu()
    return x @ s["fc3.weight"].T + s["fc3.bias"]


def test_lenet_is_two_convolutions_and_three_layers() -> None:
    net, x = shaken(lenet5(num_classes=10, in_channels=3)), images(2, 3, 32, 32)
    torch.testing.assert_close(net(x), lenet(net.state_dict(), x))


@pytest.mark.parametrize("shape", [(28, 28), (31, 32), (8, 9)])
def test_lenet_centres_small_images_in_zeros(shape: tuple[int, int]) -> None:
    net, x = shaken(lenet5(num_classes=10, in_channels=1)), images(2, 1, *shape)
    field = torch.zeros(2, 1, 32, 32, dtype=torch.float64)
    top, left = (32 - shape[0]) // 2, (32 - shape[1]) // 2
    field[:, :, top : top + shape[0], left : left + shape[1]] = x
    torch.testing.assert_close(net(x), lenet(net.state_dict(), field))


def test_lenet_averages_the_maps_of_large_images() -> None:
    net, x = lenet5(num_classes=10, in_channels=1), torch.rand(1, 1, 52, 32)  # maps of 10x5
    seen: list[Tensor] = []
    net.pool2.register_forward_hook(lambda _m, _x, y: seen.append(y))
    net.flatten.register_forward_pre_hook(lambda _m, given: seen.append(given[0]))
    net(x)
    torch.testing.assert_close(seen[1], (seen[0][:, :, ::2] + seen[0][:, :, 1::2]) / 2)


def test_lenet_has_the_number_of_parameters_of_gray_images() -> None:
    assert sum(p.numel() for p in lenet5(num_classes=10, in_channels=1).parameters()) == 61_706


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("cifar_vgg16", {"width": 0}, r"width must be in \[1, 4096\]"),
        ("cifar_vgg16", {"growth": 12}, "cannot be built with .*'growth': 12"),
        ("cifar_densenet121", {"width": 8}, "cannot be built with .*'width': 8"),
        ("cifar_densenet121", {"growth": 513}, r"growth must be in \[1, 512\]; got 513"),
        ("cifar_resnet34", {"bottom_scale": 0.5}, "cannot be built with .*'bottom_scale': 0.5"),
        ("cifar_resnet18", {"bottom_scale": 1e9}, r"bottom_scale must be in \[0.001, 64\]"),
        ("cifar_resnet18", {"stem_width": 8}, "cannot be built with .*'stem_width': 8"),
        ("cifar_resnet20", {"stem_width": 0}, r"stem_width must be in \[1, 4096\]; got 0"),
        ("cifar_resnet20", {"stem_width": 32}, "shortcut 'pad' adds channels"),
        ("lenet5", {"width": 8}, "cannot be built with"),
    ],
)
def test_arguments_that_a_net_does_not_take_are_refused(name: str, args: dict[str, float], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        build(name, args=args)


def test_the_factories_refuse_wrong_widths_and_depths() -> None:
    for factory, who in ((cifar_vgg16, "vgg"), (cifar_senet18, "senet"), (cifar_googlenet, "googlenet")):
        with pytest.raises(ParameterError, match=f"{who}: width must be at least 1; got 0"):
            factory(num_classes=10, in_channels=3, width=0)
    with pytest.raises(ParameterError, match="densenet: growth must be at least 1; got 0"):
        cifar_densenet121(num_classes=10, in_channels=3, growth=0)
    with pytest.raises(ParameterError, match=r"depth must be 6 n \+ 4 with n >= 1, such as 16, 28 or 40; got 18"):
        cifar_wrn(18, 2, num_classes=10, in_channels=3)
    with pytest.raises(ParameterError, match="depth"):
        cifar_wrn(4, 2, num_classes=10, in_channels=3)
    with pytest.raises(ParameterError, match="wrn: width must be at least 1; got 0"):
        cifar_wrn(10, 0, num_classes=10, in_channels=3)
