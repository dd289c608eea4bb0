"""Equations 3 to 7 against slow formulas and finite differences."""

import copy
import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardy import seeding
from hardy.errors import AttachError, ParameterError
from hardy.methods.model_doctor import (
    PRESETS,
    ModelDoctor,
    channel_loss,
    read_relevance,
    relevant_channels,
    runner_up,
    space_loss,
    write_relevance,
)
from hardy.objective import Objective
from hardy.surgery import strip

CLASSES, CHANNELS = 3, 5
KEY = seeding.keys(seeding.root(0, "images"), torch.arange(6))


class Small(nn.Module):
    """Two convolutions, with in-place activations and a norm behind the site."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.last = nn.Conv2d(4, CHANNELS, 3, padding=1)
        self.norm = nn.BatchNorm2d(CHANNELS)
        self.act = nn.ELU(inplace=True)
        self.fc = nn.Linear(CHANNELS, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm(self.last(F.elu_(self.first(x)))))
        out: Tensor = self.fc(y.square().mean((2, 3)))
        return out


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Small().double()


@pytest.fixture
def x() -> Tensor:
    return torch.rand(6, 2, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def y() -> Tensor:
    return torch.tensor([0, 1, 2, 2, 1, 0])


@pytest.fixture
def relevance() -> Tensor:
    return torch.rand(CLASSES, CHANNELS, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def file(tmp_path: Path, relevance: Tensor) -> str:
    path = tmp_path / "relevance.safetensors"
    write_relevance(path, {"last": relevance}, sign="absolute")
    return str(path)


def slow(model: nn.Module, x: Tensor, y: Tensor, relevance: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Walk through images and channels, one derivative at a time; the net normalises the batch as it trains."""
    noise, sign, others = options["noise"], options["sign"], options["others"]
    mask = options["mask"]
    m = model.get_submodule("last")(F.elu(model.get_submodule("first")(x))) + noise
    m = m.detach().requires_grad_()
    z = model.get_submodule("fc")(F.elu(model.get_submodule("norm")(m)).square().mean((2, 3)))
    channel, space = z.new_zeros(len(x)), z.new_zeros(len(x))
    score = {"true": 0.0, "other": 0.0}
    s = []
    for b in range(len(x)):
        order = z[b].argsort(descending=True)
        s.append(int(order[1] if order[0] == y[b] else order[0]))
        score["true"] += z[b, y[b]]
        score["other"] += z[b, s[b]]
    slopes = {name: torch.autograd.grad(value, m, retain_graph=True)[0] for name, value in score.items()}
    background = options["background"]
    for b in range(len(x)):
        for k in range(CHANNELS):
            parts = {
                n: (g[b, k].abs() if sign == "absolute" else g[b, k].clamp(min=0)).sum() for n, g in slopes.items()
            }
            channel[b] += parts["true"] * (not mask[y[b], k])
            channel[b] += parts["other"] * (1 if others == "all" else bool(mask[s[b], k]))
            if background is not None:
                for i in range(5):
                    for j in range(4):
                        space[b] += background[b, i, j] * slopes["true"][b, k, i, j].abs()
    return channel.detach(), space.detach()


@pytest.mark.parametrize("sign", ["absolute", "positive"])
@pytest.mark.parametrize("others", ["all", "own"])
@pytest.mark.parametrize("noise", [0.0, 0.7])
def test_the_terms_are_those_of_the_slow_formulas(  # noqa: PLR0917  (fixtures)
    sign: Any, others: Any, noise: float, model: nn.Module, x: Tensor, y: Tensor, relevance: Tensor, file: str
) -> None:
    background = torch.rand(6, 5, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    spec = ModelDoctor(relevance=file, channel=2.0, space=3.0, sign=sign, others=others, noise=noise)
    a = spec.attach(model, example=x, seed=0)
    layer: Any = a.insert.taps[0].layer
    layer.key = KEY
    drawn = seeding.normal(layer.row_keys(x), 0, (CHANNELS, 5, 4)).double() * noise
    layer.key = None
    reference = copy.deepcopy(strip(model)).train()
    logits, losses = Objective(model)(x, y, KEY, background)
    mask = relevance >= relevance.mean(1, keepdim=True)
    channel, space = slow(
        reference, x, y, relevance, noise=drawn, sign=sign, others=others, mask=mask, background=background
    )
    assert losses["channel"].item() == pytest.approx(2 * channel.mean().item(), rel=1e-9)
    assert losses["space"].item() == pytest.approx(3 * space.mean().item(), rel=1e-9)
    assert losses["task"].item() == pytest.approx(F.cross_entropy(logits, y).item())
    assert (channel > 0).all() and (space > 0).all()


@pytest.mark.parametrize("terms", ["channel", "space"])
def test_gradients_by_weights_are_those_of_finite_differences(
    terms: str, model: nn.Module, x: Tensor, y: Tensor, file: str
) -> None:
    background = torch.rand(6, 5, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    ModelDoctor(relevance=file, channel=1.0, space=1.0, noise=0.1).attach(model, example=x, seed=0)
    objective = Objective(model)

    def value() -> Tensor:
        return objective(x, y, KEY, background)[1][terms]

    value().backward()
    g = torch.Generator().manual_seed(4)
    for name, p in model.named_parameters():
        direction = torch.randn(p.shape, generator=g, dtype=p.dtype)
        slope, step, ends = float((p.grad * direction).sum()) if p.grad is not None else 0.0, 1e-6, []
        for side in (step, -step):
            with torch.no_grad():
                p.add_(side * direction)
                with torch.enable_grad():
                    ends.append(value().item())
                p.sub_(side * direction)
        measured = (ends[0] - ends[1]) / (2 * step)
        assert slope == pytest.approx(measured, rel=1e-4, abs=1e-7), name
    for name in ("first.weight", "last.weight", "fc.weight"):  # each layer is reached, through second derivatives too
        grad = model.get_parameter(name).grad
        assert grad is not None and float(grad.abs().max()) > 1e-4


def test_several_draws_add_up(
    model: nn.Module, x: Tensor, y: Tensor, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    once, twice = [], []
    for draws, kept in ((1, once), (3, twice)):
        net = copy.deepcopy(model).eval()  # a frozen norm: batches do not change it
        a = ModelDoctor(relevance=file, channel=1.0, noise=0.5, draws=draws).attach(net, example=x, seed=0)
        assert a.insert.passes.forward == draws - 1
        net.train().get_submodule("norm").eval()
        kept.append(Objective(net)(x, y, KEY)[1]["channel"].item())
    other = []
    for draw in range(3):
        net = copy.deepcopy(model)
        ModelDoctor(relevance=file, channel=1.0, noise=0.5).attach(net, example=x, seed=0)
        net.get_submodule("norm").eval()
        drawn = functools.partial(seeding.normal, counter=draw)
        monkeypatch.setattr(seeding, "normal", lambda key, _, shape, drawn=drawn: drawn(key, shape=shape))
        other.append(Objective(net)(x, y, KEY)[1]["channel"].item())
        monkeypatch.undo()
    assert len(set(other)) == 3 and other[0] == pytest.approx(once[0])
    assert twice[0] == pytest.approx(sum(other), rel=1e-6)


def test_each_image_counts_for_itself(model: nn.Module, x: Tensor, y: Tensor, file: str) -> None:
    ModelDoctor(relevance=file, channel=1.0, noise=0.5).attach(model, example=x, seed=0)
    model.train().get_submodule("norm").eval()
    objective = Objective(model)
    whole = objective(x, y, KEY)[1]["channel"]
    parts = [objective(x[rows], y[rows], KEY[rows])[1]["channel"] for rows in (slice(0, 2), slice(2, 6))]
    assert whole.item() == pytest.approx((parts[0] * 2 + parts[1] * 4).item() / 6, rel=1e-6)


def test_legacy_scaling_divides_by_the_batch_once_more(model: nn.Module, x: Tensor, y: Tensor, file: str) -> None:
    found = []
    for legacy in (False, True):
        net = copy.deepcopy(model)
        ModelDoctor(relevance=file, channel=6.0, noise=0.0, legacy_scaling=legacy).attach(net, example=x, seed=0)
        found.append(Objective(net)(x, y, KEY)[1]["channel"].item())
    assert found[0] == pytest.approx(6 * found[1])


def test_training_lowers_the_term(model: nn.Module, x: Tensor, y: Tensor, file: str) -> None:
    ModelDoctor(relevance=file, channel=1.0, noise=0.0).attach(model, example=x, seed=0)
    objective = Objective(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    seen = []
    for _ in range(20):
        loss = objective(x, y, KEY)[1]["channel"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    assert seen[-1] < 0.8 * seen[0]


def test_no_noise_and_no_terms_while_testing(model: nn.Module, x: Tensor, y: Tensor, file: str) -> None:
    plain = copy.deepcopy(model).eval()(x)
    ModelDoctor(relevance=file).attach(model, example=x, seed=0)
    assert torch.equal(model.eval()(x), plain)
    assert list(Objective(model).eval()(x, y, KEY)[1]) == ["task"]
    layer: Any = model.get_submodule("_hardy.model_doctor.taps.0.layer")
    assert not layer.kept


def test_without_background_there_is_no_space_term(model: nn.Module, x: Tensor, y: Tensor) -> None:
    ModelDoctor(channel=0.0, space=10.0).attach(model, example=x, seed=0)
    assert Objective(model)(x, y, KEY)[1]["space"].item() == 0
    assert Objective(model)(x, y, KEY, torch.zeros(6, 5, 4))[1]["space"].item() == 0
    assert Objective(model)(x, y, KEY, torch.ones(6, 5, 4).double())[1]["space"].item() > 0


def test_soft_labels_count_by_their_largest_share(model: nn.Module, x: Tensor, y: Tensor, file: str) -> None:
    ModelDoctor(relevance=file, noise=0.0).attach(model, example=x, seed=0)
    soft = F.one_hot(y, CLASSES).double() * 0.6 + 0.4 / CLASSES
    model.get_submodule("norm").eval()
    hard = Objective(model)(x, y, KEY)[1]["channel"]
    assert torch.equal(Objective(model)(x, soft, KEY)[1]["channel"], hard)


def test_an_activation_may_overwrite_the_site(x: Tensor, y: Tensor, tmp_path: Path, relevance: Tensor) -> None:
    found = []
    for inplace in (False, True):
        torch.manual_seed(0)
        parts = nn.Conv2d(2, CHANNELS, 3), nn.ELU(inplace=inplace), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        net = nn.Sequential(*parts, nn.Linear(CHANNELS, CLASSES)).double()
        write_relevance(tmp_path / "r", {"0": relevance})
        spec = ModelDoctor(relevance=str(tmp_path / "r"), noise=0.1, sites=("0",))
        spec.attach(net, example=x, seed=0)
        loss = Objective(net)(x, y, KEY)[1]["channel"]
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in net.parameters() if p.grad is not None)])
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(*found, strict=True))


def test_a_frozen_body_leaves_the_head_to_learn(model: nn.Module, x: Tensor, y: Tensor, file: str) -> None:
    for name in ("first", "last"):
        model.get_submodule(name).requires_grad_(False)
    ModelDoctor(relevance=file, noise=0.0, channel=1.0).attach(model, example=x, seed=0)
    loss = Objective(model)(x, y, KEY)[1]["channel"]
    loss.backward()
    grad = model.get_parameter("fc.weight").grad
    assert loss.item() > 0 and grad is not None and float(grad.abs().max()) > 0


def test_a_shared_layer_is_one_call_or_the_sum_of_its_calls(x: Tensor, y: Tensor, tmp_path: Path) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.d = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.fc = nn.Linear(4, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc(self.d(self.d(self.stem(x)).relu()).relu().mean((2, 3)))
            return out

    torch.manual_seed(0)
    net = Shared().double()
    write_relevance(tmp_path / "r", {f"d#{i}": torch.rand(CLASSES, 4) for i in range(2)})
    losses = []
    for sites in (("last_conv",), ("d#1",), ("d#0",), ("d",)):
        with ModelDoctor(relevance=str(tmp_path / "r"), noise=0.0, sites=sites).attach(net, example=x, seed=0):
            losses.append(Objective(net)(x, y, KEY)[1]["channel"].item())
    assert losses[0] == losses[1] and len(set(losses)) == 3 and losses[3] > max(losses[:3])


class TestFunctions:
    def test_runner_up(self) -> None:
        logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [0.0, 1.0, 5.0]])
        assert runner_up(logits, torch.tensor([0, 1, 0])).tolist() == [1, 0, 2]

    def test_relevant_channels(self) -> None:
        a = torch.tensor([[0.0, 1.0, 2.0, 9.0], [math.nan] * 4, [4.0] * 4])
        mean = relevant_channels(a, threshold="mean")
        assert mean[0].tolist() == [False, False, False, True]  # the mean is 3
        assert mean[1].all() and mean[2].all()
        assert relevant_channels(a, threshold=0.2)[0].tolist() == [False, False, True, True]  # 0, 0.11, 0.22, 1
        assert relevant_channels(a, threshold=0.2)[2].all()  # all alike: none is irrelevant

    def test_channel_loss_by_hand(self) -> None:
        true, other = torch.tensor([[1.0, 2.0]]), torch.tensor([[10.0, 20.0]])
        relevant = torch.tensor([[True, False], [False, True]])
        y, s = torch.tensor([0]), torch.tensor([1])
        assert channel_loss(true, other, relevant, y, s, others="all").item() == 2 + 30
        assert channel_loss(true, other, relevant, y, s, others="own").item() == 2 + 20

    def test_space_loss_averages_the_background_to_the_size_of_the_layer(self) -> None:
        background = torch.zeros(1, 4, 4)
        background[0, :2, :2] = 1.0  # a quarter
        background[0, 2, 2] = 1.0  # a quarter of a quarter
        gradient = torch.tensor([[[[-1.0, 10.0], [100.0, 4.0]]]])
        assert space_loss(gradient, background).item() == 1 + 4 / 4


class TestPresets:
    def test_repo_and_paper(self) -> None:
        paper, repo = PRESETS["paper"], PRESETS["repo"]
        assert (paper.sign, paper.threshold, paper.others, paper.noise) == ("absolute", "mean", "all", 1.0)
        assert (repo.sign, repo.threshold, repo.others, repo.noise) == ("positive", 0.2, "own", 0.0)
        assert paper.legacy_scaling and repo.legacy_scaling and paper.channel == repo.channel == 10

    def test_defaults_are_the_papers_at_its_batch_size(self) -> None:
        assert ModelDoctor().channel == PRESETS["paper"].channel / 128


class TestErrors:
    def test_no_file(self, model: nn.Module, x: Tensor) -> None:
        with pytest.raises(AttachError, match="must name a file of channel relevance; got none"):
            ModelDoctor().attach(model, example=x, seed=0)

    def test_a_file_that_is_not_there(self, model: nn.Module, x: Tensor, tmp_path: Path) -> None:
        with pytest.raises(AttachError, match="must be a file of channel relevance"):
            ModelDoctor(relevance=str(tmp_path / "none")).attach(model, example=x, seed=0)

    def test_another_file(self, tmp_path: Path) -> None:
        from hardy.safefile import write_tensors

        write_tensors(tmp_path / "a", {"last": torch.zeros(2, 2)}, {"kind": "another"})
        with pytest.raises(AttachError, match="got another one"):
            read_relevance(tmp_path / "a")
        (tmp_path / "b").write_bytes(b"nothing")
        with pytest.raises(AttachError, match="must be a file"):
            read_relevance(tmp_path / "b")

    def test_another_net(self, model: nn.Module, x: Tensor, tmp_path: Path) -> None:
        for maps, what in (({"last": torch.ones(CLASSES, 7)}, r"\(3, 7\)"), ({"x": torch.ones(3, 5)}, "sites x")):
            write_relevance(tmp_path / "c", maps)
            with pytest.raises(AttachError, match=rf"must hold \(classes, channels\) = \(3, 5\) of last; got {what}"):
                ModelDoctor(relevance=str(tmp_path / "c")).attach(model, example=x, seed=0)
        assert not hasattr(model, "_hardy")

    def test_a_linear_layer_has_channels_but_no_space(
        self, model: nn.Module, x: Tensor, y: Tensor, tmp_path: Path
    ) -> None:
        write_relevance(tmp_path / "c", {"fc": torch.rand(3, 3)})
        a = ModelDoctor(relevance=str(tmp_path / "c"), sites=("fc",), noise=0.0).attach(model, example=x, seed=0)
        assert Objective(model)(x, y, KEY)[1]["channel"].item() > 0
        a.detach()
        with pytest.raises(AttachError, match="must give"):
            ModelDoctor(channel=0.0, space=1.0, sites=("fc",)).attach(model, example=x, seed=0)

    @pytest.mark.parametrize("wrong", [{"channel": -1.0}, {"draws": 0}, {"noise": -1.0}, {"threshold": 1.0}])
    def test_values_out_of_range(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(ParameterError, match="ModelDoctor"):
            ModelDoctor(**wrong)
