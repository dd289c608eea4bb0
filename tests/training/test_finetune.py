"""Frozen stays frozen to the bit, layers learn at their own rates, classes weigh what they should."""

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight
from timm.models import group_parameters
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hardy import io, models, seeding, surgery
from hardy.data import ArrayData, load_data
from hardy.errors import ConfigError, DataError, LayerNotFoundError, ParameterError
from hardy.methods import LocalFeatureMasking
from hardy.objective import Objective
from hardy.training import DataRecipe, ModelRecipe, Progress, Recipe, RunFolder, TrainRecipe, load_recipe, train
from hardy.training.finetune import FineTuning, Places, class_weights, lr_factors

BASE = Recipe(
    model=ModelRecipe(name="cifar_resnet8", args={"width": 4}),
    data=DataRecipe(name="digits", limit=192, augment=("crop",)),
    train=TrainRecipe(epochs=2, batch_size=64, lr=0.1, weight_decay=0.1),
)


def recipe(*methods: dict[str, Any], **changes: Any) -> Recipe:
    return replace(BASE, train=replace(BASE.train, **changes), methods=methods)


def tiny() -> tuple[nn.Module, ArrayData]:
    data = load_data("digits", split="train").limit(64)
    return io.load_model("cifar_resnet8", num_classes=10, in_channels=1, args={"width": 4}), data


def start() -> dict[str, Tensor]:
    """The state dict that every run of ``BASE`` begins with."""
    return io.load_model(BASE.model.name, num_classes=10, in_channels=1, args=BASE.model.args).state_dict()


def weights(folder: Path) -> dict[str, Tensor]:
    return io.read_tensors(folder / "model.safetensors")


def moved(after: dict[str, Tensor], before: dict[str, Tensor]) -> set[str]:
    assert after.keys() == before.keys()
    return {name for name in after if not torch.equal(after[name], before[name])}


class TestPlaces:
    @pytest.mark.parametrize(
        ("name", "head"),
        [
            ("timm:test_resnet", "net.fc"),
            ("timm:test_convnext", "net.head.fc"),  # layer scales are parameters of the blocks
            ("timm:test_efficientnet", "net.classifier"),  # squeeze-and-excitation
            ("torchvision:squeezenet1_1", "net.classifier.1"),  # a convolution makes the logits
            ("cifar_vgg16", None),
        ],
    )
    def test_every_parameter_is_in_the_head_or_in_one_stage(self, name: str, head: str | None) -> None:
        model = models.build(name, num_classes=5)
        places = Places(model, torch.rand(1, 3, 64, 64))
        parts = [places.parameters(places.modules(site, "freeze")) for site in ("head", *_names(places))]
        every = [p for part in parts for p in part]
        assert len(every) == len(set(every)) and set(every) == set(model.parameters())
        body = places.parameters(places.modules("all_but_head", "freeze"))
        assert set(body) == set(every) - set(parts[0])
        if head is not None:
            assert set(parts[0]) == set(model.get_submodule(head).parameters())

    def test_side_branches_and_layer_scales_belong_to_the_stage_around_them(self) -> None:
        model = models.build("timm:test_convnext", num_classes=5)
        places = Places(model, torch.rand(1, 3, 64, 64))
        first = places.parameters(places.modules("stage1", "freeze"))
        block = model.get_submodule("net.stages.0.blocks.0")
        assert any(p is block.gamma for p in first)
        model = models.build("timm:test_efficientnet", num_classes=5)
        places = Places(model, torch.rand(1, 3, 64, 64))
        for name in places.names:
            if ".se" in name:
                around = name.partition(".se")[0]
                assert places.stage_of[name] == places.stage_of[f"{around}.conv_pwl"]

    @pytest.mark.parametrize("site", ["net.stages.0.blocks.0.conv_dw", "stage1", "head"])
    def test_all_but_a_site_is_the_rest_to_the_parameter(self, site: str) -> None:
        model = models.build("timm:test_convnext", num_classes=5)  # layer scales are parameters of the blocks
        places = Places(model, torch.rand(1, 3, 64, 64))
        site_, rest = ({*places.parameters(places.modules(s, "freeze"))} for s in (site, f"all_but:{site}"))
        assert site_ and rest and not site_ & rest and site_ | rest == {*model.parameters()}
        tuning = FineTuning(model.train(), TrainRecipe(freeze=(f"all_but:{site}",)), torch.rand(1, 3, 64, 64))
        tuning.begin(0)
        assert {p for p in model.parameters() if p.requires_grad} == site_
        tuning.end()
        assert all(p.requires_grad for p in model.parameters())

    def test_dropout_beside_the_head_stays_on_with_it(self) -> None:
        model = models.build("torchvision:squeezenet1_1", num_classes=5)
        tuning = FineTuning(model.train(), TrainRecipe(freeze=("all_but_head",)), torch.rand(1, 3, 64, 64))
        tuning.begin(0)
        modes = {name: m.training for name, m in model.named_modules() if not list(m.children())}
        on = {name for name, training in modes.items() if training}
        assert on == {f"net.classifier.{i}" for i in range(4)} and model.training


def _names(places: Places) -> list[str]:
    return [stage.name for stage in places.stages]


class TestFactors:
    @pytest.mark.parametrize("name", ["resnet10t", "test_convnext"])
    def test_layer_decay_is_timms_by_stages(self, name: str) -> None:
        # not of nets with bottlenecks: those begin at the old stride, which is the stage before
        net = timm.create_model(name, num_classes=5)
        last = "head" if "convnext" in name else "fc"
        layer = group_parameters(net, net.group_matcher(coarse=True), reverse=True)
        got = lr_factors(Places(net, torch.rand(1, 3, 64, 64)), TrainRecipe(layer_decay=0.75))
        top = max(layer.values())
        for key, p in net.named_parameters():
            if key.startswith(last) and not key.startswith((f"{last}.fc", "fc")):
                assert got[p] == pytest.approx(0.75)  # timm counts the norm before the logits to the head
            elif "stages" in key and "downsample" in key:
                continue  # timm counts it to the stage behind, by name; here it is by stride
            else:
                assert got.get(p, 1.0) == pytest.approx(0.75 ** (top - layer[key])), key

    def test_a_table_multiplies_and_its_later_lines_win(self) -> None:
        model, data = tiny()
        table = {"all_but_head": 0.1, "stem": 0.01, "net.layer3.*": 3.0, "head": 10.0}
        got = lr_factors(Places(model, data.images()), TrainRecipe(layer_decay=0.5, lr_factors=table))
        assert got[model.get_submodule("net.conv1").weight] == pytest.approx(0.01 * 0.5**4)
        assert got[model.get_submodule("net.layer2.0.conv1").weight] == pytest.approx(0.1 * 0.5**2)
        assert got[model.get_submodule("net.layer3.0.conv2").weight] == pytest.approx(3.0 * 0.5)
        assert got[model.get_submodule("net.fc").weight] == pytest.approx(10.0)

    def test_a_step_is_as_much_longer_as_the_factor_says(self, tmp_path: Path) -> None:
        steps = []
        for i, table in enumerate([{}, {"net.conv1": 0.5, "head": 8.0}]):
            model, data = tiny()
            before = {k: v.detach().clone() for k, v in model.named_parameters()}
            options = TrainRecipe(
                epochs=1, batch_size=64, lr=2.0**-8, momentum=0.0, weight_decay=0.25, lr_factors=table
            )
            train(model, data, options=options, out=tmp_path / str(i), augment=())
            steps.append({k: v.detach() - before[k] for k, v in model.named_parameters()})
        for name, step in steps[0].items():
            factor = 0.5 if name == "net.conv1.weight" else 8.0 if name.startswith("net.fc") else 1.0
            torch.testing.assert_close(steps[1][name], factor * step, rtol=1e-4, atol=1e-7)

    def test_what_methods_learn_keeps_the_rate_of_the_recipe(self, tmp_path: Path) -> None:
        thresholds = []
        for i, options in enumerate([{}, {"layer_decay": 0.01, "lr_factors": {"*": 2.0}}]):
            made = recipe({"name": "soft_threshold", "sites": ("stem",)}, epochs=1, **options)
            one = replace(made, data=replace(made.data, limit=64, val_fraction=0.0, augment=()))
            thresholds.append(weights(train(one, out=tmp_path / str(i)).folder))
        (key,) = (name for name in thresholds[0] if name.endswith(".raw"))
        assert torch.equal(thresholds[0][key], thresholds[1][key])  # one step, with the same gradients


class TestFreeze:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"optimizer": "adamw", "lr": 0.01},
            {"ema": 0.5, "clip_norm": 1.0},
        ],
    )
    def test_not_one_bit_of_what_is_frozen_moves_and_the_rest_does(
        self, options: dict[str, Any], tmp_path: Path
    ) -> None:
        bound = {"name": "row_norm", "bound": 0.01}  # would scale every weight down
        done = weights(train(recipe(bound, freeze=("bottom",), **options), out=tmp_path / "a").folder)
        still = {name for name in done if name.startswith(("net.conv1", "net.bn1", "net.layer1", "net.layer2"))}
        assert len(still) > 20 and moved(done, start()) == done.keys() - still

    def test_the_head_alone_learns_and_the_log_says_so(self, tmp_path: Path) -> None:
        run = train(recipe(freeze=("all_but_head",)), out=tmp_path / "a")
        assert moved(weights(run.folder), start()) == {"net.fc.weight", "net.fc.bias"}
        assert "frozen: all_but_head, 4,7" in (run.folder / "log.txt").read_text()

    def test_after_its_epochs_everything_learns_and_until_then_it_is_as_if_frozen_for_good(
        self, tmp_path: Path
    ) -> None:
        states: list[dict[str, Tensor]] = []
        model, data = tiny()
        before = {k: v.clone() for k, v in model.state_dict().items()}

        def keep(p: Progress) -> None:
            if p.row is not None:
                states.append({k: v.clone() for k, v in model.state_dict().items()})

        options = TrainRecipe(epochs=2, batch_size=32, freeze=("all_but_head",), freeze_epochs=1)
        train(model, data, options=options, out=tmp_path / "a", on_progress=keep)
        assert moved(states[0], before) == {"net.fc.weight", "net.fc.bias"}
        assert moved(states[1], before) == before.keys()
        assert all(p.requires_grad for p in model.parameters())

    @pytest.mark.parametrize("step", [3, 5])
    def test_a_stopped_run_resumes_to_the_same_weights(self, step: int, tmp_path: Path) -> None:
        asked = recipe(
            epochs=3, freeze=("stem", "stage1"), freeze_epochs=1, layer_decay=0.7, class_weights="balanced", ema=0.9
        )

        def stop(p: Progress) -> None:
            if p.step == step:
                raise KeyboardInterrupt

        whole = train(asked, out=tmp_path / "whole")
        with pytest.raises(KeyboardInterrupt):
            train(asked, out=tmp_path / "part", on_progress=stop)
        resumed = train(asked, out=tmp_path / "part", resume=True)
        assert not moved(weights(resumed.folder), weights(whole.folder))

    def test_methods_at_a_frozen_site_go_on(self, tmp_path: Path) -> None:
        spy = Spy([])
        model, data = tiny()
        options = TrainRecipe(epochs=1, batch_size=32, freeze=("all_but_head",))
        train(model, data, methods=[LocalFeatureMasking(p=1.0), spy], options=options, out=tmp_path / "a", augment=())
        assert spy.seen and all(share > 0.001 for share in spy.seen)  # of values that the masks changed

    def test_a_frozen_part_that_backward_runs_again_is_masked_again(self) -> None:
        grads = []
        for again in (False, True):
            torch.manual_seed(0)
            model, x, y = Checkpointed(again), torch.rand(6, 3, 16, 16), torch.arange(6) % 5
            tuning = FineTuning(model, TrainRecipe(freeze=("conv1", "bn")), x)
            surgery.attach(model, [LocalFeatureMasking(p=1.0)], example=x, seed=0)
            objective = Objective(model).train()
            tuning.begin(0)
            objective(x, y, seeding.keys(1, torch.arange(6)))[1]["task"].backward()
            grads.append(model.conv2.weight.grad)
        assert grads[0] is not None and grads[0].abs().max() > 0
        torch.testing.assert_close(grads[0], grads[1])

    @pytest.mark.parametrize("fails", [False, True])
    def test_everything_is_given_back_as_it_was(self, fails: bool, tmp_path: Path) -> None:
        model, data = tiny()
        own = model.get_submodule("net.layer1.0.conv1").weight.requires_grad_(False)

        def stop(_: Progress) -> None:
            if fails:
                raise KeyboardInterrupt

        options = TrainRecipe(epochs=1, batch_size=32, freeze=("bottom",))
        try:
            train(model, data, options=options, out=tmp_path / "a", on_progress=stop)
        except KeyboardInterrupt:
            assert fails
        assert [p for p in model.parameters() if not p.requires_grad] == [own]
        assert len({m.training for m in model.modules()}) == 1

    def test_mistakes_are_found_before_the_first_step(self, tmp_path: Path) -> None:
        model, data = tiny()
        cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
            (ParameterError, r"must leave parameters to train; all_but_head, head is all", {"freeze": BOTH}),
            (ParameterError, r"must leave parameters to train; \* is all", {"freeze": ("*",), "freeze_epochs": 1}),
            (LayerNotFoundError, r"has no layer 'layer9'", {"freeze": ("layer9",)}),
            (LayerNotFoundError, r"has no stage 'stage9'", {"freeze": ("stage9",)}),
            (
                ParameterError,
                r"freeze must name modules with parameters; 'net.relu' has none",
                {"freeze": ("net.relu",)},
            ),
            (ParameterError, r"freeze must name modules; got 'conv1#0'", {"freeze": ("conv1#0",)}),
            (ParameterError, r"lr_factors must name modules; got 'fc@input'", {"lr_factors": {"fc@input": 1.0}}),
            (LayerNotFoundError, r"has no layer 'hed'", {"lr_factors": {"hed": 2.0}}),
            (ParameterError, r"one number for each of 10 classes; got 2", {"class_weights": (1.0, 2.0)}),
        ]
        for error, message, options in cases:
            with pytest.raises(error, match=message):
                train(model, data, options=TrainRecipe(epochs=1, **options), out=tmp_path / "a")
        assert surgery.attachments(model) == [] and not (tmp_path / "a").exists()
        assert all(p.requires_grad for p in model.parameters())


BOTH = ("all_but_head", "head")


class Checkpointed(nn.Module):
    """A net whose features are computed a second time in backward."""

    def __init__(self, again: bool) -> None:
        super().__init__()
        self.again = again
        self.conv1, self.bn, self.conv2 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, stride=2)
        self.fc = nn.Linear(8, 5)

    def features(self, x: Tensor) -> Tensor:
        return self.conv2(self.bn(self.conv1(x)).relu())

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(self.features, x, use_reentrant=False) if self.again else self.features(x)
        return self.fc(x.relu().mean((2, 3)))


@dataclass(frozen=True)
class Spy:
    """Compares what the first convolution gives in training with what it would give without masks."""

    seen: list[float]

    def attach(self, model: nn.Module, *, example: Tensor, seed: int) -> surgery.Attachment:
        return surgery.insert(model, SpyInsert(self, seed=seed, model=model), method="spy")


class SpyInsert(surgery.Insert):
    def __init__(self, spec: Spy, *, seed: int, model: nn.Module) -> None:
        super().__init__(spec, seed=seed)
        self.held = (model,)

    def terms(self, context: surgery.Context) -> dict[str, Tensor]:
        model = self.held[0]
        masked = []
        handle = model.get_submodule("net.conv1").register_forward_hook(lambda _m, _i, y: masked.append(y.detach()))
        with torch.no_grad():
            context.forward(context.x)
            modes = {m: m.training for m in model.modules()}
            model.eval()(context.x)
            for m, mode in modes.items():
                m.training = mode
        handle.remove()
        self.spec.seen.append(float((masked[0] != masked[1]).float().mean()))
        assert not model.get_submodule("net.conv1").training and model.training
        return {}


class TestClassWeights:
    def test_balanced_is_scikit_learns(self) -> None:
        y = torch.tensor([0] * 7 + [1] * 2 + [2] * 3)
        want = compute_class_weight("balanced", classes=np.arange(3), y=y.numpy())
        got = class_weights("balanced", y, "abc")
        assert got is not None
        torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float32))
        assert got[y].mean().item() == pytest.approx(1, abs=1e-6)

    def test_of_numbers_only_the_ratios_matter_and_the_mean_over_the_images_is_1(self) -> None:
        y = torch.tensor([0] * 7 + [1] * 2 + [2] * 3)
        got, twice = class_weights((1.0, 4.0, 0.0), y, "abc"), class_weights((2.0, 8.0, 0.0), y, "abc")
        assert got is not None and twice is not None and torch.equal(got, twice)
        assert got[y].mean().item() == pytest.approx(1) and got[1] / got[0] == pytest.approx(4) and got[2] == 0

    def test_mistakes(self) -> None:
        y = torch.tensor([0, 0, 2])
        with pytest.raises(DataError, match=r"needs an image of every class; none for b"):
            class_weights("balanced", y, "abc")
        with pytest.raises(ParameterError, match=r"must leave some training image a weight"):
            class_weights((0.0, 1.0, 0.0), y, "abc")
        assert class_weights(None, y, "abc") is None

    def test_the_logged_loss_of_a_step_is_torchs_over_all_training_images(self, tmp_path: Path) -> None:
        model, data = tiny()
        data = data.subset(torch.cat([(data.y == k).nonzero()[: 2 + k % 4, 0] for k in range(10)]))
        given = tuple(float(k + 1) for k in range(10))
        model.train()
        logits = model(data.images())  # batch statistics, as in the step
        want = F.cross_entropy(logits, data.y, weight=torch.tensor(given))
        options = TrainRecipe(epochs=1, batch_size=len(data), class_weights=given)
        run = train(model, data, options=options, out=tmp_path / "a", augment=())
        assert run.history[0]["task"] == pytest.approx(want.item(), rel=1e-5)


class TestRecipe:
    def test_is_read_and_written_back(self, tmp_path: Path) -> None:
        text = BASE.to_toml() + '[train.lr_factors]\nhead = 10\n"net.layer?.*" = 0.5\n'
        text = text.replace("[train.lr_factors]\n", "", 1) if text.count("[train.lr_factors]") > 1 else text
        (tmp_path / "a.toml").write_text(text)
        changes = ['train.freeze=["stem"]', "train.freeze_epochs=1", "train.class_weights=balanced"]
        got = load_recipe(tmp_path / "a.toml", [*changes, "train.layer_decay=0.8"])
        assert got.train.lr_factors == {"head": 10.0, "net.layer?.*": 0.5} and got.train.freeze == ("stem",)
        assert got.train.class_weights == "balanced" and got.train.layer_decay == 0.8
        (tmp_path / "b.toml").write_text(got.to_toml())
        assert load_recipe(tmp_path / "b.toml") == got
        assert load_recipe(tmp_path / "a.toml", ["train.class_weights=[1, 2]"]).train.class_weights == (1.0, 2.0)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ("freeze_epochs=1", r"freeze_epochs must be at least 1, with freeze to say what"),
            ("layer_decay=0", r"layer_decay must be in \(0, 1\]; got 0"),
            ("layer_decay=1.5", r"layer_decay must be in"),
            ("lr_factors.stem=0", r"lr_factors: 'stem' must be above 0 and finite; got 0.*use freeze"),
            ("class_weights=[1, -1]", r"class_weights must be finite, at least 0, and not all 0"),
            ("class_weights=[0, 0]", r"class_weights must be finite"),
            ("class_weights=balance", r"train.class_weights: expected one of 'balanced'"),
        ],
    )
    def test_bad_values_are_named(self, change: str, message: str, tmp_path: Path) -> None:
        (tmp_path / "a.toml").write_text(BASE.to_toml())
        with pytest.raises(ConfigError, match=message):
            load_recipe(tmp_path / "a.toml", [f"train.{change}"])


ALONE = """
import sys
from hardy.training import DataRecipe, ModelRecipe, Recipe, TrainRecipe, train

how = TrainRecipe(epochs=2, batch_size=32, lr=0.05, weight_decay=0.1, freeze=("all_but_head",), freeze_epochs=1,
    layer_decay=0.8, class_weights="balanced")
model = ModelRecipe(name="timm:test_efficientnet_gn")
data = DataRecipe(name="digits", size=32, limit=64, val_fraction=0.0, augment=())
train(Recipe(model=model, data=data, methods=({"name": "lfm", "p": 1.0},), train=how), out=sys.argv[1])
"""


@pytest.mark.slow
def test_frozen_and_then_not_over_two_processes(tmp_path: Path) -> None:
    (tmp_path / "alone.py").write_text(ALONE)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}

    def run(out: str, *start_with: str) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
        command = [sys.executable, *start_with, str(tmp_path / "alone.py"), str(tmp_path / out)]
        done = subprocess.run(command, check=False, env=env, capture_output=True, text=True)  # noqa: S603
        assert done.returncode == 0, done.stderr[-3000:]
        return RunFolder(tmp_path / out).rows(), weights(tmp_path / out)

    rows, want = run("one")
    others, got = run("two", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    assert [row["task"] for row in others] == pytest.approx([row["task"] for row in rows], rel=1e-5)
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-6)
