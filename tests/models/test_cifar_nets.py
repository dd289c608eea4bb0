"""What holds for every built-in net: published numbers of parameters, maps, gradients, seeds, files, stages."""

import copy
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hardy
from hardy.models import Arg, Classifier, build, rebuild
from hardy.models.registry import BUILTIN


@dataclass(frozen=True)
class Net:
    """A net made small for tests, and what its stages return for 32x32 pixels."""

    name: str
    args: dict[str, Arg] = field(default_factory=dict)
    maps: dict[str, tuple[int, int]] = field(default_factory=dict)  # module -> channels, side
    stages: tuple[tuple[int, int], ...] = ()  # stride and number of convolutions, stem first


SIDES = (32, 16, 8, 4)
LAST = {"BasicBlock": "bn2", "Bottleneck": "bn3", "PreActBlock": "conv2", "SEBlock": "se"}  # what ends a branch


def four(*channels: int) -> dict[str, tuple[int, int]]:
    return {f"layer{i}": (c, s) for i, (c, s) in enumerate(zip(channels, SIDES, strict=False), 1)}


NETS = [
    Net("cifar_resnet18", {"width": 4}, four(4, 8, 16, 32), ((1, 1), (1, 4), (2, 5), (4, 5), (8, 5))),
    Net("cifar_resnet18", {"width": 4, "bottom_scale": 0.5}, four(2, 4, 16, 32)),
    Net("cifar_resnet34", {"width": 4}, four(4, 8, 16, 32), ((1, 1), (1, 6), (2, 9), (4, 13), (8, 7))),
    # a bottleneck has its stride in the middle, so the first 1x1 convolution of a stage counts for the one before
    Net("cifar_resnet50", {"width": 4}, four(16, 32, 64, 128), ((1, 1), (1, 11), (2, 13), (4, 19), (8, 9))),
    Net("cifar_resnet20", {"width": 4}, four(4, 8, 16), ((1, 1), (1, 6), (2, 6), (4, 6))),
    Net("cifar_resnet8", {"width": 8, "stem_width": 2, "shortcut": "projection"}, four(8, 16, 32)),
    Net(
        "cifar_vgg16",
        {"width": 4},
        {"features.5": (4, 32), "features.12": (8, 16), "features.22": (16, 8), "features.42": (32, 2)},
        ((1, 1), (1, 1), (2, 2), (4, 3), (8, 3), (16, 3)),
    ),
    Net(
        "cifar_vgg19",
        {"width": 4},
        {"features.5": (4, 32), "features.12": (8, 16), "features.25": (16, 8), "features.52": (32, 1)},
        ((1, 1), (1, 1), (2, 2), (4, 4), (8, 4), (16, 4)),
    ),
    Net("cifar_wrn28_10", {"width": 1}, four(10, 20, 40), ((1, 1), (1, 9), (2, 9), (4, 9))),
    Net("cifar_wrn16_4", {"width": 2}, four(8, 16, 32), ((1, 1), (1, 5), (2, 5), (4, 5))),
    Net("cifar_wrn40_2", {"width": 2}, four(4, 8, 16), ((1, 1), (1, 13), (2, 13), (4, 13))),
    Net("cifar_wrn16_4", {"width": 2, "activation": "silu", "padding": "same"}, four(8, 16, 32)),
    Net("cifar_preact_resnet18", {"width": 4}, four(4, 8, 16, 32), ((1, 1), (1, 4), (2, 5), (4, 5), (8, 5))),
    Net("cifar_preact_resnet18", {"width": 4, "shortcut": "raw", "final_norm": False}, four(4, 8, 16, 32)),
    Net(
        "cifar_preact_resnet18",
        {"width": 4, "shortcut": "raw_3x3", "activation": "silu", "padding": "same"},
        four(4, 8, 16, 32),
        ((1, 1), (1, 4), (2, 5), (4, 5), (8, 5)),
    ),
    Net(
        "cifar_densenet121",
        {"growth": 4},
        {
            "features.conv0": (8, 32),
            "features.denseblock1": (32, 32),
            "features.transition1": (16, 16),
            "features.transition2": (32, 8),
            "features.transition3": (64, 4),
            "features.norm5": (128, 4),
        },
        ((1, 1), (1, 13), (2, 25), (4, 49), (8, 32)),
    ),
    Net("cifar_senet18", {"width": 16}, four(16, 32, 64, 128), ((1, 1), (1, 4), (2, 5), (4, 5), (8, 5))),
    Net(
        "cifar_googlenet",
        {"width": 8},
        {"conv1": (24, 32), "inception3b": (60, 32), "inception4e": (104, 16), "inception5b": (128, 8)},
        ((1, 1), (1, 14), (2, 35), (4, 14)),
    ),
    Net("lenet5", {}, {"conv1": (6, 28), "pool1": (6, 14), "conv2": (16, 10), "avgpool": (16, 5)}),
]
every_net = pytest.mark.parametrize("net", NETS, ids=lambda n: "-".join([n.name, *map(str, n.args.values())]))


def small(net: Net, num_classes: int = 3, in_channels: int = 3, seed: int = 0) -> Classifier:
    return build(net.name, num_classes=num_classes, in_channels=in_channels, args=net.args, seed=seed)


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


# numbers of parameters, from the tables of layers


def conv(i: int, o: int, kernel: int, *, bias: bool = False) -> int:
    return i * o * kernel**2 + o * bias


def norm(c: int) -> int:
    return 2 * c


def linear(i: int, o: int) -> int:
    return i * o + o


def basic_resnet(blocks: Sequence[int], widths: Sequence[int], *, stem: int, pad: bool = False) -> int:
    total, last = conv(3, stem, 3) + norm(stem), stem
    for i, (n, w) in enumerate(zip(blocks, widths, strict=True)):
        total += conv(last, w, 3) + (2 * n - 1) * conv(w, w, 3) + 2 * n * norm(w)
        total += conv(last, w, 1) + norm(w) if not pad and (i > 0 or last != w) else 0
        last = w
    return total + linear(last, 10)


def resnet50() -> int:
    total, last = conv(3, 64, 3) + norm(64), 64
    for n, w in zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True):
        total += conv(last, 4 * w, 1) + norm(4 * w)  # the projection
        total += conv(last, w, 1) + (n - 1) * conv(4 * w, w, 1) + n * (conv(w, w, 3) + conv(w, 4 * w, 1))
        total += n * (2 * norm(w) + norm(4 * w))
        last = 4 * w
    return total + linear(last, 10)


def vgg(convs: Sequence[int]) -> int:
    total, last = linear(512, 10), 3
    for n, w in zip(convs, (64, 128, 256, 512, 512), strict=True):
        total += conv(last, w, 3, bias=True) + (n - 1) * conv(w, w, 3, bias=True) + n * norm(w)
        last = w
    return total


def wrn(depth: int, k: int) -> int:
    n, last, total = (depth - 4) // 6, 16, conv(3, 16, 3)
    for w in (16 * k, 32 * k, 64 * k):
        total += norm(last) + conv(last, w, 3) + (2 * n - 1) * (norm(w) + conv(w, w, 3))
        total += 0 if last == w else conv(last, w, 1)
        last = w
    return total + norm(last) + linear(last, 10)


def preact_resnet18() -> int:
    total, last = conv(3, 64, 3), 64
    for w in (64, 128, 256, 512):
        total += norm(last) + conv(last, w, 3) + 3 * (norm(w) + conv(w, w, 3))
        total += 0 if last == w else conv(last, w, 1)
        last = w
    return total + norm(last) + linear(last, 10)


def densenet121() -> int:
    total, last = conv(3, 64, 3), 64
    for i, n in enumerate((6, 12, 24, 16)):
        for _ in range(n):
            total += norm(last) + conv(last, 128, 1) + norm(128) + conv(128, 32, 3)
            last += 32
        if i < 3:
            total += norm(last) + conv(last, last // 2, 1)
            last //= 2
    return total + norm(last) + linear(last, 10)


def senet18() -> int:
    total, last = conv(3, 64, 3) + norm(64), 64
    for w in (64, 128, 256, 512):
        total += norm(last) + conv(last, w, 3) + 3 * (norm(w) + conv(w, w, 3))
        total += 2 * (conv(w, w // 16, 1, bias=True) + conv(w // 16, w, 1, bias=True))
        total += 0 if last == w else conv(last, w, 1)
        last = w
    return total + linear(last, 10)


def googlenet() -> int:
    def unit(i: int, o: int, k: int) -> int:
        return conv(i, o, k, bias=True) + norm(o)

    total, last = unit(3, 192, 3), 192
    for a, b, c, d, e, f in (  # Szegedy et al. 2015, table 1
        *((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
        *((192, 96, 208, 16, 48, 64), (160, 112, 224, 24, 64, 64), (128, 128, 256, 24, 64, 64)),
        *((112, 144, 288, 32, 64, 64), (256, 160, 320, 32, 128, 128)),
        *((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
    ):
        total += unit(last, a, 1) + unit(last, b, 1) + unit(b, c, 3)
        total += unit(last, d, 1) + unit(d, e, 3) + unit(e, e, 3) + unit(last, f, 1)
        last = a + c + e + f
    assert last == 1024
    return total + linear(last, 10)


RESNET = (64, 128, 256, 512)
EXACT = {
    "cifar_resnet18": (11_173_962, basic_resnet([2, 2, 2, 2], RESNET, stem=64)),
    "cifar_resnet34": (21_282_122, basic_resnet([3, 4, 6, 3], RESNET, stem=64)),
    "cifar_resnet50": (23_520_842, resnet50()),
    "cifar_resnet20": (269_722, basic_resnet([3] * 3, (16, 32, 64), stem=16, pad=True)),
    "cifar_resnet32": (464_154, basic_resnet([5] * 3, (16, 32, 64), stem=16, pad=True)),
    "cifar_resnet56": (853_018, basic_resnet([9] * 3, (16, 32, 64), stem=16, pad=True)),
    "cifar_vgg16": (14_728_266, vgg([2, 2, 3, 3, 3])),
    "cifar_vgg19": (20_040_522, vgg([2, 2, 4, 4, 4])),
    "cifar_wrn16_4": (2_748_890, wrn(16, 4)),
    "cifar_wrn28_10": (36_479_194, wrn(28, 10)),
    "cifar_wrn40_2": (2_243_546, wrn(40, 2)),
    "cifar_wrn34_10": (46_160_474, wrn(34, 10)),  # "46.2M"; the rest as RobustBench's classes have them
    "cifar_wrn34_15": (103_819_674, wrn(34, 15)),
    "cifar_wrn34_20": (184_531_674, wrn(34, 20)),
    "cifar_wrn70_16": (266_796_506, wrn(70, 16)),
    "cifar_wrn82_8": (79_125_466, wrn(82, 8)),
    "cifar_wrn94_16": (365_915_610, wrn(94, 16)),
    "cifar_wrn106_16": (415_475_162, wrn(106, 16)),
    "cifar_preact_resnet18": (11_172_170, preact_resnet18()),
    "cifar_densenet121": (6_956_298, densenet121()),
    "cifar_senet18": (11_260_354, senet18()),
    "cifar_googlenet": (6_166_250, googlenet()),
    "lenet5": (62_006, 6 * 76 + 16 * 151 + linear(400, 120) + linear(120, 84) + linear(84, 10)),
}


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("name", EXACT)
def test_numbers_of_parameters_are_the_published_ones_and_those_of_the_table_of_layers(name: str) -> None:
    published, formula = EXACT[name]
    with torch.device("meta"):
        net = BUILTIN[name](num_classes=10, in_channels=3)
    assert count(net) == formula == published


@pytest.mark.parametrize(("scale", "channels"), [(0.5, (32, 64)), (0.1, (7, 13)), (2.0, (128, 256)), (4.0, (256, 512))])
def test_bottom_scale_changes_stages_one_and_two_only(scale: float, channels: tuple[int, int]) -> None:
    with torch.device("meta"):
        net = BUILTIN["cifar_resnet18"](num_classes=10, in_channels=3, bottom_scale=scale)
    assert count(net) == basic_resnet([2, 2, 2, 2], (*channels, 256, 512), stem=64)
    assert isinstance(net.get_submodule("layer1.0.downsample"), nn.Sequential)  # its width is not the stem's


def test_resnet32_of_width_four_has_a_narrow_stem_and_a_projection_into_the_first_stage() -> None:
    with torch.device("meta"):
        args = {"width": 64, "stem_width": 16, "shortcut": "projection"}
        net = BUILTIN["cifar_resnet32"](num_classes=10, in_channels=3, **args)
    assert count(net) == basic_resnet([5] * 3, (64, 128, 256), stem=16)
    projection = net.get_submodule("layer1.0.downsample.0")
    assert isinstance(projection, nn.Conv2d) and tuple(projection.weight.shape) == (64, 16, 1, 1)


def test_every_built_in_net_is_tested_here() -> None:
    family = {name for name in BUILTIN if name.removeprefix("cifar_resnet") in {"8", "14", "32", "44", "56", "110"}}
    wide = {name for name in BUILTIN if name.startswith("cifar_wrn")}  # one constructor, three of which are in NETS
    assert set(BUILTIN) - family - wide <= {net.name for net in NETS} and set(BUILTIN) - family <= set(EXACT)


# behaviour


@every_net
def test_maps_have_the_channels_and_sides_of_the_paper(net: Net) -> None:
    model, seen = small(net).eval(), {}
    for name in net.maps:
        model.net.get_submodule(name).register_forward_hook(
            lambda _m, _x, y, name=name: seen.update({name: tuple(y.shape[1:])})
        )
    model(images(1, 3, 32, 32))
    assert seen == {name: (channels, side, side) for name, (channels, side) in net.maps.items()}


@every_net
def test_stages_are_those_of_the_net(net: Net) -> None:
    found = hardy.stages(small(net).eval(), images(1, 3, 32, 32))
    assert [s.name for s in found] == ["stem", *(f"stage{i}" for i in range(1, len(found)))]
    first = next(n for n, m in small(net).named_modules() if isinstance(m, nn.Conv2d))
    assert [c.name for c in found[0].convs] == [first]  # the stem
    if net.stages:
        assert tuple((s.stride, len(s.convs)) for s in found) == net.stages


@every_net
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 28, 28), (4, 33, 47)])
def test_takes_other_sizes_and_channels(net: Net, channels: int, height: int, width: int) -> None:
    model = small(net, num_classes=7, in_channels=channels).eval()
    x = images(2, channels, height, width)
    logits, before = model(x), images(2, channels, height, width)
    assert logits.shape == (2, 7) and logits.isfinite().all()
    assert torch.equal(x, before)  # nothing wrote into the images
    torch.testing.assert_close(model(x[1:]), logits[1:], rtol=1e-4, atol=1e-4)  # a row does not depend on the others


@every_net
def test_every_parameter_gets_a_gradient(net: Net) -> None:
    model = small(net).eval()  # with batch statistics, a bias in front of a norm has none by design
    for name, parameter in model.named_parameters():
        if name.endswith("fc1.bias"):  # in a narrow net a gate has one unit inside, which may start switched off
            nn.init.constant_(parameter, 5.0)
    model(images(4, 3, 32, 32)).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@every_net
def test_residual_tensors_are_not_overwritten(net: Net) -> None:
    model, kept = small(net).train(), []
    for module in model.modules():
        if type(module).__name__.endswith(("Block", "Bottleneck", "Inception")):
            module.register_forward_pre_hook(lambda _m, given: kept.append((given[0], given[0].clone())))
        for part in (LAST.get(type(module).__name__), "downsample"):
            if part is not None and isinstance(getattr(module, part, None), nn.Module):
                module.get_submodule(part).register_forward_hook(lambda _m, _x, y: kept.append((y, y.clone())))
    model(images(2, 3, 32, 32))
    assert kept or net.name.startswith(("cifar_vgg", "lenet"))
    assert all(torch.equal(now, then) for now, then in kept)


@every_net
def test_equal_seeds_give_equal_weights_and_leave_the_global_generator_alone(net: Net) -> None:
    before = torch.get_rng_state()
    first, again, other = small(net, seed=1), small(net, seed=1), small(net, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    weights = [n for n, p in first.named_parameters() if p.ndim > 1]
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in first.state_dict().items())
    assert not any(torch.equal(first.state_dict()[k], other.state_dict()[k]) for k in weights)


@every_net
def test_files_and_copies_give_the_same_logits_to_the_bit(net: Net, tmp_path: Path) -> None:
    model, x = small(net, in_channels=1), images(3, 1, 32, 32)
    model(x)  # moves the running statistics
    logits = model.eval()(x)
    loaded = hardy.load(hardy.save(model, tmp_path / "m.safetensors"))
    assert isinstance(loaded, Classifier) and loaded.source == model.source
    for twin in (loaded, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301
        assert torch.equal(twin(x), logits)
    with torch.device("meta"):
        shapes = rebuild(model.source)
    assert all(p.is_meta for p in shapes.parameters())


@every_net
def test_a_small_step_down_the_gradient_lowers_the_loss_in_train_mode(net: Net) -> None:
    model, x, y = small(net, num_classes=2), images(4, 3, 32, 32), torch.tensor([0, 1, 0, 1])
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    with torch.no_grad():
        length = sum(p.grad.square().sum() for p in model.parameters() if p.grad is not None)
        for p in model.parameters():
            p.sub_(0.01 * loss * p.grad / length)  # one hundredth of the loss, to first order
    assert 0.98 < nn.functional.cross_entropy(model(x), y) / loss < 1
