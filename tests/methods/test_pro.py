"""The loss equals the formula written out; patterns learn, follow, and leave without a trace."""

import copy
import math
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hardy import seeding
from hardy.errors import AttachError, ParameterError, ShapeError
from hardy.methods import LabelSmoothing, Mixup
from hardy.methods.pro import PatternConsistency, PatternTap, Seen, feature_pattern, pattern_distances
from hardy.objective import Objective
from hardy.surgery import attach, capture, strip
from hardy.training import TrainRecipe
from hardy.training.optim import make_optimizer

KEY = seeding.keys(seeding.root(0, "images"), torch.arange(6))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(True),
        nn.Conv2d(8, 12, 3, 2, padding=1), nn.ReLU(True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 9), nn.ReLU(True), nn.Linear(9, 4),
    )  # fmt: skip


@pytest.fixture
def x() -> Tensor:
    return torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def y() -> Tensor:
    return torch.tensor([0, 1, 2, 3, 0, 0])


def slow_pattern(x: Tensor, normalise: str) -> Tensor:
    rows = []
    for row in x.double():
        v = [float(channel.mean()) for channel in row]
        mean = sum(v) / len(v)
        std = math.sqrt(sum((a - mean) ** 2 for a in v) / (len(v) - 1))
        low, high = min(v), max(v)
        z = [(a - mean) / (std + 1e-5) for a in v]
        rows.append(z if normalise == "zscore" else [(a - low) / (high - low + 1e-5) for a in v])
    return torch.tensor(rows, dtype=torch.float64)


def slow_loss(u: Tensor, patterns: Tensor, y: Tensor, distance: str) -> float:
    total = 0.0
    for row, label in zip(u.tolist(), y.tolist(), strict=True):
        p = patterns[label].tolist()
        if distance == "cosine":
            dot = sum(a * b for a, b in zip(row, p, strict=True))
            total += 1 - dot / math.sqrt(sum(a * a for a in row) * sum(b * b for b in p))
        else:
            power = 1 if distance == "l1" else 2
            total += sum(abs(a - b) ** power for a, b in zip(row, p, strict=True)) / len(row)
    return total / len(u)


@pytest.mark.parametrize("normalise", ["zscore", "minmax"])
@pytest.mark.parametrize("shape", [(3, 8, 4, 5), (4, 10)])
def test_a_pattern_is_the_formula(normalise: Any, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(feature_pattern(x, normalise=normalise), slow_pattern(x, normalise))
    # relative sizes, not absolute ones
    scaled = feature_pattern(1000 * x + 5, normalise=normalise)
    torch.testing.assert_close(scaled, feature_pattern(1000 * x, normalise=normalise), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("normalise", ["zscore", "minmax"])
def test_gradients_of_a_pattern_are_right_and_finite_where_all_channels_are_equal(normalise: Any) -> None:
    x = torch.randn(3, 8, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: feature_pattern(x, normalise=normalise), x)
    flat = torch.ones(2, 8, requires_grad=True)
    feature_pattern(flat, normalise=normalise).sum().backward()
    assert flat.grad is not None and flat.grad.isfinite().all()


@pytest.mark.parametrize("distance", ["l1", "l2", "cosine"])
@pytest.mark.parametrize("normalise", ["zscore", "minmax"])
@pytest.mark.parametrize("patterns", ["learned", "ema"])
def test_the_term_is_the_formula_layer_by_layer(
    x: Tensor, y: Tensor, distance: Any, normalise: Any, patterns: Any
) -> None:
    model = net().double()
    spec = PatternConsistency(weight=0.7, distance=distance, normalise=normalise, patterns=patterns)
    a = spec.attach(model, example=x.double(), seed=0)
    taps = [cast("PatternTap", tap) for tap in a.insert.taps]
    assert [tap.name for tap in taps] == ["3", "7"] and not a.sites  # not the first convolution, not the logits
    for tap in taps:
        assert tap.patterns.shape == (4, 12 if tap.name == "3" else 9)
        if patterns == "ema":
            tap.patterns.copy_(torch.randn(tap.patterns.shape))
            tap.known.fill_(True)
    before = [tap.patterns.detach().clone() for tap in taps]
    with capture(model, ["3", "7"]) as seen:
        logits, losses = Objective(model)(x.double(), y, KEY)
    want = sum(
        slow_loss(slow_pattern(seen[site], normalise), pattern, y, distance)
        for site, pattern in zip(("3", "7"), before, strict=True)
    )
    assert losses["pro"].item() == pytest.approx(0.7 * want, rel=1e-9)
    torch.testing.assert_close(losses["task"], F.cross_entropy(logits, y))  # nothing else changes


def test_features_and_patterns_both_get_gradients_and_the_first_layer_learns_too(x: Tensor, y: Tensor) -> None:
    model = net()
    a = PatternConsistency().attach(model, example=x, seed=0)
    Objective(model)(x, y, KEY)[1]["pro"].backward()
    assert (
        cast("nn.Conv2d", model[0]).weight.grad is not None and cast("nn.Conv2d", model[0]).weight.grad.abs().sum() > 0
    )
    for tap in (cast("PatternTap", t) for t in a.insert.taps):
        grad = tap.patterns.grad
        assert grad is not None and grad.abs().sum() > 0
        # L1: sign of the difference, over the rows of the class
        assert torch.allclose(grad * 6 * grad.shape[1], (grad * 6 * grad.shape[1]).round(), atol=1e-4)


def test_training_by_the_term_alone_moves_patterns_to_the_median_of_the_class() -> None:
    u = feature_pattern(torch.randn(30, 8, generator=torch.Generator().manual_seed(0)), normalise="zscore")
    spec = PatternConsistency()
    tap = PatternTap("a", (), 1, initial=torch.zeros(1, 8), spec=spec, seen=Seen())
    optimizer = torch.optim.SGD([tap.patterns], lr=0.05)
    y = torch.zeros(30, dtype=torch.int64)
    for step in range(600):
        optimizer.param_groups[0]["lr"] = 2.0 * (1 - step / 600)
        optimizer.zero_grad()
        tap.loss(u, y).backward()
        optimizer.step()
    low, high = u.quantile(0.4, 0), u.quantile(0.6, 0)
    assert ((tap.patterns[0] >= low) & (tap.patterns[0] <= high)).all()


def test_moving_averages_follow_the_means_of_the_classes(x: Tensor, y: Tensor) -> None:
    tap = PatternTap(
        "a",
        (),
        1,
        initial=torch.zeros(4, 8),
        spec=PatternConsistency(patterns="ema", momentum=0.75),
        seen=Seen(),
    )
    u, y = torch.randn(6, 8), torch.tensor([0, 1, 1, 0, 0, 1])
    assert tap.loss(u, y) == 0  # nothing is known yet
    tap.follow(u, y)
    torch.testing.assert_close(tap.patterns[0], u[[0, 3, 4]].mean(0))
    assert tap.known.tolist() == [True, True, False, False] and not tap.patterns[2:].any()
    v = torch.randn(2, 8)
    old = tap.patterns.clone()
    tap.follow(v, torch.tensor([1, 2]))
    torch.testing.assert_close(tap.patterns[1], 0.75 * old[1] + 0.25 * v[0])
    torch.testing.assert_close(tap.patterns[2], v[1])
    assert torch.equal(tap.patterns[0], old[0]) and not list(tap.parameters())
    soft = torch.tensor([[0.0, 0.0, 0.25, 0.75], [0.0, 0.0, 0.75, 0.25]])
    tap.follow(v, soft)
    torch.testing.assert_close(tap.patterns[3], 0.75 * v[0] + 0.25 * v[1])


def test_moving_averages_are_not_rounded_under_autocast(x: Tensor, y: Tensor) -> None:
    model = net()
    a = PatternConsistency(patterns="ema").attach(model, example=x, seed=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        Objective(model)(x, y, KEY)
    patterns = cast("PatternTap", a.insert.taps[0]).patterns
    assert not torch.equal(patterns, patterns.bfloat16().float())


@pytest.mark.parametrize("reentrant", [False, True])
def test_under_checkpointing_features_get_gradients_or_it_is_an_error(reentrant: bool, x: Tensor, y: Tensor) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.body = nn.Conv2d(3, 8, 1), nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU())
            self.fc = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = checkpoint(self.body, x, use_reentrant=reentrant) if self.training else self.body(x)
            out: Tensor = self.fc(x.mean((2, 3)))
            return out

    model = Checkpointed()
    PatternConsistency(sites=("body.0",)).attach(model, example=x, seed=0)
    if reentrant:
        with pytest.raises(AttachError, match=r"body.0: patterns need gradients.* use_reentrant=False"):
            Objective(model)(x, y, KEY)
        return
    Objective(model)(x, y, KEY)[1]["pro"].backward()
    grad = cast("nn.Conv2d", model.body[0]).weight.grad
    assert grad is not None and grad.abs().sum() > 0


@pytest.mark.parametrize("distance", ["l1", "cosine"])
def test_of_soft_labels_it_is_the_mean_over_the_classes(distance: Any) -> None:
    spec = PatternConsistency(distance=distance)
    tap = PatternTap("a", (), 1, initial=torch.randn(3, 8), spec=spec, seen=Seen())
    u, share = torch.randn(5, 8), torch.rand(5, 3)
    share[0, 1] = 0
    each = torch.stack([pattern_distances(u, tap.patterns[k].expand(5, 8), distance=distance) for k in range(3)], 1)
    torch.testing.assert_close(tap.loss(u, share), (share * each).sum(1).mean())
    y = torch.tensor([0, 2, 1, 1, 0])
    torch.testing.assert_close(tap.loss(u, F.one_hot(y, 3).float()), tap.loss(u, y))


def test_other_methods_that_run_the_net_again_do_not_change_it(x: Tensor, y: Tensor) -> None:
    from hardy.methods import AugMix

    losses = []
    for order in (("pro",), ("pro", "augmix"), ("augmix", "pro")):
        model = net()
        methods = {"pro": PatternConsistency(), "augmix": AugMix(severity=5.0)}
        attach(model, [methods[name] for name in order], example=x, seed=0)
        losses.append(Objective(model)(x, y, KEY)[1]["pro"])
    assert losses[0] == losses[1] == losses[2]


def test_without_labels_nothing_is_kept_and_the_features_pass_through(x: Tensor, y: Tensor) -> None:
    model = net()
    want = model(x)
    a = PatternConsistency().attach(model, example=x, seed=0)
    seen = cast("Any", a.insert).seen
    model[1].reset_running_stats()  # type: ignore[operator]
    assert torch.equal(model(x), want) and not seen
    objective = Objective(model)
    objective(x, y, KEY)
    assert not seen  # the graph of a step does not outlive it
    objective.eval()(x, y, KEY)
    assert not seen
    copy.deepcopy(model.train())


def test_soft_labels_of_mixup_and_smoothing_work_together(x: Tensor, y: Tensor) -> None:
    model = net()
    attach(model, [Mixup(), PatternConsistency(), LabelSmoothing()], example=x, seed=0)
    _, losses = Objective(model)(x, y, KEY)
    assert losses["pro"].isfinite() and losses["pro"] > 0


def test_decay_is_a_choice_and_strip_takes_the_patterns_off(x: Tensor) -> None:
    for decay in (True, False):
        model = net()
        a = PatternConsistency(weight_decay=decay).attach(model, example=x, seed=0)
        optimizer = make_optimizer(model, TrainRecipe(weight_decay=0.1))
        decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
        assert all((id(tap.patterns) in decayed) is decay for tap in a.insert.taps)
        plain = strip(model)
        assert list(plain.state_dict()) == list(net().state_dict())
        assert torch.equal(plain.eval()(x), model.eval()(x))


def test_patterns_start_as_standard_normal_numbers_of_the_seed(x: Tensor) -> None:
    first, same, other = (PatternConsistency().attach(net(), example=x, seed=seed).insert.taps[0] for seed in (0, 0, 1))
    assert torch.equal(first.patterns, same.patterns) and not torch.equal(first.patterns, other.patterns)
    wide = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 512, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 4)
    )
    values = PatternConsistency().attach(wide, example=x, seed=0).insert.taps[0].patterns.detach()
    assert abs(values.mean()) < 4 / 2048**0.5 and abs(values.std() - 1) < 4 / 4096**0.5


def test_what_cannot_be_is_an_error(x: Tensor, y: Tensor) -> None:
    for fields, says in (
        ({"weight": -1.0}, "weight"),
        ({"momentum": 1.0}, "momentum"),
    ):
        with pytest.raises(ParameterError, match=f"PatternConsistency: {says} must be"):
            PatternConsistency(**fields)  # type: ignore[arg-type]  # on purpose

    class Halves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x[..., :4], x[..., 4:]])

    class Whole(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat(x.chunk(2), dim=3)

    split = nn.Sequential(Halves(), nn.Conv2d(3, 8, 1), Whole(), nn.Flatten(), nn.Linear(512, 4))
    PatternConsistency(sites=("1",)).attach(split, example=x, seed=0)
    with pytest.raises(ShapeError, match=r"pro: 1 must give one row per image; got 12 rows for 6 labels"):
        Objective(split)(x, y, KEY)
    one = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Flatten(), nn.Linear(64, 4))
    one = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Flatten(), nn.Linear(64, 4))
    with pytest.raises(AttachError, match=r"pro: 0 must give \(n, c, h, w\) or \(n, c\), c > 1; got \(1, 1, 8, 8\)"):
        PatternConsistency(sites=("0",)).attach(one, example=x, seed=0)
