"""Every method over the life of a run: wired as its spec says, resumed bit for bit, saved, loaded, joined by others."""

import atexit
import copy
import dataclasses
import math
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hardy
from hardy import seeding
from hardy.errors import AttachError
from hardy.last_map import last_map
from hardy.methods import CARDS, METHODS, PRESETS, Method
from hardy.methods.model_doctor import write_relevance
from hardy.objective import Objective
from hardy.surgery import attach, attachments, strip
from hardy.training.recipe import build_methods, method_table

NETS = ["cifar_resnet8", "cifar_wrn16_4", "timm:resnet10t"]
SMALL: dict[str, dict[str, Any]] = {
    "cifar_vgg16": {"width": 2},
    "cifar_resnet8": {"width": 4},
    "cifar_wrn16_4": {"width": 4},
}
TEACHERS = [nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(12, 4)) for _ in range(2)]


def relevance(seed: int) -> str:
    """Write which channels of the nets of this file each of 4 classes uses: the last convolution's, and another's."""
    folder, maps = tempfile.mkdtemp(prefix="hardy-test-"), {}
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    g, x = torch.Generator().manual_seed(seed), torch.rand(1, 3, 32, 32)
    for net in (*NETS, "cifar_vgg16"):
        model = hardy.load_model(net, num_classes=4, args=SMALL.get(net))
        others = ["net.layer2.0.conv2"] if net == "cifar_resnet8" else []
        for site in (last_map(model, x)[0], *others):
            maps[site] = torch.rand(4, model.get_submodule(site).out_channels, generator=g)  # type: ignore[arg-type]
    write_relevance(Path(folder, "relevance.safetensors"), maps)
    return f"{folder}/relevance.safetensors"


RELEVANCE = [relevance(seed) for seed in range(2)]
NEEDS: dict[str, dict[str, Any]] = {  # what its defaults leave to the user
    "distillation": {"teacher": TEACHERS[0]},
    "model_doctor": {"relevance": RELEVANCE[0]},
}
# method -> field -> two values that make different nets or steps
FIELDS: dict[str, dict[str, tuple[Any, Any]]] = {
    "lfm": {
        "p": (1.0, 0.3),
        "channel_ratio": (0.5, 1.0),
        "num_channels": (1, 3),
        "area": ((0.02, 0.4), (0.4, 0.5)),
        "aspect": ((0.3, 1 / 0.3), (1.0, 1.0)),
        "fill": ("uniform", 0.0),
        "gate": ("sample", "batch"),
        "channel_scope": ("sample", "batch"),
        "region_scope": ("sample_channel", "batch"),
        "shape": ("box", "channel"),
        "replacement": (False, True),
        "sites": (("stem",), ("before_stage1",)),
    },
    "defective_conv": {
        "keep": (0.5, 0.9),
        "sampling": ("exact", "same"),
        "constant": (0.0, 1.0),
        "position": ("post_norm", "post_conv"),
        "mask_seed": (None, 7),
        "sites": (("bottom",), ("top",)),
    },
    "dropout": {"p": (0.5, 0.1), "sites": (("pooled",), ("stem",))},
    "spatial_dropout": {"p": (0.5, 0.1), "sites": (("top",), ("stem",))},
    "drop_block": {
        "p": (0.5, 0.1),
        "block_size": (1, 3),
        "rate": ("exact", "paper"),
        "shared": (False, True),
        "scale": ("expected", "row"),
        "sites": (("top",), ("stem",)),
    },
    "stochastic_depth": {"p": (0.9, 0.1), "decay": ("linear", "uniform"), "sites": (("residual",), ("top",))},
    "cutout": {"size": (0.5, 0.2), "fill": (0.5, 0.0), "p": (1.0, 0.3)},
    "random_erasing": {
        "p": (1.0, 0.3),
        "area": ((0.02, 0.4), (0.4, 0.5)),
        "aspect": ((0.3, 1 / 0.3), (1.0, 1.0)),
        "fill": ("uniform", 0.0),
    },
    "mixup": {"alpha": (1.0, 0.2), "p": (1.0, 0.3), "scope": ("sample", "batch")},
    "cutmix": {"alpha": (1.0, 0.2), "p": (1.0, 0.3), "scope": ("sample", "batch")},
    "augmix": {
        "severity": (3.0, 9.0),
        "width": (3, 1),
        "depth": ((1, 3), (3, 3)),
        "alpha": (1.0, 0.2),
        "jsd": (12.0, 0.0),
    },
    "gaussian_noise": {"sigma": (0.1, 0.3), "p": (1.0, 0.3)},
    "label_smoothing": {"smoothing": (0.1, 0.5)},
    "distillation": {"teacher": (TEACHERS[0], TEACHERS[1]), "temperature": (4.0, 1.0), "weight": (1.0, 0.5)},
    "margin_bound": {"weight": (1.0, 0.1), "eps": (0.1, 0.01), "weight_eps": (0.0, 0.01)},
    "soft_threshold": {
        "threshold": (0.1, 0.5),
        "position": ("post_norm", "post_conv"),
        "sites": (("bottom",), ("top",)),
    },
    "row_norm": {"bound": (10.0, 0.5), "sites": (("*",), ("stem",))},
    "fpcc": {
        "eps": (0.1, 0.2),
        "noise": ("sign", "uniform"),
        "p": (0.5, 0.1),
        "rescale": (False, True),
        "weight": (1.0, 0.1),
        "normalise": ("zscore", "minmax"),
        "distance": ("l1", "cosine"),
        "patterns": ("learned", "ema"),
        "momentum": (0.9, 0.5),
        "weight_decay": (True, False),
        "drop_sites": (("blocks",), ("*.conv1",)),
        "pattern_sites": (("blocks",), ("*.conv1",)),
    },
    "sfm": {"eps": (0.1, 0.2), "noise": ("sign", "uniform")},
    "cfs": {"p": (0.5, 0.1), "rescale": (False, True), "sites": (("blocks",), ("*.conv1",))},
    "pro": {
        "weight": (1.0, 0.1),
        "normalise": ("zscore", "minmax"),
        "distance": ("l1", "l2"),
        "patterns": ("learned", "ema"),
        "momentum": (0.9, 0.5),
        "weight_decay": (True, False),
        "sites": (("blocks",), ("*.conv1",)),
    },
    "pgd_at": {
        "norm": ("linf", "l2"),
        "eps": (0.1, 0.02),
        "steps": (2, 1),
        "step_size": (0.02, 0.05),
        "random_start": (True, False),
    },
    "trades": {
        "beta": (6.0, 1.0),
        "norm": ("linf", "l2"),
        "eps": (0.1, 0.02),
        "steps": (2, 1),
        "step_size": (0.02, 0.05),
    },
    "mart": {
        "weight": (5.0, 1.0),
        "norm": ("linf", "l2"),
        "eps": (0.1, 0.02),
        "steps": (2, 1),
        "step_size": (0.02, 0.05),
    },
    "fast_at": {"eps": (0.03, 0.1), "alpha": (1.25, 0.5)},
    "free_at": {"eps": (0.03, 0.1), "replays": (2, 3)},
    "awp": {"gamma": (0.005, 0.1)},
    "model_doctor": {
        "relevance": (RELEVANCE[0], RELEVANCE[1]),
        "channel": (1.0, 0.1),
        "space": (0.0, 1.0),
        "sign": ("absolute", "positive"),
        "threshold": ("mean", 0.2),
        "others": ("all", "own"),
        "noise": (1.0, 0.0),
        "draws": (1, 2),
        "legacy_scaling": (False, True),
        "sites": (("last_conv",), ("net.layer2.0.conv2",)),
    },
}
ADVERSARIAL = {"pgd_at", "trades", "mart", "fast_at", "free_at"}  # a net can have one of them
TASKS = {"label_smoothing", "distillation", "mart"}  # define the task loss
LATER = {"momentum", "weight_decay"}  # of pro and fpcc, change later steps alone: see test_pro.py
CHAINS = {"margin_bound"}  # work on feed-forward nets without live masks only
UNCHAINED = {"stochastic_depth", "defective_conv", "soft_threshold"}  # need shortcuts, or are live
ACTIVE: dict[str, dict[str, Any]] = {  # so that every image is changed while another field is looked at
    "lfm": {"p": 0.5},
    "drop_block": {"p": 0.5},
    "random_erasing": {"p": 1.0},
    "gaussian_noise": {"p": 1.0},
    "cutmix": {"p": 1.0},
    "stochastic_depth": {"p": 0.9},
    "row_norm": {"bound": 0.5},
    **{name: {"steps": 2, "step_size": 0.05} for name in ("pgd_at", "trades", "mart")},
    "free_at": {"replays": 2},
}
KEY = seeding.keys(seeding.root(0, "images"), torch.arange(8))


def build(net: str = "cifar_resnet8", *names: str) -> nn.Module:
    net = "cifar_vgg16" if CHAINS & {*names} else net
    return hardy.load_model(net, num_classes=4, args=SMALL.get(net), seed=0)


@pytest.fixture
def x() -> Tensor:
    return torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def y() -> Tensor:
    return torch.arange(8) % 4


def made(name: str) -> Method:
    """Make the method with its defaults; one that searches takes few steps."""
    method: Method = METHODS[name](**NEEDS.get(name, {}), **(ACTIVE.get(name, {}) if name in ADVERSARIAL else {}))
    return method


def step_of(name: str, method: Method, x: Tensor, y: Tensor) -> list[Tensor]:
    """Give the losses and one gradient of a training step."""
    model = build("cifar_resnet8", name)
    held = attach(model, [method], example=x, seed=0)[0].insert
    objective, optimizer = Objective(model), torch.optim.SGD(model.parameters(), lr=0.1)

    def closure() -> dict[str, Tensor]:
        optimizer.zero_grad()
        _, losses = objective(x, y, KEY)
        torch.stack(list(losses.values())).sum().backward()
        return losses

    losses = held.around_step(closure, optimizer.step)
    first = next(p.grad for p in model.parameters() if p.grad is not None)
    return [*losses.values(), first]


def train(objective: Objective, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, steps: Sequence[int]) -> None:
    for step in steps:
        _, losses = objective(x, y, seeding.fold(KEY, step))
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()


def test_the_table_above_is_complete() -> None:
    assert {name: set(fields) for name, fields in FIELDS.items()} == {
        name: {f.name for f in dataclasses.fields(cls)} for name, cls in METHODS.items()
    }


@pytest.mark.parametrize(
    ("name", "field"), [(name, field) for name, fields in FIELDS.items() for field in fields if field not in LATER]
)
def test_attach_passes_every_field_on(name: str, field: str, x: Tensor, y: Tensor) -> None:
    base = METHODS[name](**{**NEEDS.get(name, {}), **{k: v for k, v in ACTIVE.get(name, {}).items() if k != field}})
    one, same, other = (
        step_of(name, dataclasses.replace(base, **{field: FIELDS[name][field][i]}), x, y) for i in (0, 0, 1)
    )
    assert all(map(torch.equal, one, same))
    assert len(one) != len(other) or not all(map(torch.equal, one, other))


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_run_equals_one_that_never_stopped(name: str, net: str, x: Tensor, y: Tensor) -> None:
    def start() -> tuple[nn.Module, Objective, torch.optim.Optimizer]:
        model = build(net, name)
        attach(model, [METHODS[name](**NEEDS.get(name, {}), **ACTIVE.get(name, {}))], example=x, seed=0)
        objective = Objective(model)
        return model, objective, torch.optim.SGD(objective.parameters(), lr=0.1, momentum=0.9)

    whole, objective, optimizer = start()
    train(objective, optimizer, x, y, range(4))
    stopped, objective, optimizer = start()
    train(objective, optimizer, x, y, range(2))
    weights, moments = copy.deepcopy(stopped.state_dict()), copy.deepcopy(optimizer.state_dict())
    counters = [a.state_dict() for a in attachments(stopped)]
    resumed, objective, optimizer = start()
    resumed.load_state_dict(weights)
    optimizer.load_state_dict(moments)
    for attachment, state in zip(attachments(resumed), counters, strict=True):
        attachment.load_state_dict(state)
    train(objective, optimizer, x, y, range(2, 4))
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    assert any(not torch.equal(value, weights[key]) for key, value in whole.state_dict().items())


@pytest.mark.parametrize("name", METHODS)
def test_a_trained_net_is_saved_and_loaded_bit_for_bit(name: str, x: Tensor, y: Tensor, tmp_path: Path) -> None:
    model = build("cifar_resnet8", name)
    attach(model, [made(name)], example=x, seed=3)
    objective = Objective(model)
    train(objective, torch.optim.SGD(objective.parameters(), lr=0.1), x, y, range(2))
    hardy.save(model.eval(), tmp_path / "m.safetensors")
    loaded = hardy.load(tmp_path / "m.safetensors")
    assert torch.equal(loaded(x), model(x)) and torch.equal(loaded(x), strip(model)(x))
    assert [a.name for a in attachments(loaded)] == ([name] if CARDS[name].live else [])


@pytest.mark.parametrize(("name", "preset"), [(name, preset) for name, known in PRESETS.items() for preset in known])
def test_presets_are_specs_of_their_method(name: str, preset: str) -> None:
    assert type(PRESETS[name][preset]) is METHODS[name]
    assert preset == preset.lower()
    assert build_methods([{"name": name, "preset": preset}]) == [PRESETS[name][preset]]


@pytest.mark.parametrize("name", METHODS)
def test_the_table_of_a_method_builds_it_again(name: str) -> None:
    method = METHODS[name](**({"teacher": "runs/a"} if name == "distillation" else {}))
    assert build_methods([method_table(method)]) == [method]


@pytest.mark.parametrize("second", METHODS)
@pytest.mark.parametrize("first", METHODS)
def test_any_two_compose_and_come_off_again(first: str, second: str, x: Tensor, y: Tensor) -> None:
    model = build("cifar_resnet8", first, second)
    tree, want = list(model.named_modules()), copy.deepcopy(model).eval()(x)
    if CHAINS & {first, second} and UNCHAINED & {first, second}:
        pytest.skip("a pair that works on no net at all: tests/methods/test_margin_bound.py")
    methods = [made(name) for name in (first, second)]
    if {first, second} <= ADVERSARIAL or {first, second} == {"free_at", "awp"}:
        with pytest.raises(AttachError, match=r"only one method can make|cannot be combined"):
            attach(model, methods, example=x, seed=0)
        assert list(model.named_modules()) == tree
        return
    attached = attach(model, methods, example=x, seed=0)
    if {first, second} <= TASKS:
        with pytest.raises(AttachError, match="only one method can define the task loss"):
            Objective(model)
    else:
        _, losses = Objective(model)(x[:2], y[:2], KEY[:2])
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        assert math.isfinite(total.item())
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    attached.detach()
    assert list(model.named_modules()) == tree
    model.load_state_dict(build("cifar_resnet8", first, second).state_dict())
    assert torch.equal(model.eval()(x), want)
