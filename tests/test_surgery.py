"""What is attached belongs to the model, a site is a call, and nothing that was taken off has left a trace."""

import copy
import io
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

from hardy.errors import AttachError, CallError, LayerNotFoundError, ShapeError
from hardy.methods import METHODS, DefectiveConv, LabelSmoothing, SpatialDropout
from hardy.surgery import (
    Attachment,
    Insert,
    after,
    attach,
    attachments,
    capture,
    resolve,
    set_keys,
    strip,
    without_trace,
)
from hardy.taps import KeyedLayer, Tap


class Block(nn.Module):
    """A residual block that calls its in-place ReLU twice, as torchvision's does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.conv2, self.bn2 = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x
        return self.relu(y)


class Net(nn.Module):
    def __init__(self, *, checkpointing: bool = False) -> None:
        super().__init__()
        self.block, self.fc, self.checkpointing = Block(), nn.Linear(3, 4), checkpointing

    def forward_features(self, x: Tensor) -> Tensor:
        y: Tensor = checkpoint(self.block, x, use_reentrant=False) if self.checkpointing else self.block(x)
        return y

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.forward_features(x).mean((2, 3)))
        return y


class Scale(nn.Module):
    """A method with a parameter and a buffer."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(value))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


DROP = SpatialDropout(p=0.5, sites=("block.relu#1",))
COUNTER = "taps.0.layer"


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def scale(net: nn.Module, x: Tensor, *sites: str, value: float = 2.0, live: bool = False) -> Attachment:
    held = Insert(None, seed=0, live=live)
    return after(net, sites, lambda _name, _y: Scale(value), method="scale", example=x, held=held)


def hooks(model: nn.Module) -> list[object]:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_always_called")
    return [hook for m in model.modules() for kind in kinds for hook in getattr(m, kind).values()]


def test_detach_leaves_no_trace(net: Net, x: Tensor) -> None:
    net.block.bn1.eval()  # a frozen layer, which attaching must not thaw
    rng, state = torch.get_rng_state(), copy.deepcopy(net.state_dict())
    tree, modes, want = list(net.named_modules()), [m.training for m in net.modules()], copy.deepcopy(net)(x)
    first, second = DROP.attach(net, example=x, seed=0), scale(net, x, "block.conv*", "block.conv1")
    assert second.sites == ("block.conv1", "block.conv2")
    assert [net.get_submodule(name) for name, _ in tree] == [m for _, m in tree]
    assert [m.training for _, m in tree] == modes
    second.detach()
    first.detach()
    first.detach()
    assert list(net.named_modules()) == tree and hooks(net) == []
    assert list(net.state_dict()) == list(state)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), state.values(), strict=True))
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.equal(net(x), want)


def test_state_dict_has_the_parameters_of_methods_and_nothing_else(net: Net, x: Tensor) -> None:
    keys = list(net.state_dict())
    with DROP.attach(net, example=x, seed=0), capture(net, ["fc"]):
        assert list(net.state_dict()) == keys
        with scale(net, x, "block.conv1"):
            added = ["_hardy.scale.taps.0.layer.weight", "_hardy.scale.taps.0.layer.seen"]
            assert list(net.state_dict()) == keys + added
            assert any(net.get_parameter(added[0]) is p for p in net.parameters())


def test_every_hook_is_a_method_of_a_module_in_the_model(net: Net, x: Tensor) -> None:
    DROP.attach(net, example=x, seed=0)
    with capture(net, ["block"]):
        for model in (net, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):  # noqa: S301
            found = [hook for hook in hooks(model) if hook is not True]
            assert len(found) == 6
            assert {id(hook.__self__) for hook in found} <= {id(m) for m in model.get_submodule("_hardy").modules()}


def by_pickle(model: Net) -> Net:
    again: Net = pickle.loads(pickle.dumps(model))  # noqa: S301
    return again


def by_torch_save(model: Net) -> Net:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    again: Net = torch.load(file, weights_only=False)
    return again


@pytest.mark.parametrize("clone", [copy.deepcopy, by_pickle, by_torch_save])
def test_a_copy_is_independent(net: Net, x: Tensor, clone: Callable[[Net], Net]) -> None:
    plain = copy.deepcopy(net)
    drop, _ = DROP.attach(net, example=x, seed=0), scale(net, x, "block.conv1")
    net(x)
    twin = clone(net)
    assert torch.equal(net(x), twin(x))  # same step, so same channels
    net(x)
    assert drop.state_dict() == {COUNTER: 3} and attachments(twin)[0].state_dict() == {COUNTER: 2}
    twin.get_parameter("_hardy.scale.taps.0.layer.weight").data.zero_()
    assert net.get_parameter("_hardy.scale.taps.0.layer.weight") == 2
    for a in reversed(attachments(twin)):
        a.detach()
    assert hooks(twin) == [] and len(attachments(net)) == 2
    plain.load_state_dict(twin.state_dict())
    assert torch.equal(twin.eval()(x), plain.eval()(x))


def test_a_copy_made_with_keys_pending_works(net: Net, x: Tensor) -> None:
    DROP.attach(net, example=x, seed=0)
    set_keys(net, torch.arange(4))
    twin = copy.deepcopy(net)
    assert torch.equal(net(x), twin(x))
    assert attachments(twin)[0].state_dict() == {COUNTER: 0}  # keys were used, not the counter


def test_a_loaded_model_accepts_new_hooks_in_a_fresh_process(
    net: Net, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale(net, x, "fc")
    data = pickle.dumps(net)
    monkeypatch.setattr(RemovableHandle, "next_id", 0)
    loaded = pickle.loads(data)  # noqa: S301
    before = len(hooks(loaded))
    for _ in range(20):
        loaded.fc.register_forward_hook(lambda *_: None)
    assert len(hooks(loaded)) == before + 20


def test_to_moves_what_is_attached(net: Net, x: Tensor) -> None:
    DROP.attach(net, example=x, seed=0)
    scale(net, x, "fc")
    assert net.to(torch.float64)(x.double()).dtype == torch.float64
    assert net.get_parameter("_hardy.scale.taps.0.layer.weight").dtype == torch.float64


def test_sequential_still_runs_with_something_attached(x: Tensor) -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
    with scale(net, x, "1", value=1.0):
        got = net(x)
    assert torch.equal(got, net(x)) and len(net) == 2


def test_a_site_is_a_call(net: Net, x: Tensor) -> None:
    net.eval()
    with capture(net, ["block.relu", "fc"]) as f:
        logits = net(x)
        assert list(f) == ["block.relu#0", "block.relu#1", "fc#0"]
        assert torch.equal(f["fc"], logits)
        with pytest.raises(CallError, match=r"block.relu: called 2 times; ask for one of block.relu#0, block.relu#1"):
            f["block.relu"]
        with pytest.raises(CallError, match=r"fcc: not called; captured: block.relu#0, .*"):
            f["fcc"]
    both = f
    for call in (0, 1):
        with capture(net, [f"*.relu#{call}"]) as f:
            net(x)
            net(-x)
            net(x)  # the latest forward pass counts, and the count starts again
        assert list(f) == [f"block.relu#{call}"] and torch.equal(f["block.relu"], both[f"block.relu#{call}"])


def test_after_changes_the_chosen_calls_only(net: Net, x: Tensor) -> None:
    net.eval()
    block = net.block

    def by_hand(first: float, second: float) -> Tensor:
        y = torch.relu(block.bn1(block.conv1(x))) * first
        out: Tensor = net.fc((torch.relu(block.bn2(block.conv2(y)) + x) * second).mean((2, 3)))
        return out

    want = {"#0": by_hand(2, 1), "#1": by_hand(1, 2), "": by_hand(2, 2)}
    for call, value in want.items():
        with scale(net, x, f"block.relu{call}"):
            for _ in range(2):
                torch.testing.assert_close(net(x), value)
    with scale(net, x, "block.relu#0", "block.relu"):
        torch.testing.assert_close(net(x), want[""])  # once, though named twice


def test_a_call_that_never_happens_is_an_error(net: Net, x: Tensor) -> None:
    with pytest.raises(CallError, match=r"scale: block.relu#2 is not called on the example; called: "):
        scale(net, x, "block.relu#2")
    with pytest.raises(CallError, match=r"'fc#last': a call is a number from 0, as in 'fc#0'; got 'last'"):
        resolve(net, ["fc#last"])
    net.extra = nn.Linear(1, 1)
    with pytest.raises(CallError, match=r"extra#0 is not called"):
        scale(net, x, "extra")
    assert attachments(net) == [] and hooks(net) == []


class TestOutsideAForwardPass:
    """Parts of a net may be called directly; the count of calls goes round."""

    def test_parts_in_eval_mode_compute_what_the_whole_does(self, net: Net, x: Tensor) -> None:
        net.eval()
        with scale(net, x, "block.relu#1"), DROP.attach(net, example=x, seed=0):
            with capture(net, ["block"]) as f:
                logits = net(x)
            for _ in range(3):
                features = net.forward_features(x)
                assert torch.equal(features, f["block"])
                assert torch.equal(net.fc(features.mean((2, 3))), logits)
                assert torch.equal(net(x), logits)

    def test_random_layers_without_keys_are_an_error_in_training(self, net: Net, x: Tensor) -> None:
        with DROP.attach(net, example=x, seed=0):
            with pytest.raises(AttachError, match=r"block.relu: called outside a forward pass of the model"):
                net.forward_features(x)
            net(x)  # and the next whole pass is not disturbed by it
            net.eval().forward_features(x)

    def test_a_whole_pass_after_a_part_starts_to_count_again(self, net: Net, x: Tensor) -> None:
        net.eval()
        want = net(x)
        with scale(net, x, "block.relu#1", value=1.0), capture(net, ["block.relu#1"]) as f:
            net.block.relu(x.clone())  # one call of two
            assert torch.equal(net(x), want)
        assert list(f) == ["block.relu#1"]

    @pytest.mark.parametrize("site", ["block.relu#0", "block.relu#1", "block.relu", "block.bn1"])
    def test_checkpointing_with_keys_gives_the_gradients_of_the_plain_net(self, net: Net, x: Tensor, site: str) -> None:
        twin = Net(checkpointing=True)
        twin.load_state_dict(net.state_dict())
        grads = []
        for each in (net, twin):
            SpatialDropout(p=0.5, sites=(site,)).attach(each, example=x, seed=3)
            scale(each, x, site)
            for step in range(2):
                set_keys(each, torch.arange(4) + 10 * step)
                each(x).pow(2).sum().backward()
            grads.append([p.grad for p in each.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
        set_keys(net, torch.arange(4) + 20)  # the keys mattered
        net.zero_grad()
        net(x).pow(2).sum().backward()
        assert not torch.equal(net.fc.weight.grad, grads[1][-3])

    def test_checkpointing_survives_two_backward_passes(self, net: Net, x: Tensor) -> None:
        twin = Net(checkpointing=True)
        twin.load_state_dict(net.state_dict())
        got = []
        for each in (net, twin):
            SpatialDropout(p=0.5, sites=("block.relu#0",)).attach(each, example=x, seed=3)
            set_keys(each, torch.arange(4))
            loss = each(x).pow(2).sum()
            weight = each.block.conv1.weight
            got.append([torch.autograd.grad(loss, weight, retain_graph=True)[0] for _ in range(3)])
        assert all(torch.equal(a, b) for a, b in zip(*got, strict=True))

    def test_two_passes_before_backward_are_an_error_under_checkpointing(self, x: Tensor) -> None:
        net = Net(checkpointing=True)
        DROP.attach(net, example=x, seed=0)
        key = torch.arange(4)
        for step in range(2):  # one after the other is fine
            set_keys(net, key + step)
            net(x).sum().backward()
        set_keys(net, key)
        first = net(x).sum()
        set_keys(net, key + 1)
        with pytest.raises(AttachError, match=r"2 forward passes with other random numbers.*backward after each pass"):
            (first + net(x).sum()).backward()
        set_keys(net, key)
        net(x).sum().backward()

    def test_checkpointing_without_keys_is_an_error(self, x: Tensor) -> None:
        net = Net(checkpointing=True)
        with DROP.attach(net, example=x, seed=0):
            logits = net(x)
            with pytest.raises(AttachError, match=r"outside a forward pass of the model.* pass keys: hardy.Objective"):
                logits.sum().backward()  # recomputes the block


class TestKeys:
    """The keys of a forward pass reach the layers and are used once."""

    def test_a_row_keeps_its_numbers_in_any_batch(self, net: Net, x: Tensor) -> None:
        with DROP.attach(net, example=x, seed=0), capture(net, ["block"]) as f:
            net.block.eval()  # batch statistics would mix rows
            net.block.relu.train()
            key, order = torch.tensor([5, 2, 9, 2]), torch.tensor([2, 0, 3])
            set_keys(net, key)
            net(x)
            zero = (f["block"] == 0).all(-1).all(-1)
            assert zero.any() and not zero.all()
            whole = f["block"]
            set_keys(net, key[order])
            net(x[order])
            torch.testing.assert_close(f["block"], whole[order])
            set_keys(net, key[:1])
            net(x[:1])
            torch.testing.assert_close(f["block"], whole[:1])

    def test_keys_are_for_one_pass(self, net: Net, x: Tensor) -> None:
        with DROP.attach(net, example=x, seed=0) as a:
            set_keys(net, torch.arange(4))
            net(x)
            assert a.state_dict() == {COUNTER: 0}
            net(x)
            assert a.state_dict() == {COUNTER: 1}

    def test_the_two_calls_of_a_module_draw_different_numbers(self, x: Tensor) -> None:
        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.site = nn.Identity()

            def forward(self, x: Tensor) -> Tensor:
                return torch.stack([self.site(x), self.site(x)])

        net, ones = Twice(), torch.ones(64, 4, 1, 1)
        with SpatialDropout(p=0.5, sites=("site",)).attach(net, example=ones, seed=0):
            for keyed in (True, False):
                if keyed:
                    set_keys(net, torch.arange(64))
                first, second = net(ones)
                # 256 pairs of fair coins agree 128 +- 8 times
                assert 128 - 4 * 8 < (first == second).sum() < 128 + 4 * 8

    def test_a_layer_behind_a_split_of_rows_is_an_error(self, x: Tensor) -> None:
        class Split(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.site = nn.Identity()

            def forward(self, x: Tensor) -> Tensor:
                y: Tensor = self.site(x.reshape(len(x) * 2, -1, *x.shape[2:]))
                return y

        net, x = Split(), torch.ones(3, 4, 2, 2)
        with SpatialDropout(sites=("site",)).attach(net, example=x, seed=0):
            set_keys(net, torch.arange(3))
            with pytest.raises(ShapeError, match=r"SpatialDropout2d: one row per key .* got 6 rows for 3 keys"):
                net(x)
            net(x)  # without keys rows are what arrives

    def test_the_seed_and_the_site_matter(self, net: Net, x: Tensor) -> None:
        def mask(seed: int, site: str) -> Tensor:
            with SpatialDropout(p=0.5, sites=(site,)).attach(net, example=x, seed=seed), capture(net, [site]) as f:
                set_keys(net, torch.arange(4))
                net(x)
            return (f[site] == 0).all(-1).all(-1)

        assert torch.equal(mask(0, "block.bn1"), mask(0, "block.bn1"))
        assert not torch.equal(mask(0, "block.bn1"), mask(1, "block.bn1"))
        assert not torch.equal(mask(0, "block.bn1"), mask(0, "block.bn2"))

    def test_two_of_one_kind_at_one_site_draw_different_numbers(self) -> None:
        net, ones = nn.Sequential(nn.Identity()), torch.ones(64, 8, 1, 1)
        for _ in range(2):
            SpatialDropout(p=0.5, sites=("0",)).attach(net, example=ones, seed=0)
        set_keys(net, torch.arange(64))
        alive = (net(ones) != 0).float().mean().item()
        assert abs(alive - 0.25) < 4 * (0.25 * 0.75 / 512) ** 0.5  # 0.5 if both drop the same channels


def test_a_resumed_run_continues_the_draws(net: Net, x: Tensor) -> None:
    method = SpatialDropout(p=0.5, sites=("block.relu#1", "block.bn1"))
    state = copy.deepcopy(net.state_dict())
    with method.attach(net, example=x, seed=0) as a:
        net(x)
        saved = a.state_dict()
        assert saved == {"taps.0.layer": 1, "taps.1.layer": 1}
        want = [net(x), net(x)]
    assert not torch.equal(*want)
    net.load_state_dict(state)
    for seed, same in ((0, True), (1, False)):
        with method.attach(net, example=x, seed=seed) as a:
            a.load_state_dict(saved)
            assert all(torch.equal(net(x), y) is same for y in want)


def test_the_state_of_other_layers_is_an_error(net: Net, x: Tensor) -> None:
    a = SpatialDropout(sites=("block.relu#1", "block.bn1")).attach(net, example=x, seed=0)
    for state in ({}, {"taps.0.layer": 1}, {"taps.0.layer": 1, "taps.1.layer": 1, "taps.2.layer": 1}):
        with pytest.raises(AttachError, match=r"spatial_dropout: the state must have taps.0.layer, taps.1.layer; got"):
            a.load_state_dict(state)
    assert a.state_dict() == {"taps.0.layer": 0, "taps.1.layer": 0}


def test_a_forward_pass_that_raises_leaves_nothing(net: Net, x: Tensor) -> None:
    with capture(net, ["block.conv1"]) as f:
        net(x)
        with pytest.raises(RuntimeError):
            net(x[:, :1])
        assert not f  # not the tensors of the pass before
    assert hooks(net) == []


def test_a_forward_pass_that_raises_does_not_shift_the_calls(net: Net, x: Tensor) -> None:
    net.eval()
    with scale(net, x, "block.relu#1"):
        want = net(x)
        fc, net.fc = net.fc, nn.Linear(7, 4)
        with pytest.raises(RuntimeError):
            net(x)
        net.fc = fc
        assert torch.equal(net(x), want)


def test_a_copy_made_while_capturing_is_empty_and_works(net: Net, x: Tensor) -> None:
    with capture(net, ["fc"], detach=False) as f:
        logits = net.eval()(x)
        twin = copy.deepcopy(net)  # non-leaf tensors could not be copied
        assert torch.equal(twin(-x), net(-x))
    assert torch.equal(f["fc"], net(-x)) and not torch.equal(f["fc"], logits)
    attachments(twin)[0].detach()
    assert hooks(twin) == []


def test_capture_takes_its_hooks_off_when_the_block_raises(net: Net, x: Tensor) -> None:
    with pytest.raises(ZeroDivisionError), capture(net, ["fc"]):
        raise ZeroDivisionError
    assert hooks(net) == [] and not hasattr(net, "_hardy")


def test_capture_of_a_missing_site_says_so(net: Net) -> None:
    with capture(net, ["fc"]) as f, pytest.raises(CallError, match=r"fc: not called; captured: nothing. Run the model"):
        f["fc"]


def test_the_mode_is_that_of_the_model(net: Net, x: Tensor) -> None:
    with DROP.attach(net, example=x, seed=0) as a:
        net.block.relu.eval()  # as norms are that keep their statistics
        net(x)
        assert a.state_dict() == {COUNTER: 1}
        net.eval()
        net(x)
        assert a.state_dict() == {COUNTER: 1}
        net.train()
        net(x)
        assert a.state_dict() == {COUNTER: 2}


def test_a_method_at_a_frozen_norm_acts(net: Net, x: Tensor) -> None:
    method = SpatialDropout(p=0.5, sites=("block.bn1",))
    with method.attach(net, example=x, seed=0):
        net.block.bn1.eval()
        assert not torch.equal(net(x), net(x))


def test_an_example_that_the_net_changes_stays(x: Tensor) -> None:
    class Shift(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc(self.conv(x.sub_(0.5)).mean((2, 3)))
            return out

    before = x.clone()
    methods = [METHODS[name]() for name in ("lfm", "dropout", "mixup")]
    with attach(Shift(), methods, example=x, seed=0):
        assert torch.equal(x, before)


def test_attaching_does_not_draw(x: Tensor) -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand_like(x)

    before = torch.get_rng_state()
    scale(nn.Sequential(Noisy(), nn.ReLU()), x, "1")
    assert torch.equal(torch.get_rng_state(), before)


def test_without_trace_gives_back_each_mode_even_after_an_error(net: Net, x: Tensor) -> None:
    net.block.bn1.eval()
    modes, rng = [m.training for m in net.modules()], torch.get_rng_state()
    stats = net.block.bn2.running_mean.clone()

    def fail() -> None:
        with without_trace(net, x):
            assert not any(m.training for m in net.modules()) and not torch.is_grad_enabled()
            net(torch.rand_like(x))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [m.training for m in net.modules()] == modes and torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), rng) and torch.equal(net.block.bn2.running_mean, stats)


def test_resolve_never_finds_what_is_attached(net: Net, x: Tensor) -> None:
    names = list(resolve(net, ["*"]))
    scale(net, x, "fc")
    assert list(resolve(net, ["*"])) == names
    with pytest.raises(LayerNotFoundError, match=r"Net has no layer 'blok.relu#1' \(closest: block.relu"):
        resolve(net, ["blok.relu#1"])


class TestInPlace:
    """conv - BN - ReLU(inplace): what is captured at BN must be BN's output, in value and in gradient."""

    @pytest.fixture
    def net(self) -> nn.Sequential:
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Conv2d(3, 1, 2))
        return layers.double()

    @pytest.fixture
    def x(self) -> Tensor:
        return torch.randn(2, 2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    @pytest.mark.parametrize("detach", [True, False])
    def test_values(self, net: nn.Sequential, x: Tensor, detach: bool) -> None:
        want, plain = net[1](net[0](x)), net(x)
        with capture(net, ["1"], detach=detach) as f:
            assert torch.equal(net(x), plain)
        assert torch.equal(f["1"], want) and (want < 0).any()
        assert f["1"].requires_grad is not detach

    def test_gradient_by_the_captured_tensor(self, net: nn.Sequential, x: Tensor) -> None:
        with capture(net, ["1"], detach=False) as f:
            (got,) = torch.autograd.grad(net(x).pow(2).sum(), f["1"])
        h, eps, want = net[1](net[0](x)).detach(), 1e-6, torch.zeros_like(got)
        for i in range(h.numel()):
            step = torch.zeros_like(h).flatten().index_fill(0, torch.tensor(i), eps).view_as(h)
            up, down = (net[3](torch.relu(h + s)).pow(2).sum() for s in (step, -step))
            want.view(-1)[i] = (up - down).item() / (2 * eps)
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)

    def test_gradient_through_the_captured_tensor(self, net: nn.Sequential, x: Tensor) -> None:
        def loss(x: Tensor, weight: Tensor) -> Tensor:
            with capture(net, ["1"], detach=False) as f:
                logits = torch.func.functional_call(net, {"0.weight": weight}, x)
            return logits.pow(2).sum() + f["1"].pow(3).sum()

        assert torch.autograd.gradcheck(loss, (x.requires_grad_(), net[0].weight))


class TestOrder:
    """Attachments come off in reverse order where the order matters."""

    def test_a_later_one_on_the_same_site_blocks(self, net: Net, x: Tensor) -> None:
        first, second = scale(net, x, "fc"), scale(net, x, "fc", value=3.0)
        assert [a.name for a in attachments(net)] == ["scale", "scale-2"]
        with pytest.raises(AttachError, match=r"scale: scale-2 came later to fc. Detach scale-2 first."):
            first.detach()
        assert len(attachments(net)) == 2
        second.detach()
        first.detach()
        assert hooks(net) == []

    def test_any_order_on_different_sites(self, net: Net, x: Tensor) -> None:
        want = net.eval()(x)
        with capture(net, ["fc"]):
            first, second = scale(net, x, "fc"), scale(net, x, "block.conv1")
        assert first.detach() is None and second.detach() is None
        assert torch.equal(net(x), want)

    def test_an_old_handle_does_not_detach_a_new_one(self, net: Net, x: Tensor) -> None:
        old = scale(net, x, "fc")
        old.detach()
        new = scale(net, x, "fc")
        old.detach()
        assert new.sites == ("fc",) and [a.insert for a in attachments(net)] == [new.insert]

    def test_layers_of_one_site_run_in_the_order_they_came(self, net: Net, x: Tensor) -> None:
        class Plus(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x + 1

        want = net.eval()(x) * 2 + 1
        scale(net, x, "fc")
        after(net, ["fc"], lambda _n, _y: Plus(), method="plus", example=x, held=Insert(None, seed=0))
        torch.testing.assert_close(net(x), want)


@dataclass(frozen=True)
class Failing:
    """Puts something in, and then cannot."""

    def attach(self, model: nn.Module, *, example: Tensor, seed: int) -> Attachment:
        raise AttachError("failing: cannot.")


class TestAttachSeveral:
    def test_they_come_in_order_and_go_together(self, net: Net, x: Tensor) -> None:
        want = net.eval()(x)
        with attach(net, [DROP, LabelSmoothing(), DROP], example=x, seed=0) as done:
            names = ["spatial_dropout", "label_smoothing", "spatial_dropout-2"]
            assert [a.name for a in done] == names == [a.name for a in attachments(net)]
        assert hooks(net) == [] and torch.equal(net(x), want)

    def test_one_that_fails_leaves_only_what_was_there_before(self, net: Net, x: Tensor) -> None:
        tree, state = None, list(net.state_dict())
        for _ in range(2):
            with pytest.raises(AttachError, match=r"failing: cannot."):
                attach(net, [DROP, DefectiveConv(sites=("block.bn1",)), Failing(), DROP], example=x, seed=0)
            if tree is None:
                assert hooks(net) == [] and not hasattr(net, "_hardy")
                kept = scale(net, x, "block.relu", value=1.0)
                tree, state = list(net.named_modules()), list(net.state_dict())
        assert list(net.named_modules()) == tree and list(net.state_dict()) == state
        assert [a.insert for a in attachments(net)] == [kept.insert]

    def test_an_interrupt_is_no_exception_to_that(self, net: Net, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(*_: object, **__: object) -> Attachment:
            raise KeyboardInterrupt

        monkeypatch.setattr(Failing, "attach", interrupt)
        with pytest.raises(KeyboardInterrupt):
            attach(net, [DROP, Failing()], example=x, seed=0)
        assert hooks(net) == [] and not hasattr(net, "_hardy")

    def test_none_at_all_is_fine(self, net: Net, x: Tensor) -> None:
        assert attach(net, [], example=x, seed=0) == () and not hasattr(net, "_hardy")


class TestStrip:
    def test_takes_off_what_is_for_training_and_keeps_what_lives(self, net: Net, x: Tensor) -> None:
        attach(net, [DROP, DefectiveConv(keep=0.5, sites=("block.bn1",))], example=x, seed=0)
        scale(net, x, "block.bn1", value=3.0)  # on top of the masks, for training only
        net.eval()
        state, plain = copy.deepcopy(net.state_dict()), strip(net)
        assert [a.name for a in attachments(plain)] == ["defective_conv"]
        assert [a.name for a in attachments(net)] == ["spatial_dropout", "defective_conv", "scale"]
        assert all(torch.equal(state[k], v) for k, v in net.state_dict().items())
        assert not any("scale" in name for name in plain.state_dict()) and not plain.training
        for a in reversed(attachments(net)):
            if a.name == "scale":
                a.detach()
        assert torch.equal(plain(x), net(x))
        assert isinstance(plain, Net) and plain.fc.weight is not net.fc.weight

    def test_live_takes_off_everything(self, net: Net, x: Tensor) -> None:
        want = copy.deepcopy(net).eval()(x)
        attach(net, [DROP, DefectiveConv(keep=0.3, sites=("block.bn1",))], example=x, seed=0)
        bare = strip(net, live=True)
        assert hooks(bare) == [] and not hasattr(bare, "_hardy")
        assert torch.equal(bare.eval()(x), want) and not torch.equal(net.eval()(x), want)

    def test_a_live_layer_may_stay_above_one_that_goes(self, net: Net, x: Tensor) -> None:
        scale(net, x, "fc", value=5.0)
        scale(net, x, "fc", value=2.0, live=True)
        want = copy.deepcopy(strip(net, live=True)).eval()(x) * 2
        torch.testing.assert_close(strip(net).eval()(x), want)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def check_refused(net: nn.Module, x: Tensor, match: str) -> None:
    for act in (
        partial(DROP.attach, net, example=x, seed=0),
        partial(LabelSmoothing().attach, net, example=x, seed=0),
        partial(attach, net, [DROP], example=x, seed=0),
        partial(attachments, net),
        capture(net, ["*fc"]).__enter__,
    ):
        with pytest.raises(AttachError, match=match):
            act()


def test_compiled_models_are_refused(net: Net, x: Tensor) -> None:
    a = scale(net, x, "fc")
    want = r"OptimizedModule: attach and detach need the plain model. Use `._orig_mod`, then wrap it again."
    check_refused(torch.compile(net, backend="eager"), x, want)
    with pytest.raises(AttachError, match=want):
        strip(torch.compile(net, backend="eager"))
    net.block.compile(backend="eager")
    want = r"Block: compiled in place. Attach first, then call `.compile\(\)`."
    check_refused(net, x, want)
    with pytest.raises(AttachError, match=want):
        a.detach()
    assert hooks(strip(net)) == []  # a copy is not compiled


@pytest.mark.usefixtures("process_group")
def test_ddp_models_are_refused(net: Net, x: Tensor) -> None:
    wrapped = nn.parallel.DistributedDataParallel(net)
    check_refused(wrapped, x, r"DistributedDataParallel: attach and detach need the plain model. Use `.module`")


@pytest.mark.usefixtures("process_group")
def test_attach_then_wrap_works(net: Net, x: Tensor) -> None:
    scale(net, x, "fc")
    wrapped = nn.parallel.DistributedDataParallel(net)
    wrapped(x).sum().backward()
    assert net.get_parameter("_hardy.scale.taps.0.layer.weight").grad is not None


COMPILE = """
import copy, torch
from torch import nn
from hardy.methods import SpatialDropout
from hardy.surgery import attachments
net, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)), torch.randn(2, 3, 8, 8)
SpatialDropout(p=0.5, sites=("1#0",)).attach(net, example=x, seed=0)
twin = copy.deepcopy(net)
with torch._dynamo.config.patch(error_on_recompile=True):
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    for _ in range(3):
        torch.testing.assert_close(compiled(x), net(x))
assert attachments(net)[0].state_dict() == attachments(twin)[0].state_dict() == {"taps.0.layer": 3}
"""


@pytest.mark.slow
def test_attach_then_compile_computes_the_same_without_recompiling() -> None:
    # in a process of its own, because the compiler cannot read functions that beartype has wrapped
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", COMPILE], check=True, env=env)  # noqa: S603


def test_a_site_must_return_a_tensor(x: Tensor) -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair = Pair()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.pair(x)[0]
            return y

    outer = Outer()
    with capture(outer, ["pair"]), pytest.raises(AttachError, match=r"pair: a site must be one tensor; got tuple"):
        outer(x)


def test_a_tap_that_does_nothing_says_so(net: Net, x: Tensor) -> None:
    tap = Tap("fc", (), 1)
    tap.connect(net)
    with pytest.raises(AttachError, match=r"Tap does not say what to do with fc#0 \(4, 4\)"):
        net(x)
    tap.disconnect()
    assert hooks(net) == []


def test_a_keyed_layer_by_hand_needs_no_surgery() -> None:
    layer, x = KeyedLayer(seed=0, purpose="test"), torch.zeros(3, 1)
    first, second = layer.row_keys(x), layer.row_keys(x)
    assert first.shape == (3,) and len({*first.tolist(), *second.tolist()}) == 6
    assert int(layer.step) == 2 and list(layer.state_dict()) == []


class TestInputs:
    def test_a_layer_changes_what_enters_the_module_and_its_shortcut(self, net: Net, x: Tensor) -> None:
        net.eval()
        want, plain = net(2 * x), net(x)
        with scale(net, x, "block@input") as attachment:
            assert attachment.sites == ("block@input",)
            torch.testing.assert_close(net(x), want)
        assert torch.equal(net(x), plain)

    def test_capture_gives_what_entered_not_what_became_of_it(self, net: Net, x: Tensor) -> None:
        net.eval()
        with capture(net, ["block.relu@input", "block.bn2", "block.relu"]) as seen:
            net(x)
        assert list(seen) == ["block.relu@input#0", "block.relu#0", "block.bn2#0", "block.relu@input#1", "block.relu#1"]
        torch.testing.assert_close(seen["block.relu@input#1"], seen["block.bn2#0"] + x)
        torch.testing.assert_close(seen["block.relu#1"], seen["block.relu@input#1"].relu())

    def test_a_call_number_chooses_one_call(self, net: Net, x: Tensor) -> None:
        net.eval()
        with capture(net, ["block.bn1", "block.conv2@input"]) as seen:
            net(x)
            first = seen["block.conv2@input"]
            with scale(net, x, "block.relu@input#0", value=-1.0):
                net(x)
            torch.testing.assert_close(seen["block.conv2@input"], (-seen["block.bn1"]).relu())
        assert not torch.equal(first, seen["block.conv2@input"])

    def test_gradients_run_through_what_was_captured(self, net: Net, x: Tensor) -> None:
        with capture(net, ["fc@input"], detach=False) as seen:
            out = net(x)
        (gradient,) = torch.autograd.grad(out[:, 0].sum(), seen["fc@input"])
        torch.testing.assert_close(gradient, net.fc.weight[0].expand(4, 3))

    def test_a_copy_keeps_them(self, net: Net, x: Tensor) -> None:
        net.eval()
        with scale(net, x, "fc@input"):
            twin, want = copy.deepcopy(net), net(x)
        assert not torch.equal(net(x), want) and torch.equal(twin(x), want)

    def test_a_module_called_by_keywords_has_no_such_site(self, x: Tensor) -> None:
        class Outer(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv2d(3, 2, 3)

            def forward(self, x: Tensor) -> Tensor:
                y: Tensor = self.conv(input=x)
                return y

        outer = Outer()
        with capture(outer, ["conv@input"]), pytest.raises(AttachError, match="conv@input: the module must get its"):
            outer(x)
