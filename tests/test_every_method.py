"""The contract: every method in the table obeys it on every kind of net, and no method file escapes the table."""

import copy
import dataclasses
import functools
import math
import pickle
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import hardy.methods
from hardy import config, seeding
from hardy.inserts import passes_per_image
from hardy.methods import CARDS, METHODS, Method
from hardy.objective import Objective
from hardy.surgery import Insert, attach, attachments, strip
from hardy.taps import After

FOLDER = Path(hardy.methods.__file__).parent
CLASSES = 4
LAYERS = [name for name, card in CARDS.items() if card.kind == "layer"]
TRAIN_ONLY = [name for name, card in CARDS.items() if not card.live]
NEEDS: dict[str, dict[str, Any]] = {  # what its defaults leave to the user
    "distillation": {
        "teacher": nn.Sequential(
            nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)
        )
    },
    "model_doctor": {"channel": 0.0, "space": 1.0},
}
KEY = seeding.keys(seeding.root(0, "images"), torch.arange(4))
STRONG: dict[str, dict[str, Any]] = {  # so that every image is changed
    "lfm": {"p": 1.0},
    "spatial_dropout": {"p": 0.5},
    "dropout": {"p": 0.5},
    "drop_block": {"p": 0.5},
    "stochastic_depth": {"p": 0.5, "decay": "uniform"},
    "random_erasing": {"p": 1.0},
    "gaussian_noise": {"p": 1.0},
    "label_smoothing": {"smoothing": 0.5},
    "distillation": {},
    "margin_bound": {"weight": 1.0, "eps": 0.1},
    "defective_conv": {},
    "soft_threshold": {"threshold": 0.5},
    "row_norm": {"bound": 0.5},
    "cutout": {"fill": 0.0},
    "mixup": {"alpha": 2.0},
    "cutmix": {"p": 1.0},
    "fpcc": {"eps": 0.1, "p": 0.5},
    "sfm": {"eps": 0.1},
    "cfs": {"p": 0.5},
    "pro": {},
    "pgd_at": {"eps": 0.1, "steps": 2, "step_size": 0.1},
    "trades": {"eps": 0.1, "steps": 2, "step_size": 0.1},
    "mart": {"eps": 0.1, "steps": 2, "step_size": 0.1},
    "fast_at": {"eps": 0.1},
    "free_at": {"eps": 0.1, "replays": 3},
    "awp": {"gamma": 0.1},
    "model_doctor": {"noise": 0.5},
    "augmix": {"severity": 10.0, "jsd": 0.0},  # with jsd the task loss is of the clean images
}


class InPlace(nn.Module):
    """Functional in-place operations everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, 2, padding=1), nn.BatchNorm2d(8)
        self.conv3, self.bn3 = nn.Conv2d(8, 8, 3, 2, padding=1), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(x))
        y += x[:, :, ::2, ::2]
        y = self.bn3(self.conv3(F.relu_(y))).mul_(0.5).relu_()
        out: Tensor = self.fc(y.mean((2, 3)))
        return out


def vgg() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 8), (8, 16), (16, 16)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(True), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES))


def norm_free() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 8), (8, 8), (8, 8)):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, padding=1), nn.ELU(inplace=True)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 16, CLASSES))


NETS: dict[str, Callable[[], nn.Module]] = {
    "timm_resnet": lambda: timm.create_model("resnet10t", num_classes=CLASSES),
    "timm_mobilenet": lambda: timm.create_model("mobilenetv3_small_050", num_classes=CLASSES),
    "torchvision_resnet": lambda: torchvision.models.resnet18(num_classes=CLASSES),
    "densenet": lambda: torchvision.models.DenseNet(8, (2, 2, 2), 16, num_classes=CLASSES),
    "vgg": vgg,
    "norm_free": norm_free,
    "in_place": InPlace,
}


class Sums(nn.Module):
    """Residual sums without norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.act = nn.Conv2d(3, 8, 3, 2, padding=1), nn.ELU()
        self.conv2, self.conv3 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv1(x))
        x = x + self.conv2(x)
        x = self.act(x + self.conv3(x))
        out: Tensor = self.fc(x.mean((2, 3)))
        return out


# methods that cannot work on some nets: what the error says, and where
CANNOT = {
    "stochastic_depth": ("must add branches to shortcuts", {"densenet", "vgg", "norm_free"}),
    "margin_bound": (
        "must be a chain",
        {"timm_resnet", "timm_mobilenet", "torchvision_resnet", "densenet", "in_place"},
    ),
}
INSTEAD: dict[str, Callable[[], nn.Module]] = {"stochastic_depth": Sums, "margin_bound": vgg}
UNMASKED = {"margin_bound"}  # refuse nets with live masks
ALONE = {"trades", "mart", "fast_at", "free_at"}  # make adversarial images, as pgd_at does
ALONE |= {"distillation"}  # defines the task loss, as label_smoothing does
AROUND = {"awp"}  # change what is done around the objective, and not the objective
DRAWS = {name for name, card in CARDS.items() if card.kind != "loss" and name != "soft_threshold"} | {"mart"}
LEARNS = {"soft_threshold", "fpcc", "pro"}  # have parameters of their own


def can(name: str, net: str) -> bool:
    return name not in CANNOT or net not in CANNOT[name][1]


def pairs(nets: Iterable[str]) -> list[tuple[str, str]]:
    return [(name, net) for name in METHODS for net in nets if can(name, net)]


@pytest.fixture
def x() -> Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def y() -> Tensor:
    return torch.arange(4) % CLASSES


def make(net: str) -> nn.Module:
    torch.manual_seed(0)
    return NETS[net]()


def make_for(name: str, net: str) -> nn.Module:
    """Make the net, or one that the method can work on."""
    torch.manual_seed(0)
    return NETS[net]() if can(name, net) else INSTEAD[name]()


def strong(name: str) -> Method:
    method: Method = METHODS[name](**NEEDS.get(name, {}), **STRONG[name])
    return method


def default(name: str) -> Method:
    """Make the method with its defaults."""
    method: Method = METHODS[name](**NEEDS.get(name, {}))
    return method


def quick(name: str) -> Method:
    """Make the method with its defaults; one that searches takes one step."""
    steps = {"steps": 1} if name in {"pgd_at", "trades", "mart"} else {}
    method: Method = METHODS[name](**NEEDS.get(name, {}), **steps)
    return method


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


class TestTable:
    def test_lists_every_file(self) -> None:
        assert sorted(METHODS) == sorted(p.stem for p in FOLDER.glob("[!_]*.py"))
        assert list(METHODS) == list(CARDS)
        assert {cls.__name__ for cls in METHODS.values()} <= set(hardy.methods.__all__)

    @pytest.mark.parametrize("name", METHODS)
    def test_every_method_has_a_card_and_a_test(self, name: str) -> None:
        card = CARDS[name]
        assert card.name == name and card.url.startswith("https://") and card.summary.endswith(".")
        assert card.paper and card.attaches and card.kind in {"layer", "input", "loss"}
        assert any(year in card.paper for year in map(str, range(1990, 2030)))
        assert all(text.endswith(".") for text in (card.defaults_from, *card.deviations, *card.notes))
        assert (Path(__file__).parent / "methods" / f"test_{name}.py").exists()
        doc = METHODS[name].__doc__
        assert doc is not None
        for f in dataclasses.fields(METHODS[name]):
            assert f"\n        {f.name}: " in doc or f"\n    {f.name}: " in doc  # each default is explained

    @pytest.mark.parametrize("name", METHODS)
    def test_the_spec_is_a_value(self, name: str) -> None:
        spec = default(name)
        assert spec == default(name) and hash(spec) == hash(default(name))
        assert pickle.loads(pickle.dumps(spec)) == spec == copy.deepcopy(spec)  # noqa: S301
        assert repr(spec).startswith(f"{METHODS[name].__name__}(") and isinstance(spec, Method)
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(spec, dataclasses.fields(spec)[0].name, 0.0)

    @pytest.mark.parametrize("name", METHODS)
    def test_the_spec_goes_through_toml(self, name: str) -> None:
        needs = {"teacher": "runs/a"} if name == "distillation" else {}  # in a recipe, a file
        assert config.build(METHODS[name], needs) == METHODS[name](**needs)
        for spec in (METHODS[name](**needs), METHODS[name](**needs, **STRONG[name])):
            assert config.build(METHODS[name], tomllib.loads(config.dump(spec))) == spec


@pytest.mark.parametrize(("name", "net"), [(name, net) for name, (_, nets) in CANNOT.items() for net in sorted(nets)])
def test_says_why_it_cannot_work_on_a_net_and_leaves_no_trace(name: str, net: str, x: Tensor) -> None:
    model = make(net)
    tree = list(model.named_modules())
    with pytest.raises(hardy.errors.AttachError, match=f"{name}: .*{CANNOT[name][0]}"):
        default(name).attach(model, example=x, seed=0)
    assert list(model.named_modules()) == tree and hooks(model) == 0


@pytest.mark.parametrize(("name", "net"), pairs(NETS))
def test_trains_on_any_net_and_leaves_no_trace(name: str, net: str, x: Tensor, y: Tensor) -> None:
    model = make(net)
    tree, before, rng = list(model.named_modules()), copy.deepcopy(model.state_dict()), torch.get_rng_state()
    modes, plain = [m.training for m in model.modules()], copy.deepcopy(model)
    a = quick(name).attach(model, example=x, seed=0)
    assert [a.name for a in attachments(model)] == [name] and a.insert.live is CARDS[name].live
    assert bool(a.sites) is (CARDS[name].kind == "layer")
    # paired: neither weights nor modes nor the global generator have moved
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    assert [m.training for _, m in tree] == modes and torch.equal(torch.get_rng_state(), rng)
    objective = Objective(model)
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.01)
    for step in range(2):
        logits, losses = objective(x, y, seeding.fold(KEY, step))
        loss = torch.stack(list(losses.values())).sum()
        assert logits.shape == (4, CLASSES) and math.isfinite(loss.item())
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
    assert torch.equal(torch.get_rng_state(), rng)
    a.detach()
    assert list(model.named_modules()) == tree and list(model.state_dict()) == list(before) and hooks(model) == 0
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(x), plain.eval()(x))


@pytest.mark.parametrize(("name", "net"), pairs(["vgg", "densenet", "in_place"]))
class TestEach:
    def test_changes_a_training_step_and_nothing_else(self, name: str, net: str, x: Tensor, y: Tensor) -> None:
        model = make(net)
        twin, want = copy.deepcopy(model), copy.deepcopy(model).eval()(x)
        strong(name).attach(model, example=x, seed=0)
        torch.manual_seed(1)
        _, losses = Objective(model)(x, y, KEY)
        torch.manual_seed(1)
        _, plain = Objective(twin)(x, y, KEY)
        assert bool(abs(sum(losses.values()) - plain["task"]) > 1e-5) is (name not in AROUND)
        model = make(net)
        strong(name).attach(model, example=x, seed=0)
        for each in (model.eval(), Objective(model).eval()):
            got = each(x) if each is model else each(x, y, KEY)[0]
            assert torch.equal(got, want) is not CARDS[name].live
        twin = strip(model)
        assert torch.equal(twin(x), model(x)) and (hooks(twin) > 0) is (
            CARDS[name].live and CARDS[name].kind == "layer"
        )
        assert torch.equal(strip(model, live=True)(x), want)

    def test_adds_parameters_only_if_it_learns_and_buffers_only_if_live(
        self, name: str, net: str, x: Tensor, y: Tensor
    ) -> None:
        model = make(net)
        keys, parameters = list(model.state_dict()), len(list(model.parameters()))
        default(name).attach(model, example=x, seed=0)
        assert (len(list(model.parameters())) > parameters) is (name in LEARNS)
        added = [key for key in model.state_dict() if key not in keys]
        assert bool(added) is (CARDS[name].live or name in LEARNS) and all(
            key.startswith(f"_hardy.{name}.") for key in added
        )

    def test_copies_by_deepcopy_and_pickle_compute_the_same(self, name: str, net: str, x: Tensor, y: Tensor) -> None:
        model = make(net)
        strong(name).attach(model, example=x, seed=0)
        twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]  # noqa: S301
        results = []
        for each in (model, *twins):
            torch.manual_seed(1)
            results.append(Objective(each, attachments(each))(x, y, KEY)[1]["task"])
        assert results[0] == results[1] == results[2]

    def test_seed_and_key_matter_where_something_is_drawn(self, name: str, net: str, x: Tensor, y: Tensor) -> None:
        def loss(seed: int, key: Tensor) -> float:
            model = make(net)
            strong(name).attach(model, example=x, seed=seed)
            torch.manual_seed(1)
            return Objective(model)(x, y, key)[1]["task"].item()

        assert loss(0, KEY) == loss(0, KEY)
        assert (loss(0, KEY) != loss(1, KEY)) is (name in DRAWS)
        assert (loss(0, KEY) != loss(0, KEY + 1)) is (name in DRAWS and not CARDS[name].live)


@pytest.mark.parametrize("name", METHODS)
class TestForms:
    """Low precision, memory format, no gradients, odd sizes."""

    def test_autocast_and_bfloat16(self, name: str, x: Tensor, y: Tensor) -> None:
        seen: list[torch.dtype] = []
        model = make_for(name, "vgg")
        a = strong(name).attach(model, example=x, seed=0)
        for tap in (tap for tap in a.insert.taps if isinstance(tap, After)):
            tap.layer.register_forward_hook(lambda _m, args, out: seen.extend([args[0].dtype, out.dtype]))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits, losses = Objective(model)(x, y, KEY)
        assert logits.dtype == torch.bfloat16 and losses["task"].dtype == torch.float32
        losses["task"].backward()
        assert seen[::2] == seen[1::2] and bool(seen) is (name in LAYERS)
        model.zero_grad()
        logits, losses = Objective(model.bfloat16())(x.bfloat16(), y, KEY)
        assert logits.dtype == torch.bfloat16 and math.isfinite(losses["task"].item())

    def test_channels_last(self, name: str, x: Tensor, y: Tensor) -> None:
        formats: list[bool] = []
        model = make_for(name, "vgg").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = x.contiguous(memory_format=torch.channels_last)
        strong(name).attach(model, example=x, seed=0)
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d | After):
                site = module.layer if isinstance(module, After) else module
                site.register_forward_hook(
                    lambda _m, args, out: formats.extend(
                        t.is_contiguous(memory_format=torch.channels_last) for t in (args[0], out) if t.ndim == 4
                    )
                )
        Objective(model)(x, y, KEY)[1]["task"].backward()
        assert len(formats) >= 6 and all(formats)

    def test_no_grad_and_a_batch_of_one(self, name: str, x: Tensor, y: Tensor) -> None:
        model = make_for(name, "norm_free")
        strong(name).attach(model, example=x, seed=0)
        with torch.no_grad():
            whole, losses = Objective(model)(x, y, KEY)
            alone, _ = Objective(model)(x[2:3], y[2:3], KEY[2:3])
            mixed = name in {"mixup", "cutmix"}  # with others of the batch, so an image alone stays as it is
            want = model(x[2:3]) if mixed else whole[2:3]
        torch.testing.assert_close(alone, want)
        assert not losses["task"].requires_grad

    @pytest.mark.parametrize("size", [(33, 17), (16, 16), (9, 31)])
    def test_odd_sizes(self, name: str, size: tuple[int, int], y: Tensor) -> None:
        model, x = make_for(name, "in_place"), torch.rand(4, 3, *size)
        strong(name).attach(model, example=x[:1], seed=0)
        torch.stack(list(Objective(model)(x, y, KEY)[1].values())).sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

    def test_soft_labels(self, name: str, x: Tensor) -> None:
        model = make_for(name, "vgg")
        strong(name).attach(model, example=x, seed=0)
        _, losses = Objective(model)(x, torch.full((4, CLASSES), 1 / CLASSES), KEY)
        assert math.isfinite(losses["task"].item())

    def test_moves_with_the_model(self, name: str, x: Tensor, y: Tensor) -> None:
        model = make_for(name, "vgg")
        strong(name).attach(model, example=x, seed=0)
        model.double()
        assert all(t.dtype == torch.float64 for t in (*model.parameters(), *model.buffers()) if t.is_floating_point())
        logits, _ = Objective(model)(x.double(), y, KEY)
        assert logits.dtype == torch.float64


class Counted(TorchDispatchMode):
    """Counts the images that go forward and backward through the first convolution of :func:`vgg`."""

    def __init__(self) -> None:
        super().__init__()
        self.forward = self.backward = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default and args[1].shape == (8, 3, 3, 3):
            self.forward += len(args[0])
        if func is torch.ops.aten.convolution_backward.default and args[2].shape == (8, 3, 3, 3):
            self.backward += len(args[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "methods",
    [
        *([default(name)] for name in METHODS),
        *([strong(name)] for name in METHODS),
        *([default(name), METHODS["awp"]()] for name in ("pgd_at", "trades", "mart", "fast_at", "augmix")),
        [METHODS["mixup"](), METHODS["pgd_at"](steps=3), METHODS["spatial_dropout"]()],
        [METHODS["augmix"](), METHODS["free_at"](replays=2)],
        [METHODS["awp"](), METHODS["awp"](), METHODS["fast_at"]()],
    ],
    ids=lambda methods: "+".join(type(method).__name__ for method in methods),
)
def test_a_step_makes_the_passes_that_its_methods_declare(methods: list[Any], x: Tensor, y: Tensor) -> None:
    torch.manual_seed(0)
    model = Sums() if isinstance(methods[0], METHODS["stochastic_depth"]) else vgg()
    attached = attach(model, methods, example=x, seed=0)
    objective, counted = Objective(model), Counted()

    def closure() -> dict[str, Tensor]:
        _, losses = objective(x, y, KEY)
        torch.stack(list(losses.values())).sum().backward()
        return losses

    around = closure
    for attachment in reversed(attached):
        around = functools.partial(attachment.insert.around_step, around, lambda: None)
    with counted:
        around()
    assert (counted.forward / 4, counted.backward / 4) == passes_per_image([a.insert for a in attached])


@pytest.mark.parametrize("name", LAYERS)
def test_there_must_be_a_site(name: str) -> None:
    with pytest.raises(hardy.errors.ParameterError, match="sites must be one or more names"):
        METHODS[name](**{"pattern_sites" if name == "fpcc" else "sites": ()})


class TestTogether:
    @pytest.mark.parametrize("net", NETS)
    def test_all_at_once_train_and_detach(self, net: str, x: Tensor, y: Tensor) -> None:
        model = make(net)
        tree, want = list(model.named_modules()), copy.deepcopy(model).eval()(x)
        names = [name for name in METHODS if can(name, net) and name not in UNMASKED | ALONE]
        a = attach(model, [quick(name) for name in names], example=x, seed=0)
        assert [each.name for each in a] == names
        logits, losses = Objective(model, a)(x, y, KEY)
        losses["task"].backward()
        assert math.isfinite(losses["task"].item()) and logits.shape == (4, CLASSES)
        twin = copy.deepcopy(model)
        assert [each.name for each in attachments(strip(model))] == [name for name in names if CARDS[name].live]
        model.load_state_dict(make(net).state_dict(), strict=False)
        a.detach()
        assert list(model.named_modules()) == tree and hooks(model) == 0
        assert torch.equal(model.eval()(x), want)
        assert len(attachments(twin)) == len(names)

    def test_order_does_not_matter_to_what_each_draws(self, x: Tensor, y: Tensor) -> None:
        logits = []
        one_input = {name for name in METHODS if CARDS[name].kind != "input"} - {"fpcc"}
        names = [name for name in METHODS if name in one_input - ALONE and can(name, "in_place")]
        for order in ([*names, "gaussian_noise"], ["gaussian_noise", *reversed(names)]):
            model = make("in_place")
            attach(model, [default(name) for name in order], example=x, seed=0)
            logits.append(Objective(model)(x, y, KEY)[0])
        assert torch.equal(*logits)

    def test_checkpointing_of_timm_gives_the_gradients_of_the_plain_net(self, x: Tensor, y: Tensor) -> None:
        grads, sites = [], ("conv1.0", "layer1.0.bn1", "layer2.0", "layer3.0.act2")
        methods = [METHODS["spatial_dropout"](p=0.3, sites=sites), METHODS["lfm"](p=1.0), METHODS["defective_conv"]()]
        for checkpointing in (False, True):
            model = make("timm_resnet")
            model.set_grad_checkpointing(checkpointing)  # type: ignore[operator]
            attach(model, methods, example=x, seed=0)
            Objective(model)(x, y, KEY)[1]["task"].backward()
            grads.append([p.grad for p in model.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))

    def test_forward_features_of_timm_is_the_whole_without_its_head(self, x: Tensor) -> None:
        model = make("timm_resnet").eval()
        attach(model, [default(n) for n in METHODS if can(n, "timm_resnet") and n not in ALONE], example=x, seed=0)
        for _ in range(2):
            assert torch.equal(model.forward_head(model.forward_features(x)), model(x))  # type: ignore[operator]

    def test_one_that_cannot_leaves_nothing(self, x: Tensor) -> None:
        model = make("in_place")
        tree = list(model.named_modules())
        names = [name for name in METHODS if can(name, "in_place") and name not in ALONE]
        methods = [*(default(name) for name in names), METHODS["lfm"](sites=("nowhere",))]
        with pytest.raises(hardy.errors.LayerNotFoundError, match="nowhere"):
            attach(model, methods, example=x, seed=0)
        assert list(model.named_modules()) == tree and hooks(model) == 0

    def test_a_users_own_method_is_a_first_class_citizen(self, x: Tensor, y: Tensor) -> None:
        @dataclasses.dataclass(frozen=True)
        class Shift:
            by: float

            def attach(self, model: nn.Module, *, example: Tensor, seed: int) -> hardy.surgery.Attachment:
                held = ShiftInsert(self, seed=seed)
                return hardy.surgery.insert(model, held, method="shift")

        class ShiftInsert(Insert):
            def inputs(self, x: Tensor, y: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
                return (x + self.spec.by).clamp(0, 1), y

        model = make("norm_free")
        attach(model, [Shift(0.25), METHODS["label_smoothing"]()], example=x, seed=0)
        torch.testing.assert_close(Objective(model)(x, y, KEY)[0], model((x + 0.25).clamp(0, 1)))
