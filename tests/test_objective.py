"""One module that a loop sees whole: keys reach every layer, losses have names, and evaluation is left alone."""

import copy
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from hardy import seeding
from hardy.errors import AttachError, ShapeError
from hardy.methods import (
    METHODS,
    DefectiveConv,
    GaussianNoise,
    LabelSmoothing,
    LocalFeatureMasking,
    Mixup,
    RandomErasing,
    SpatialDropout,
)
from hardy.objective import Objective
from hardy.surgery import Attachment, Context, Insert, after, attach, attachments, capture, insert, strip


class Net(nn.Module):
    """No layer of it mixes rows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1, self.act1 = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU()
        self.conv2, self.norm2, self.act2 = nn.Conv2d(8, 8, 3, 2, padding=1), nn.GroupNorm(2, 8), nn.ReLU()
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.norm1(self.conv1(x)))
        x = self.act2(self.norm2(self.conv2(x)))
        y: Tensor = self.fc(x.mean((2, 3)))
        return y


RANDOM = [
    LocalFeatureMasking(p=0.5, sites=("conv1",)),
    SpatialDropout(p=0.3, sites=("norm1", "norm2")),
    DefectiveConv(keep=0.7, sites=("norm1",)),
    RandomErasing(),
    GaussianNoise(),
]


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def x() -> Tensor:
    return torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def y() -> Tensor:
    return torch.arange(12) % 5


KEY = seeding.keys(seeding.root(1, "images"), torch.arange(12))


class Spy(Insert):
    """Writes down what it is given."""

    def __init__(self, *, seed: int = 0, weight: float = 0.5) -> None:
        super().__init__(None, seed=seed)
        self.scale = nn.Parameter(torch.tensor(weight))
        self.seen: list[object] = []

    def inputs(self, x: Tensor, y: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.append(("inputs", key))
        soft = F.one_hot(y, 5).float() if y.ndim == 1 else y
        return x * 0.5, 0.8 * soft + 0.2 * soft.flip(0)

    def terms(self, context: Context) -> dict[str, Tensor]:
        self.seen.append(("terms", context))
        return {"size": self.scale * context.logits.pow(2).mean()}

    def around_step(self, closure: Callable[[], dict[str, Tensor]], step: Callable[[], None]) -> dict[str, Tensor]:
        first = closure()
        step()
        self.seen.append(("around_step", first))
        return closure()

    def epoch_end(self, epoch: int) -> None:
        self.seen.append(("epoch_end", epoch))


class TestPlain:
    def test_is_the_model_and_cross_entropy_when_nothing_is_attached(self, net: Net, x: Tensor, y: Tensor) -> None:
        logits, losses = Objective(net)(x, y, KEY)
        assert torch.equal(logits, net(x)) and list(losses) == ["task"]
        torch.testing.assert_close(losses["task"], F.cross_entropy(net(x), y))

    def test_takes_soft_labels(self, net: Net, x: Tensor) -> None:
        soft = torch.softmax(torch.randn(12, 5, generator=torch.Generator().manual_seed(1)), dim=1)
        logits, losses = Objective(net)(x, soft)
        torch.testing.assert_close(losses["task"], -(soft * logits.log_softmax(1)).sum(1).mean())

    def test_evaluation_mode_does_nothing(self, net: Net, x: Tensor, y: Tensor) -> None:
        want = net.eval()(x)
        spy = Spy()
        insert(net, spy, method="spy")
        attach(net, [RANDOM[0], RANDOM[1], RANDOM[3], RANDOM[4], LabelSmoothing(smoothing=0.5)], example=x, seed=0)
        objective = Objective(net).eval()
        logits, losses = objective(x, y, KEY)
        assert torch.equal(logits, want) and list(losses) == ["task"] and spy.seen == []
        torch.testing.assert_close(losses["task"], F.cross_entropy(want, y))
        assert int(objective.step) == 0
        assert all(layer.pending is None for layer in net.modules() if hasattr(layer, "pending"))


W = torch.tensor([0.5, 2.0, 0.0, 1.0, 3.0])
SOFT = torch.softmax(torch.randn(12, 5, generator=torch.Generator().manual_seed(1)), dim=1)


class TestClassWeights:
    def test_of_labels_it_is_torchs_where_the_weights_in_the_batch_have_mean_1(
        self, net: Net, x: Tensor, y: Tensor
    ) -> None:
        scaled = W / W[y].mean()
        losses = Objective(net, class_weights=scaled)(x, y, KEY)[1]
        torch.testing.assert_close(losses["task"], F.cross_entropy(net(x), y, weight=W))
        halves = Objective(net, class_weights=W)(x, y, KEY)[1]["task"]
        torch.testing.assert_close(halves, F.cross_entropy(net(x), y, weight=W) * W[y].mean())

    def test_parts_of_a_batch_add_up_by_their_numbers_of_rows(self, net: Net, x: Tensor, y: Tensor) -> None:
        objective = Objective(net, class_weights=W)
        parts = [objective(x[rows], y[rows], KEY[rows])[1]["task"] * len(rows) for rows in torch.arange(12).split(5)]
        torch.testing.assert_close(torch.stack(parts).sum() / 12, objective(x, y, KEY)[1]["task"])

    def test_of_soft_labels_it_is_torchs_and_of_certain_ones_that_of_labels(
        self, net: Net, x: Tensor, y: Tensor
    ) -> None:
        objective = Objective(net, class_weights=W)
        torch.testing.assert_close(objective(x, SOFT, KEY)[1]["task"], F.cross_entropy(net(x), SOFT, weight=W))
        certain = objective(x, F.one_hot(y, 5).float(), KEY)[1]["task"]
        torch.testing.assert_close(certain, objective(x, y, KEY)[1]["task"])

    def test_a_task_loss_of_a_method_is_weighted_row_by_row(self, net: Net, x: Tensor, y: Tensor) -> None:
        attach(net, [LabelSmoothing(smoothing=0.3)], example=x, seed=0)
        objective = Objective(net, class_weights=W)
        rows = F.cross_entropy(net(x), y, label_smoothing=0.3, reduction="none")
        torch.testing.assert_close(objective(x, y, KEY)[1]["task"], (rows * W[y]).mean())
        rows = F.cross_entropy(net(x), SOFT, label_smoothing=0.3, reduction="none")
        torch.testing.assert_close(objective(x, SOFT, KEY)[1]["task"], (rows * (SOFT @ W)).mean())

    def test_mixed_images_count_each_share_by_its_class(self, net: Net, x: Tensor, y: Tensor) -> None:
        held = Mixup().attach(net, example=x, seed=3).insert
        mixed, labels = held.inputs(x, y, seeding.fold(KEY, held.root))
        want = -(labels * W * net(mixed).log_softmax(1)).sum(1).mean()
        torch.testing.assert_close(Objective(net, class_weights=W)(x, y, KEY)[1]["task"], want)

    def test_terms_and_evaluation_are_left_alone_and_the_state_dict_too(self, net: Net, x: Tensor, y: Tensor) -> None:
        insert(net, Spy(), method="spy")
        plain, weighted = Objective(net), Objective(net, class_weights=W)
        (_, a), (_, b) = plain(x, y, KEY), weighted(x, y, KEY)
        assert torch.equal(a["size"], b["size"]) and not torch.equal(a["task"], b["task"])
        assert torch.equal(plain.eval()(x, y, KEY)[1]["task"], weighted.eval()(x, y, KEY)[1]["task"])
        assert plain.state_dict().keys() == weighted.state_dict().keys()

    def test_one_weight_for_each_logit(self, net: Net, x: Tensor, y: Tensor) -> None:
        with pytest.raises(ShapeError, match=r"class_weights must be one number for each logit; got 4 for 5"):
            Objective(net, class_weights=W[:4])(x, y, KEY)


class TestKeys:
    def test_a_row_does_not_depend_on_its_batch(self, net: Net, x: Tensor, y: Tensor) -> None:
        attach(net, RANDOM, example=x, seed=0)
        objective = Objective(net)
        whole, _ = objective(x, y, KEY)
        order = torch.tensor([7, 3, 11, 0, 2, 9, 1, 4, 10, 5, 8, 6])
        torch.testing.assert_close(objective(x[order], y[order], KEY[order])[0], whole[order])
        parts = [objective(x[part], y[part], KEY[part])[0] for part in torch.arange(12).split(5)]
        torch.testing.assert_close(torch.cat(parts), whole)
        other, _ = objective(x, y, KEY + 1)
        assert (whole - other).abs().amax(1).min() > 1e-4  # every row would have noticed other numbers

    @pytest.mark.parametrize("method", RANDOM, ids=lambda m: type(m).__name__)
    def test_equal_images_with_equal_keys_are_treated_equally(self, net: Net, x: Tensor, method: object) -> None:
        attach(net, [method], example=x, seed=0)  # type: ignore[list-item]
        logits, _ = Objective(net)(x[[0, 0, 0]], torch.zeros(3, dtype=torch.int64), KEY[[4, 4, 5]])
        torch.testing.assert_close(logits[0], logits[1])

    def test_without_keys_rows_and_calls_count(self, net: Net, x: Tensor, y: Tensor) -> None:
        attach(net, RANDOM, example=x, seed=0)
        first, second = Objective(net), Objective(net, seed=1)
        a, b = first(x, y)[0], first(x, y)[0]
        assert not torch.equal(a, b) and int(first.step) == 2
        again = Objective(net)
        assert torch.equal(again(x, y)[0], a) and torch.equal(again(x, y)[0], b)
        assert not torch.equal(second(x, y)[0], a)
        assert first.state_dict()["step"] == 2

    def test_without_keys_a_stopped_loop_goes_on_with_its_numbers(self, net: Net, x: Tensor, y: Tensor) -> None:
        attach(net, RANDOM, example=x, seed=0)
        objective = Objective(net)
        losses = [objective(x, y)[1]["task"] for _ in range(2)]
        state, counters = copy.deepcopy(objective.state_dict()), [a.state_dict() for a in attachments(net)]
        losses += [objective(x, y)[1]["task"] for _ in range(2)]
        resumed = Objective(copy.deepcopy(net))
        resumed.load_state_dict(state)
        for attachment, counter in zip(attachments(resumed.model), counters, strict=True):
            attachment.load_state_dict(counter)
        assert [resumed(x, y)[1]["task"] for _ in range(2)] == losses[2:]

    def test_an_epoch_gives_new_numbers(self, net: Net, x: Tensor, y: Tensor) -> None:
        attach(net, RANDOM, example=x, seed=0)
        a, b = (Objective(net)(x, y, seeding.fold(KEY, epoch))[0] for epoch in (0, 1))
        assert not torch.equal(a, b)

    def test_every_method_has_a_key_of_its_own(self, net: Net, x: Tensor, y: Tensor) -> None:
        spies = [Spy(), Spy(), Spy(seed=1)]
        for spy in spies:
            insert(net, spy, method="spy")
        Objective(net)(x, y, KEY)
        given = [spy.seen[0][1] for spy in spies]  # type: ignore[index]
        assert len({int(k) for key in (KEY, *given) for k in key}) == 4 * 12

    def test_the_numbers_of_an_earlier_pass_are_not_used_again(self, net: Net, x: Tensor, y: Tensor) -> None:
        attach(net, [SpatialDropout(p=0.5, sites=("norm1",))], example=x, seed=0)
        keyed, _ = Objective(net)(x, y, KEY)
        assert not torch.equal(net(x), keyed)
        assert torch.equal(Objective(net)(x, y, KEY)[0], keyed)


class TestPaired:
    """A method that is switched on changes neither initial weights nor anybody else's random numbers."""

    @pytest.mark.parametrize("method", [*RANDOM, LabelSmoothing()], ids=lambda m: type(m).__name__)
    def test_weights_and_global_generator_stay(self, net: Net, x: Tensor, y: Tensor, method: object) -> None:
        want, before = copy.deepcopy(net.state_dict()), torch.get_rng_state()
        attach(net, [method], example=x, seed=0)  # type: ignore[list-item]
        Objective(net)(x, y, KEY)[1]["task"].backward()
        assert torch.equal(torch.get_rng_state(), before)
        assert all(torch.equal(net.state_dict()[name], value) for name, value in want.items())

    def test_one_method_does_not_change_the_draws_of_another(self, net: Net, x: Tensor, y: Tensor) -> None:
        def first_layer(methods: list[object]) -> Tensor:
            with attach(net, methods, example=x, seed=0), capture(net, ["conv1"]) as f:  # type: ignore[arg-type]
                Objective(net)(x, y, KEY)
            return f["conv1"]

        alone, among = first_layer(RANDOM[:1]), first_layer([LabelSmoothing(), RANDOM[1], RANDOM[0]])
        assert torch.equal(alone, among) and not torch.equal(alone, net.conv1(x))


class TestTerms:
    def test_inputs_terms_and_task_run_in_order_on_the_changed_batch(self, net: Net, x: Tensor, y: Tensor) -> None:
        spy = Spy()
        insert(net, spy, method="spy")
        logits, losses = Objective(net)(x, y, KEY)
        assert [kind for kind, _ in spy.seen] == ["inputs", "terms"]  # type: ignore[misc]
        context = spy.seen[1][1]  # type: ignore[index]
        assert isinstance(context, Context)
        assert torch.equal(context.x, x * 0.5) and context.y.shape == (12, 5) and torch.equal(context.key, KEY)
        assert torch.equal(context.logits, logits)
        assert list(losses) == ["task", "size"] and all(loss.shape == () for loss in losses.values())
        torch.testing.assert_close(losses["task"], F.cross_entropy(net(x * 0.5), context.y))
        torch.testing.assert_close(losses["size"], 0.5 * logits.pow(2).mean())

    def test_terms_of_one_name_are_told_apart(self, net: Net, x: Tensor, y: Tensor) -> None:
        for _ in range(2):
            insert(net, Spy(), method="spy")
        _, losses = Objective(net)(x, y, KEY)
        assert list(losses) == ["task", "size", "spy-2.size"]

    def test_gradients_reach_learned_parameters_of_methods(self, net: Net, x: Tensor, y: Tensor) -> None:
        spy = Spy()
        insert(net, spy, method="spy")

        class Gain(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.ones(()))

            def forward(self, x: Tensor) -> Tensor:
                return x * self.weight

        after(net, ["norm1"], lambda _n, _y: Gain(), method="gain", example=x, held=Insert(None, seed=0))
        objective = Objective(net)
        names = [name for name, _ in objective.named_parameters() if "_hardy" in name]
        assert names == ["model._hardy.spy.scale", "model._hardy.gain.taps.0.layer.weight"]
        sum(objective(x, y, KEY)[1].values()).backward()  # type: ignore[union-attr]
        assert all(p.grad is not None and p.grad.abs() > 0 for n, p in objective.named_parameters() if n in names)
        spy.seen.clear()  # holds tensors of the graph, which cannot be copied
        assert not any("_hardy" in name for name, _ in strip(net).named_parameters())

    def test_a_term_may_run_the_net_again_with_the_same_draws(self, net: Net, x: Tensor, y: Tensor) -> None:
        class Consistency(Insert):
            def terms(self, context: Context) -> dict[str, Tensor]:
                same, other = context.forward(context.x), context.forward(context.x.flip(-1))
                return {"same": (same - context.logits).abs().max(), "other": (other - context.logits).pow(2).mean()}

        attach(net, [SpatialDropout(p=0.5, sites=("norm1",))], example=x, seed=0)
        insert(net, Consistency(None, seed=0), method="consistency")
        _, losses = Objective(net)(x, y)
        assert losses["same"] == 0 and losses["other"] > 0
        losses["other"].backward()
        assert net.conv1.weight.grad is not None and net.conv1.weight.grad.any()

    def test_around_step_runs_the_closure_as_often_as_it_needs(self, net: Net, x: Tensor, y: Tensor) -> None:
        spy = Spy()
        insert(net, spy, method="spy")
        objective, calls = Objective(net), []

        def closure() -> dict[str, Tensor]:
            _, losses = objective(x, y, KEY)
            calls.append(losses)
            return losses

        steps: list[int] = []
        out = attachments(net)[0].insert.around_step(closure, lambda: steps.append(len(calls)))
        assert len(calls) == 2 and out is calls[1] and steps == [1]
        assert all(torch.equal(calls[0][name], calls[1][name]) for name in out)  # the same keys: the same losses
        attachments(net)[0].insert.epoch_end(3)
        assert spy.seen[-1] == ("epoch_end", 3)

    def test_the_defaults_of_an_insert_change_nothing(self, net: Net, x: Tensor, y: Tensor) -> None:
        want = Objective(net)(x, y, KEY)
        held = Insert(None, seed=0)
        insert(net, held, method="nothing")
        got = Objective(net)(x, y, KEY)
        assert (
            torch.equal(got[0], want[0]) and torch.equal(got[1]["task"], want[1]["task"]) and list(got[1]) == ["task"]
        )
        held.epoch_end(0)
        losses = {"task": torch.zeros(())}
        assert held.around_step(lambda: losses, lambda: pytest.fail("the loop steps")) is losses


class TestTask:
    def test_a_method_may_define_the_task_loss(self, net: Net, x: Tensor, y: Tensor) -> None:
        LabelSmoothing(smoothing=0.3).attach(net, example=x, seed=0)
        logits, losses = Objective(net)(x, y, KEY)
        torch.testing.assert_close(losses["task"], F.cross_entropy(logits, y, label_smoothing=0.3))

    def test_two_that_define_it_are_refused(self, net: Net, x: Tensor) -> None:
        attach(net, [LabelSmoothing(), LabelSmoothing(smoothing=0.2)], example=x, seed=0)
        with pytest.raises(AttachError, match=r"only one method .*; label_smoothing and label_smoothing-2 do\."):
            Objective(net)
        assert Objective(net, attachments(net)[:1]).names == ["label_smoothing"]

    def test_what_is_attached_elsewhere_is_refused(self, net: Net, x: Tensor) -> None:
        other = attach(Net(), [LabelSmoothing()], example=x, seed=0)
        with pytest.raises(AttachError, match=r"Objective: label_smoothing must be attached to this model"):
            Objective(net, other)

    def test_what_is_attached_to_a_part_is_refused_unless_it_is_a_mask(self, net: Net, x: Tensor) -> None:
        outer = nn.Sequential(net)
        DefectiveConv(sites=("norm1",)).attach(net, example=x, seed=0)
        Objective(outer)
        GaussianNoise().attach(net, example=x, seed=0)
        with pytest.raises(AttachError, match="defective_conv, gaussian_noise at its part '0' would take no part"):
            Objective(outer)

    def test_only_the_named_attachments_take_part(self, net: Net, x: Tensor, y: Tensor) -> None:
        a = attach(net, [LabelSmoothing(), RandomErasing(p=1.0)], example=x, seed=0)
        logits, losses = Objective(net, a[:1])(x, y, KEY)
        assert torch.equal(logits, net(x))
        assert losses["task"] != F.cross_entropy(logits, y)


class TestLife:
    def test_a_copied_objective_works_alone(self, net: Net, x: Tensor, y: Tensor) -> None:
        attach(net, [*RANDOM, LabelSmoothing()], example=x, seed=0)
        objective = Objective(net)
        objective(x, y)
        twin = copy.deepcopy(objective)
        assert torch.equal(twin(x, y)[0], objective(x, y)[0]) and int(twin.step) == int(objective.step) == 2
        for a in reversed(attachments(twin.model)):
            a.detach()
        assert len(attachments(net)) == 6
        assert torch.equal(twin(x, y, KEY)[0], strip(net, live=True)(x))

    def test_a_copied_model_gets_an_objective_of_its_own(self, net: Net, x: Tensor, y: Tensor) -> None:
        attach(net, RANDOM, example=x, seed=0)
        twin = copy.deepcopy(net)
        assert torch.equal(Objective(twin, attachments(twin))(x, y, KEY)[0], Objective(net)(x, y, KEY)[0])

    def test_what_is_detached_takes_no_part_any_more(self, net: Net, x: Tensor, y: Tensor) -> None:
        want = Objective(net)(x, y, KEY)[1]["task"]
        a = attach(net, [*RANDOM, LabelSmoothing(smoothing=0.4)], example=x, seed=0)
        objective = Objective(net, a)
        assert objective(x, y, KEY)[1]["task"] != want
        a.detach()
        assert objective(x, y, KEY)[1]["task"] == want

    def test_a_step_that_raises_does_not_lend_its_keys_to_the_next(self, net: Net, x: Tensor, y: Tensor) -> None:
        attach(net, [SpatialDropout(p=0.5, sites=("norm1",))], example=x, seed=0)
        objective = Objective(net)
        want = objective(x, y, KEY)[0]
        with pytest.raises(RuntimeError):
            objective(x[:, :2], y, KEY)
        assert not torch.equal(net(x), want) and torch.equal(objective(x, y, KEY)[0], want)

    def test_five_lines_of_a_users_own_loop_learn(self, net: Net) -> None:
        x = torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(3))
        y = (x[:, 0].mean((1, 2)) > x[:, 1].mean((1, 2))).long()
        x[:, 0] += 0.5 * y[:, None, None]
        attach(net, RANDOM, example=x, seed=0)
        objective = Objective(net)
        optimizer = torch.optim.Adam(objective.parameters(), lr=0.01)
        for _ in range(80):
            _, losses = objective(x, y)
            optimizer.zero_grad()
            sum(losses.values()).backward()  # type: ignore[union-attr]
            optimizer.step()
        objective.eval()
        logits, losses = objective(x, y)
        assert losses["task"] < 0.35 and (logits.argmax(1) == y).float().mean() > 0.85

    def test_works_without_gradients(self, net: Net, x: Tensor, y: Tensor) -> None:
        attach(net, [*RANDOM, LabelSmoothing()], example=x, seed=0)
        with torch.no_grad():
            _, losses = Objective(net)(x, y, KEY)
        assert math.isfinite(losses["task"].item()) and not losses["task"].requires_grad


@dataclass(frozen=True)
class Spying:
    """A user's own method: any frozen dataclass with ``attach``."""

    def attach(self, model: nn.Module, *, example: Tensor, seed: int) -> Attachment:
        return insert(model, Spy(seed=seed), method="spy")


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_ddp_sees_the_whole_objective(net: Net, x: Tensor, y: Tensor) -> None:
    attach(net, [Spying(), *RANDOM], example=x, seed=0)
    objective, alone = Objective(net), Objective(copy.deepcopy(net))
    wrapped = nn.parallel.DistributedDataParallel(objective)
    for each in (wrapped, alone):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1)
        for step in range(2):
            _, losses = each(x, y, seeding.fold(KEY, step))
            optimizer.zero_grad()
            sum(losses.values()).backward()
            assert all(p.grad is not None for p in each.parameters())
            optimizer.step()
    for a, b in zip(objective.state_dict().values(), alone.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)


COMPILE = """
import copy, sys, torch
from torch import nn
from hardy import seeding
from hardy.methods import METHODS
from hardy.objective import Objective
from hardy.surgery import attach, attachments, insert

def layers():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))

x, y = torch.rand(6, 3, 8, 8), torch.arange(6) % 4
sites = {"lfm": {"sites": ("0",), "p": 0.5}, "defective_conv": {"sites": ("1", "4")}}
sites["spatial_dropout"] = {"sites": ("1", "4"), "p": 0.5}
sites |= {"drop_block": {"sites": ("1", "4")}, "stochastic_depth": {"sites": ("4",)}}
every = {name: [METHODS[name](**sites.get(name, {}))] for name in sys.argv[1:-1]}
every |= {"all": [method for (method,) in every.values()]}
for name in sys.argv[1:]:
    torch.manual_seed(0)
    torch._dynamo.reset()
    net = layers()
    attach(net, every[name], example=x, seed=0)
    eager = Objective(net)
    twin = copy.deepcopy(eager)
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(3):
            key = seeding.fold(seeding.keys(0, torch.arange(6)), step)
            pairs = [(each(x, y, key)) for each in (eager, compiled)]
            for logits, losses in pairs:
                sum(losses.values()).backward()
            torch.testing.assert_close(pairs[0][0], pairs[1][0])
            assert list(pairs[0][1]) == list(pairs[1][1])
            for term in pairs[0][1]:
                torch.testing.assert_close(pairs[0][1][term], pairs[1][1][term])
    for a, b in zip(eager.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    # and evaluation: one more graph, then no recompilation either
    eager.eval(), twin.eval()
    torch.testing.assert_close(compiled(x, y, key)[0], eager(x, y, key)[0])
    with torch._dynamo.config.patch(error_on_recompile=True):
        twin.train()
        torch.testing.assert_close(compiled(x, y, key)[0], eager.train()(x, y, key)[0])
    print(name, "ok")
"""


@pytest.mark.slow
def test_a_compiled_objective_computes_the_same_without_recompiling() -> None:
    # in a process of its own, because the compiler cannot read functions that beartype has wrapped
    apart = {"augmix", "pgd_at", "trades", "mart", "fast_at", "free_at"}  # works image by image; take gradients inside
    apart |= {"distillation"}  # asks a teacher, which is not compiled
    names = [name for name in METHODS if name not in apart]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", COMPILE, *names, "all"], check=False, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == [word for name in [*names, "all"] for word in (name, "ok")]


def test_a_model_that_returns_no_logits_is_named() -> None:
    class Auxiliary(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.flatten(1), x.flatten(1)

    with pytest.raises(ShapeError, match=r"must return logits \(n, k\); got tuple. Switch off auxiliary heads"):
        Objective(Auxiliary())(torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64))
