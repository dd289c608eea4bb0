"""Queries are counted: against a loop written by hand, image by image."""

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hardy.attacks import Goal, HopSkipJump, Square
from hardy.attacks.norms import norm_of
from hardy.attacks.state import AnyAttack, Ball
from hardy.evaluation.budget import Budget
from hardy.evaluation.context import Context, Measured
from hardy.evaluation.query import measure
from hardy.seeding import fold, keys, root
from hardy.threats import Threat

THREAT = Threat("linf", 0.2)
MOST = 140  # queries
FEW = 18  # images


@pytest.fixture(scope="module")
def make(net: nn.Module, x: Tensor, y: Tensor) -> Callable[..., Context]:
    def context(queries: int, model: nn.Module = net, threat: Threat = THREAT, **facts: object) -> Context:
        plain = Context(
            model=model,
            x=x[:FEW],
            y=y[:FEW],
            rows=torch.arange(FEW) + 5,
            predictions=y[:FEW],
            num_classes=10,
            threat=threat,
            budget=Budget(queries=queries),
            **facts,  # type: ignore[arg-type]
        )
        return dataclasses.replace(plain, predictions=plain.predict(plain.x))

    return context


@pytest.fixture(scope="module")
def measured(make: Callable[..., Context]) -> Measured:
    return measure(make(MOST))


def by_hand(model: nn.Module, x: Tensor, y: Tensor, row: int, attack: AnyAttack) -> float:
    """Ask one point after the other until one is adversarial and inside the ball; give the number of points asked."""
    label = y[None]
    if int(model(x[None]).argmax()) != int(y):
        return 0
    goal = Goal(label=label, target=label, must_hit=torch.tensor([False]))
    key = fold(keys(root(0, f"attack:{attack.name}"), torch.tensor([row])), 0)
    state = attack.start(x[None], goal, Ball("linf", torch.tensor([THREAT.eps])), key)
    asked = 0
    while not bool(attack.finished(state).all()):
        points = attack.ask(state).x
        asked += len(points)
        logits = model(points)
        for point, z in zip(points, logits, strict=True):
            near = float(norm_of((point - x)[None], norm="linf")) <= THREAT.eps + 1e-6
            if near and int(z.argmax()) != int(y):
                return asked
        state = attack.tell(state, logits, None)
    return math.inf


def test_queries_are_those_of_a_loop_by_hand(measured: Measured, net: nn.Module, x: Tensor, y: Tensor) -> None:
    with torch.no_grad():
        for name, attack in {"scores": Square(queries=MOST - 1), "labels_only": HopSkipJump(queries=MOST)}.items():
            want = [by_hand(net, x[i], y[i], i + 5, attack) for i in range(10)]
            assert measured.arrays[name][:10].tolist() == want
            assert 0 in want and math.inf in want and len(set(want)) > 3  # the images are of every kind
            assert max(count for count in want if count < math.inf) <= MOST


def test_the_curve_is_read_off_the_counts(measured: Measured) -> None:
    points = measured.axis.points
    assert [p.label for p in points] == [
        f"{series}, {level} queries" for series in ("scores", "labels only") for level in (0, 10, 30, 100, MOST)
    ]
    assert measured.axis.headline == "scores, 140 queries" and measured.axis.level_name == "queries"
    assert "scores or labels" in measured.axis.question
    for p in points:
        count = measured.arrays[p.series.replace(" ", "_")]
        assert torch.equal(measured.outcomes[p.label], count > p.level)
        assert p.accuracy == pytest.approx(sum(c > p.level for c in count.tolist()) / FEW)  # type: ignore[operator]
        assert p.details["attack"] == ("square" if p.series == "scores" else "hop_skip_jump")
    scores = [p.accuracy for p in points if p.series == "scores"]
    assert scores == sorted(scores, reverse=True) and scores[-1] < scores[1]


def test_passes_are_queries_and_one_prediction_before_and_after(measured: Measured) -> None:
    count = measured.arrays["scores"]
    head = next(p for p in measured.axis.points if p.label == measured.axis.headline)
    spent = sum(min(c, MOST) + 1 for c in count.tolist() if c > 0)
    assert head.passes == {"forward": FEW + spent, "backward": 0}
    attacked = sorted(c for c in count.tolist() if c > 0)
    assert head.details["median_queries"] == attacked[(len(attacked) - 1) // 2]


def test_adversarial_images_are_kept(measured: Measured, net: nn.Module, x: Tensor, y: Tensor) -> None:
    assert measured.x_adv is not None and measured.eps_broken is not None
    counts = torch.stack([measured.arrays["scores"], measured.arrays["labels_only"]])
    assert torch.equal(measured.eps_broken.isinf(), (counts == torch.inf).all(dim=0))
    assert torch.equal(measured.eps_broken == 0, (counts == 0).all(dim=0))
    broken = measured.eps_broken < torch.inf
    assert torch.equal(net(measured.x_adv).argmax(dim=1) != y[:FEW], broken)
    assert ((measured.x_adv - x[:FEW]).abs() <= THREAT.eps + 1e-6).all()


def test_fewer_queries_find_what_the_beginning_of_more_finds(make: Callable[..., Context], measured: Measured) -> None:
    short = measure(make(31))
    assert [p.level for p in short.axis.points if p.series == "scores"] == [0, 10, 30, 31]
    for level in (0, 10, 30):
        label = f"scores, {level} queries"
        assert torch.equal(short.outcomes[label], measured.outcomes[label])
    one = measure(make(1))
    assert [p.label for p in one.axis.points][:2] == ["scores, 0 queries", "scores, 1 queries"]
    assert torch.equal(one.outcomes["scores, 1 queries"], measured.arrays["scores"] > 1)


def test_counts_do_not_depend_on_the_batch(make: Callable[..., Context]) -> None:
    a, b = (measure(make(45, batch_size=size)).arrays for size in (7, 64))
    assert torch.equal(a["scores"], b["scores"]) and torch.equal(a["labels_only"], b["labels_only"])


def test_without_an_attack_for_labels_there_is_no_such_series(make: Callable[..., Context]) -> None:
    got = measure(make(10, threat=Threat("l1", 5.0)))
    assert {p.series for p in got.axis.points} == {"scores"} and set(got.arrays) == {"scores"}
    assert "who sees only scores, within l1 5?" in got.axis.question


def test_a_net_that_nothing_changes_needs_infinitely_many(make: Callable[..., Context]) -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.eye(10)[3].expand(len(x), 10) + 0 * x.sum()

    got = measure(make(40, model=Constant().eval()))
    right = got.outcomes["scores, 0 queries"]
    assert 0 < int(right.sum()) < FEW
    for count in got.arrays.values():
        assert torch.equal(count, torch.where(right, torch.inf, 0.0))
    assert all(p.accuracy == pytest.approx(float(right.float().mean())) for p in got.axis.points)
    assert all("median_queries" not in p.details for p in got.axis.points)
