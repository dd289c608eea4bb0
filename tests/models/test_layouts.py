"""Weights in other people's names give the logits that their own code gives.

The references read a state dict by its names, as the code that wrote it does: TRADES (github.com/yaodongyu/TRADES),
pytorch-cifar (github.com/kuangliu/pytorch-cifar), and DeepMind's adversarial_robustness
(github.com/google-deepmind/deepmind-research), all of them as RobustBench has them.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import hardy
from hardy.errors import CheckpointError, HardyWarning, ParameterError
from hardy.models import Arg, Classifier, build
from hardy.models.layouts import our_names, split_normalisation

State = dict[str, Tensor]
MU, SIGMA = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


# how their code computes


def norm(s: State, name: str, x: Tensor) -> Tensor:
    values = (s[f"{name}.{each}"] for each in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, *values)  # type: ignore[arg-type]


def conv(s: State, name: str, x: Tensor, stride: int = 1, pad: tuple[int, int, int, int] | None = None) -> Tensor:
    weight = s[f"{name}.weight"]
    if pad is None:
        pad = (weight.shape[-1] // 2,) * 4
    return F.conv2d(F.pad(x, pad), weight, stride=stride)


def head(s: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x.mean(dim=(2, 3)), s[f"{name}.weight"], s[f"{name}.bias"])


def trades(s: State, x: Tensor) -> Tensor:
    x = conv(s, "conv1", x)
    for b in (1, 2, 3):
        for i in (0, 1):
            p, stride = f"block{b}.layer.{i}", 2 if (i, b) in {(0, 2), (0, 3)} else 1
            a = norm(s, f"{p}.bn1", x).relu()
            inside = norm(s, f"{p}.bn2", conv(s, f"{p}.conv1", a, stride)).relu()
            shortcut = conv(s, f"{p}.convShortcut", a, stride) if i == 0 else x
            x = shortcut + conv(s, f"{p}.conv2", inside)
    return head(s, "fc", norm(s, "bn1", x).relu())


def kuangliu(s: State, x: Tensor) -> Tensor:
    x = norm(s, "bn1", conv(s, "conv1", x)).relu()
    for b in (1, 2, 3, 4):
        for i in (0, 1):
            p, first = f"layer{b}.{i}", i == 0 and b > 1
            inside = norm(s, f"{p}.bn1", conv(s, f"{p}.conv1", x, 1 + first)).relu()
            shortcut = norm(s, f"{p}.shortcut.1", conv(s, f"{p}.shortcut.0", x, 2)) if first else x
            x = (shortcut + norm(s, f"{p}.bn2", conv(s, f"{p}.conv2", inside))).relu()
    return head(s, "linear", x)


def preact(s: State, x: Tensor, *, raw: bool) -> Tensor:
    x = conv(s, "conv1", x)
    for b in (1, 2, 3, 4):
        for i in (0, 1):
            p, first = f"layer{b}.{i}", i == 0 and b > 1
            a = norm(s, f"{p}.bn1", x).relu()
            inside = norm(s, f"{p}.bn2", conv(s, f"{p}.conv1", a, 1 + first)).relu()
            shortcut = conv(s, f"{p}.shortcut.0", x if raw else a, 2) if first else x
            x = shortcut + conv(s, f"{p}.conv2", inside)
    return head(s, "linear", norm(s, "bn", x).relu() if "bn.weight" in s else x)


def deepmind(s: State, x: Tensor) -> Tensor:
    x = conv(s, "init_conv", x)
    for b in (0, 1, 2):
        for i in (0, 1):
            p, stride = f"layer.{b}.block.{i}", 2 if i == 0 and b > 0 else 1
            a = F.silu(norm(s, f"{p}.batchnorm_0", x))
            inside = conv(s, f"{p}.conv_0", a, stride, (0, 1, 0, 1) if stride == 2 else None)
            shortcut = conv(s, f"{p}.shortcut", a, stride) if i == 0 else x
            x = shortcut + conv(s, f"{p}.conv_1", F.silu(norm(s, f"{p}.batchnorm_1", inside)))
    return head(s, "logits", F.silu(norm(s, "batchnorm", x)))


def deepmind_preact(s: State, x: Tensor) -> Tensor:
    x = conv(s, "conv_2d", x)
    for b in (0, 1, 2, 3):
        for i in (0, 1):
            p, first = f"layer_{b}.{i}", i == 0 and b > 0
            pad = (0, 1, 0, 1) if first else None
            inside = conv(s, f"{p}.conv_2d_1", F.silu(norm(s, f"{p}.batchnorm_0", x)), 1 + first, pad)
            shortcut = conv(s, f"{p}.shortcut", x, 2, pad) if first else x
            x = shortcut + conv(s, f"{p}.conv_2d_2", F.silu(norm(s, f"{p}.batchnorm_1", inside)))
    return head(s, "logits", F.silu(norm(s, "batchnorm", x)))


# their names and shapes, with random values


class Maker:
    """Adds layers of random numbers to a state dict."""

    def __init__(self) -> None:
        self.state: State = {}
        self.generator = torch.Generator().manual_seed(0)

    def conv(self, name: str, i: int, o: int, kernel: int = 3) -> None:
        self.state[f"{name}.weight"] = self.draw(o, i, kernel, kernel) * (2 / (i * kernel**2)) ** 0.5

    def norm(self, name: str, channels: int) -> None:
        for each, centre in {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}.items():
            self.state[f"{name}.{each}"] = (centre + 0.2 * self.draw(channels)).clamp(-1, 2)
        self.state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def linear(self, name: str, i: int, o: int) -> None:
        self.state |= {f"{name}.weight": self.draw(o, i), f"{name}.bias": self.draw(o)}

    def draw(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)


def trades_state(classes: int = 10) -> State:
    make, last = Maker(), 2
    make.conv("conv1", 3, 2)
    for b, c in enumerate((8, 16, 32), start=1):
        for i in (0, 1):
            for block in (f"block{b}", f"sub_block{b}") if b == 1 else (f"block{b}",):
                p = f"{block}.layer.{i}"
                make.norm(f"{p}.bn1", last)
                make.conv(f"{p}.conv1", last, c)
                make.norm(f"{p}.bn2", c)
                make.conv(f"{p}.conv2", c, c)
                if i == 0:
                    make.conv(f"{p}.convShortcut", last, c, 1)
            last = c
    make.norm("bn1", last)
    make.linear("fc", last, classes)
    return make.state


def kuangliu_state() -> State:
    make, last = Maker(), 4
    make.conv("conv1", 3, 4)
    make.norm("bn1", 4)
    for b, c in enumerate((4, 8, 16, 32), start=1):
        for i in (0, 1):
            for j, given in ((1, last), (2, c)):
                make.conv(f"layer{b}.{i}.conv{j}", given, c)
                make.norm(f"layer{b}.{i}.bn{j}", c)
            if i == 0 and b > 1:
                make.conv(f"layer{b}.{i}.shortcut.0", last, c, 1)
                make.norm(f"layer{b}.{i}.shortcut.1", c)
            last = c
    make.linear("linear", last, 10)
    return make.state


def preact_state(*, final: bool) -> State:
    make, last = Maker(), 4
    make.conv("conv1", 3, 4)
    for b, c in enumerate((4, 8, 16, 32), start=1):
        for i in (0, 1):
            for j, given in ((1, last), (2, c)):
                make.norm(f"layer{b}.{i}.bn{j}", given)
                make.conv(f"layer{b}.{i}.conv{j}", given, c)
            if i == 0 and b > 1:
                make.conv(f"layer{b}.{i}.shortcut.0", last, c, 1)
            last = c
    if final:
        make.norm("bn", last)
    make.linear("linear", last, 10)
    return make.state


def deepmind_state() -> State:
    make, last = Maker(), 2
    make.conv("init_conv", 3, 2)
    for b, c in enumerate((8, 16, 32)):
        for i in (0, 1):
            for j, given in ((0, last), (1, c)):
                make.norm(f"layer.{b}.block.{i}.batchnorm_{j}", given)
                make.conv(f"layer.{b}.block.{i}.conv_{j}", given, c)
            if i == 0:
                make.conv(f"layer.{b}.block.{i}.shortcut", last, c, 1)
            last = c
    make.norm("batchnorm", last)
    make.linear("logits", last, 10)
    return make.state


def deepmind_preact_state() -> State:
    make, last = Maker(), 4
    make.conv("conv_2d", 3, 4)
    for b, c in enumerate((4, 8, 16, 32)):
        for i in (0, 1):
            for j, given in ((0, last), (1, c)):
                make.norm(f"layer_{b}.{i}.batchnorm_{j}", given)
                make.conv(f"layer_{b}.{i}.conv_2d_{j + 1}", given, c)
            if i == 0 and b > 0:
                make.conv(f"layer_{b}.{i}.shortcut", last, c)
            last = c
    make.norm("batchnorm", last)
    make.linear("logits", last, 10)
    return make.state


@dataclass(frozen=True)
class Case:
    label: str
    net: str
    args: dict[str, Arg]
    state: Callable[[], State]
    logits: Callable[[State, Tensor], Tensor]


SAME: dict[str, Arg] = {"activation": "silu", "padding": "same"}
CASES = [
    Case("TRADES", "cifar_wrn16_4", {"width": 2}, trades_state, trades),
    Case("residual net of pytorch-cifar", "cifar_resnet18", {"width": 4}, kuangliu_state, kuangliu),
    Case(
        "pre-activation residual net of pytorch-cifar",
        "cifar_preact_resnet18",
        {"width": 4},
        lambda: preact_state(final=True),
        lambda s, x: preact(s, x, raw=False),
    ),
    Case(
        "pre-activation residual net of pytorch-cifar",
        "cifar_preact_resnet18",
        {"width": 4, "final_norm": False, "shortcut": "raw"},
        lambda: preact_state(final=False),
        lambda s, x: preact(s, x, raw=True),
    ),
    Case("DeepMind's wide residual net", "cifar_wrn16_4", {"width": 2, **SAME}, deepmind_state, deepmind),
    Case(
        "DeepMind's pre-activation residual net",
        "cifar_preact_resnet18",
        {"width": 4, "shortcut": "raw_3x3", **SAME},
        deepmind_preact_state,
        deepmind_preact,
    ),
]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.net}-{len(c.args)}")


def images() -> Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def load(case: Case, state: State, path: Path, **facts: object) -> Classifier:
    torch.save(state, path)
    model = hardy.load_model(case.net, pretrained=path, args=case.args, **facts)  # type: ignore[arg-type]
    assert isinstance(model, Classifier)
    return model.eval()


def buffers(prefix: str = "", names: tuple[str, str] = ("mu", "sigma")) -> State:
    return {prefix + name: torch.tensor(v).view(1, 3, 1, 1) for name, v in zip(names, (MU, SIGMA), strict=True)}


@every_case
@pytest.mark.parametrize("prefix", ["", "module.", "module.model."])
def test_logits_are_those_of_their_code_and_its_normalisation_is_found(case: Case, prefix: str, tmp_path: Path) -> None:
    state = case.state()
    named = {prefix + name: value for name, value in {**state, **buffers()}.items()}
    model = load(case, {"state_dict": named} if prefix else named, tmp_path / "w.pt")  # type: ignore[arg-type]
    assert model.source.mean == pytest.approx(MU) and model.source.std == pytest.approx(SIGMA)
    x = images()
    normal = (x - torch.tensor(MU).view(1, 3, 1, 1)) / torch.tensor(SIGMA).view(1, 3, 1, 1)
    want = case.logits(state, normal)
    assert want.std() > 0.1  # the numbers are alive
    torch.testing.assert_close(model(x), want, rtol=1e-5, atol=1e-5)


@every_case
def test_without_a_normalisation_the_net_gets_pixels_and_says_so(case: Case, tmp_path: Path) -> None:
    state = case.state()
    with pytest.warns(HardyWarning, match=rf"w.pt: .*{case.label}.*, without a normalisation: the net gets pixels"):
        model = load(case, state, tmp_path / "w.pt")
    assert model.source.mean == (0, 0, 0) and model.source.std == (1, 1, 1)
    torch.testing.assert_close(model(images()), case.logits(state, images()), rtol=1e-5, atol=1e-5)


def test_who_says_the_normalisation_gets_it_without_a_warning(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load(CASES[1], kuangliu_state(), tmp_path / "w.pt", mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
        assert model.source.mean == (0.1, 0.2, 0.3) and model.source.std == (1.0, 2.0, 3.0)
        model = load(CASES[1], {**kuangliu_state(), **buffers()}, tmp_path / "w.pt", std=(1.0, 2.0, 3.0))
    assert model.source.mean == pytest.approx(MU) and model.source.std == (1.0, 2.0, 3.0)


@pytest.mark.parametrize("owner", ["", "normalize.", "module.normalizer.", "module."])
@pytest.mark.parametrize("names", [("mu", "sigma"), ("mean", "std")])
def test_normalisation_is_found_under_any_owner_for_nets_in_our_names_too(
    owner: str, names: tuple[str, str], tmp_path: Path
) -> None:
    own = build("cifar_resnet8", seed=3).net.state_dict()
    prefix = "module.model." if owner.startswith("module.") else "model."
    torch.save({**{prefix + k: v for k, v in own.items()}, **buffers(owner, names)}, tmp_path / "w.pt")
    model = build("cifar_resnet8", pretrained=tmp_path / "w.pt")
    assert model.source.mean == pytest.approx(MU) and model.source.std == pytest.approx(SIGMA)
    assert torch.equal(model.net.fc.weight, own["fc.weight"])


def test_gray_images_take_the_average_of_the_normalisation(tmp_path: Path) -> None:
    model = load(CASES[1], {**kuangliu_state(), **buffers()}, tmp_path / "w.pt", in_channels=1)
    assert model.source.mean == pytest.approx((sum(MU) / 3,)) and model.source.std == pytest.approx((sum(SIGMA) / 3,))


def test_half_a_normalisation_or_two_are_no_normalisation() -> None:
    one, two = {"mu": torch.zeros(3)}, {**buffers("a."), **buffers("b.")}
    for state in (one, two, {"mean": torch.zeros(7), "std": torch.ones(7)}, {}):
        rest, found = split_normalisation(state, {"conv1.weight"}, 3)
        assert found is None and rest == state
    own = {"mean", "std", "conv1.weight"}  # a net that normalises itself loads them itself
    assert split_normalisation(buffers(names=("mean", "std")), own, 3)[1] is None


def test_a_normalisation_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    state = {**kuangliu_state(), "mu": torch.zeros(3), "sigma": torch.zeros(3)}
    with pytest.raises(ParameterError, match="std must be above 0"):
        load(CASES[1], state, tmp_path / "w.pt")


def test_a_factory_that_normalises_does_not_lose_the_normalisation_of_a_file_unseen(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from hardy.models import build\n"
        "def make(num_classes):\n    return build('cifar_resnet8', num_classes=num_classes)\n"
    )
    own = {f"net.{k}": v for k, v in build("cifar_resnet8").net.state_dict().items()}
    factory = f"{tmp_path / 'net.py'}:make"
    torch.save(own, tmp_path / "w.pt")
    assert build(factory, num_classes=10, pretrained=tmp_path / "w.pt")
    torch.save({f"net.{k}": v for k, v in own.items()} | buffers(), tmp_path / "w.pt")
    with pytest.raises(ParameterError, match="which has its own mean and std"):
        build(factory, num_classes=10, pretrained=tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("net", "args", "message"),
    [
        (
            "cifar_wrn16_4",
            {"width": 3},
            r"shapes \(read as those of the wide .* TRADES\) .* conv1.weight \(2, 3, 3, 3\), net",
        ),
        (
            "cifar_wrn28_10",
            {"width": 1},
            r"names \(read as those of the wide .*\) do not fit the net; missing layer1.2.bn1",
        ),
        ("cifar_wrn40_2", {"width": 2}, "missing layer1.2.bn1.weight, .* and .* more; left over nothing"),
        ("cifar_resnet18", {"width": 2}, "do not fit the net; missing .* left over"),
        ("lenet5", {}, "do not fit the net; missing .* left over"),
    ],
)
def test_another_architecture_is_an_error_that_says_what_does_not_fit(
    net: str, args: dict[str, Arg], message: str, tmp_path: Path
) -> None:
    torch.save(trades_state(), tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=message):
        build(net, args=args, pretrained=tmp_path / "w.pt")


def test_the_two_residual_nets_of_one_code_do_not_pass_for_each_other(tmp_path: Path) -> None:
    torch.save(kuangliu_state(), tmp_path / "a.pt")
    torch.save(preact_state(final=True), tmp_path / "b.pt")
    for net, file in (("cifar_preact_resnet18", "a.pt"), ("cifar_resnet18", "b.pt")):
        with pytest.raises(CheckpointError, match="do not fit the net"):
            build(net, args={"width": 4}, pretrained=tmp_path / file)
    with pytest.raises(CheckpointError, match=r"missing nothing; left over bn1\.weight"):
        build("cifar_preact_resnet18", args={"width": 4, "final_norm": False}, pretrained=tmp_path / "b.pt")


def test_another_number_of_classes_is_seen_through_their_names(tmp_path: Path) -> None:
    torch.save({**trades_state(classes=7), **buffers()}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="for 7 classes, the net has 10"):
        build("cifar_wrn16_4", args={"width": 2}, pretrained=tmp_path / "w.pt")
    assert build("cifar_wrn16_4", args={"width": 2}, num_classes=7, pretrained=tmp_path / "w.pt")


def test_names_that_fit_stay_and_names_never_collide() -> None:
    own = build("cifar_resnet8").net.state_dict()
    assert our_names(own, own.keys()) == (own, None)
    clash = {"linear.weight": torch.ones(1), "fc.weight": torch.zeros(1), "bn.weight": torch.ones(1)}
    assert our_names(clash, ["fc.weight", "bn1.weight"]) == (clash, None)


def test_the_last_weights_of_a_file_of_best_and_last_are_taken(tmp_path: Path) -> None:
    last, best = kuangliu_state(), {k: torch.zeros_like(v) for k, v in kuangliu_state().items()}
    torch.save({"best": best, "last": {**last, **buffers()}}, tmp_path / "w.pt")  # two of RobustBench's are so
    model = build("cifar_resnet18", args={"width": 4}, pretrained=tmp_path / "w.pt")
    assert torch.equal(model.net.fc.weight, last["linear.weight"])


def test_a_model_from_their_file_is_saved_and_loaded_as_ours(tmp_path: Path) -> None:
    case = CASES[5]
    model = load(case, {**case.state(), **buffers()}, tmp_path / "w.pt")
    again = hardy.load(hardy.save(model, tmp_path / "m.safetensors"))
    assert isinstance(again, Classifier) and again.source == model.source
    assert torch.equal(again(images()), model(images()))
