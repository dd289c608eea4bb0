"""The axis finds the band that a net reads, and its control is no weaker than it must be."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hardy.attacks import BandPGD, attack
from hardy.attacks.bands import make_band
from hardy.attacks.norms import norm_of
from hardy.evaluation import frequency
from hardy.evaluation.budget import Budget
from hardy.evaluation.context import Context, Measured, NotMeasured
from hardy.evaluation.frequency import measure
from hardy.results import Point
from hardy.threats import Norm, Threat

Make = Callable[..., Context]
FAST = Budget(bands=4, band_steps=5)


@pytest.fixture
def make(net: nn.Module, x: Tensor, y: Tensor) -> Make:
    def context(model: nn.Module = net, images: Tensor = x, labels: Tensor = y, **facts: object) -> Context:
        plain = Context(
            model=model,
            x=images,
            y=labels,
            rows=torch.arange(len(images)),
            predictions=labels,
            num_classes=10,
            **{"threat": Threat("linf", 0.1), "budget": FAST, **facts},  # type: ignore[arg-type]
        )
        return plain.answered()

    return context


class Reader(nn.Module):
    """Ten random linear functions of what one band of an image holds, or of the whole image."""

    def __init__(self, band: int | None, side: int, seed: int = 0) -> None:
        super().__init__()
        w = torch.randn(10, 3, side, side, generator=torch.Generator().manual_seed(seed))
        w = w if band is None else make_band(band, 4, height=side, width=side).project(w)
        self.weight = nn.Parameter(w.flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5).flatten(1) @ self.weight.T


@pytest.fixture(scope="module")
def gray() -> Tensor:
    """Images whose contrast leaves room in the box."""
    return 0.5 + 0.3 * (torch.rand(40, 3, 10, 10, generator=torch.Generator().manual_seed(0)) - 0.5)


def points(measured: Measured | NotMeasured, series: str) -> list[Point]:
    assert isinstance(measured, Measured)
    return [p for p in measured.axis.points if p.series == series]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("read", [0, 2])
def test_a_net_that_reads_one_band_falls_there_and_nowhere_else(
    make: Make, gray: Tensor, read: int, norm: Norm
) -> None:
    net = Reader(read, 10).eval()
    y = net(gray).argmax(dim=1)
    context = make(net, gray, y, threat=Threat(norm, 0.06 if norm == "linf" else 0.8))
    found = measure(context)
    assert [p.accuracy for p in points(found, "attack")] == [float(band != read) for band in range(4)]
    noisy = [p.accuracy for p in points(found, "random noise")]
    assert noisy[read] > 0.2 and noisy[:read] + noisy[read + 1 :] == [1, 1, 1]
    assert points(found, "all bands")[0].accuracy == 0
    assert isinstance(found, Measured) and found.axis.scores[0].value == 0.75


def test_record_says_what_was_done(make: Make, gray: Tensor) -> None:
    net = Reader(None, 10).eval()
    y = net(gray).argmax(dim=1)
    y[:4] = (y[:4] + 1) % 10
    found = measure(make(net, gray, y, threat=Threat("linf", 0.01)))
    assert isinstance(found, Measured)
    labels = [f"{series}, band {i}" for i in range(1, 5) for series in ("attack", "random noise")]
    assert [p.label for p in found.axis.points] == [*labels, "all bands"] == list(found.outcomes)
    assert [p.level for p in points(found, "attack")] == [p.level for p in points(found, "random noise")]
    levels = [p.level or 0 for p in points(found, "attack")]
    assert levels == sorted(levels) and 0.4 < levels[0] < 0.6 and levels[-1] == pytest.approx(0.9 * 2**0.5, abs=1e-3)
    (head,) = found.axis.scores
    assert head.label == found.axis.headline == "mean over bands" and head.kind == "accuracy"
    means = torch.stack([found.outcomes[p.label] for p in points(found, "attack")]).float().mean(dim=0)
    assert torch.equal(found.arrays["mean over bands"], means)
    assert head.value == pytest.approx(sum(p.accuracy for p in points(found, "attack")) / 4)
    assert head.details["bands"] == 4 and set(head.details) == {"bands", "band_steps"}
    for p in found.axis.points:
        assert p.accuracy <= 0.9 and p.n == 40 and not found.outcomes[p.label][:4].any()
        assert p.details["dimension"] == (100 if p.label == "all bands" else 25)
        assert float(p.details["in_band"] or 0) > 0.9999 and float(p.details["size"] or 0) <= 1 + 1e-4
    first = points(found, "attack")[0]
    assert first.details["waves"] == "0 to 2.5 cycles per 10 pixels"
    assert first.details["attacked"] == 36 and first.details["broke"] == 36 - round(first.accuracy * 40)
    assert points(found, "random noise")[0].details["no_room"] == 0


def test_attack_is_that_of_the_attack(make: Make, gray: Tensor) -> None:
    net = Reader(None, 10).eval()
    y, threat = net(gray).argmax(dim=1), Threat("linf", 0.005)
    found = measure(make(net, gray, y, threat=threat, seed=3))
    assert isinstance(found, Measured)
    for band in range(4):
        want = attack(net, gray, y, BandPGD(band=band, bands=4, steps=5), threat=threat, seed=3)
        assert torch.equal(found.outcomes[f"attack, band {band + 1}"], ~want.success)
        assert points(found, "attack")[band].passes == want.passes
    assert any(0 < p.accuracy < 1 for p in points(found, "attack"))
    assert points(found, "all bands")[0].accuracy <= min(p.accuracy for p in points(found, "attack"))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_control_is_in_its_band_at_its_budget(make: Make, gray: Tensor, norm: Norm) -> None:
    threat = Threat(norm, 0.05 if norm == "linf" else 0.6)
    context = make(Reader(None, 10).eval(), gray, torch.zeros(40).long(), threat=threat)
    for index in range(4):
        delta = frequency._noise(context, BandPGD(band=index, bands=4, steps=5)) - gray
        length = norm_of(delta, norm=norm)
        assert (length <= threat.eps + 1e-6).all() and (length > 0.99 * threat.eps).all()
        assert (make_band(index, 4, height=10, width=10).share(delta) > 1 - 1e-5).all()
        flat = delta.flatten(1) / delta.flatten(1).norm(dim=1, keepdim=True)
        cosine = (flat @ flat.T).fill_diagonal_(0)  # 75 dimensions: standard deviation 0.12
        assert cosine.abs().max() < 0.6 and abs(float(cosine.mean())) < 0.02


def test_control_fills_as_much_of_the_ball_as_the_attack(make: Make, gray: Tensor) -> None:
    net, spec = Reader(None, 10).eval(), BandPGD(band=1, bands=4, steps=5)
    y, threat = net(gray).argmax(dim=1), Threat("linf", 0.02)
    noise = frequency._noise(make(net, gray, y, threat=threat), spec) - gray
    found = attack(net, gray, y, spec, threat=threat, stop="never").x_adv - gray
    energy = [float(delta.square().mean()) for delta in (noise, found)]
    assert 0.8 < energy[0] / energy[1] < 1.25


def test_bands_without_room_are_left_out(make: Make) -> None:
    """Digits are black around: only the lowest frequencies can change without leaving the box."""
    context = make(budget=Budget(bands=8, band_steps=5))
    found = measure(context)
    assert isinstance(found, Measured)
    assert [p.label for p in found.axis.points] == ["attack, band 1", "random noise, band 1", "all bands"]
    (head,) = found.axis.scores
    assert head.details == {"bands": 8, "band_steps": 5, "left_out": "2, 3, 4, 5, 6, 7, 8 (no room in the box)"}
    (control,) = points(found, "random noise")
    assert head.value == points(found, "attack")[0].accuracy < control.accuracy
    delta = (frequency._noise(context, BandPGD(bands=8, steps=5)) - context.x)[context.correct]
    still = (delta == 0).flatten(1).all(dim=1)
    share = make_band(0, 8, height=8, width=8).share(delta[~still])
    assert still.any() and control.details["in_band"] == pytest.approx(float(share.mean()), abs=1e-6)
    assert control.details["least_in_band"] == pytest.approx(float(share.min()), abs=1e-6)
    assert 0.99 <= share.min() < 0.999


def test_images_without_room_everywhere_are_not_measured(make: Make, x: Tensor, y: Tensor) -> None:
    images = x[:8].flatten().argsort().argsort().remainder(2).float().reshape(8, 1, 8, 8)  # black and white
    found = measure(make(images=images, labels=y[:8]))
    assert isinstance(found, NotMeasured) and "no room" in found.reason


def test_what_it_is_not_defined_for_is_not_measured(make: Make) -> None:
    found = measure(make(threat=Threat("l1", 3.0)))
    assert isinstance(found, NotMeasured) and found.reason.endswith("linf and l2, the threat is l1")
    found = measure(make(budget=Budget(bands=65)))
    assert isinstance(found, NotMeasured) and found.reason == "8x8 images have 64 frequencies, fewer than 65 bands"
    assert "at most 64" in found.remedy


def test_a_net_that_is_always_wrong_costs_no_search(make: Make, gray: Tensor) -> None:
    net = Reader(None, 10).eval()
    y = (net(gray).argmax(dim=1) + 1) % 10
    found = measure(make(net, gray, y))
    assert isinstance(found, Measured) and found.axis.scores[0].value == 0
    assert {p.accuracy for p in found.axis.points} == {0.0}
    assert not any(p.passes for p in points(found, "attack"))
    assert "in_band" not in points(found, "attack")[0].details


def test_passes_are_at_most_steps_per_band(make: Make, gray: Tensor) -> None:
    net = Reader(3, 10).eval()
    y = net(gray).argmax(dim=1)
    found = measure(make(net, gray, y, threat=Threat("linf", 1e-5)))
    assert {tuple(p.passes.values()) for p in points(found, "attack")} == {(40 * (1 + 5 + 1), 40 * 5)}
    assert {tuple(p.passes.values()) for p in points(found, "random noise")} == {(40,)}


def test_no_image_depends_on_the_others(make: Make, gray: Tensor) -> None:
    net, facts = Reader(None, 10).eval(), {"threat": Threat("linf", 0.005), "budget": Budget(bands=2, band_steps=4)}
    x, y = gray[:24], net(gray[:24]).argmax(dim=1)
    whole, small = (measure(make(net, x, y, batch_size=size, **facts)) for size in (64, 7))
    context = make(net, x, y, **facts)
    alone = measure(dataclasses.replace(context, x=x[20:], y=y[20:], rows=context.rows[20:], predictions=y[20:]))
    assert isinstance(whole, Measured) and isinstance(small, Measured) and isinstance(alone, Measured)
    assert all(torch.equal(right, small.outcomes[label]) for label, right in whole.outcomes.items())
    assert all(torch.equal(right[20:], alone.outcomes[label]) for label, right in whole.outcomes.items())


class Noisy(nn.Module):
    """A net whose answers are random."""

    def __init__(self, net: nn.Module, sigma: float) -> None:
        super().__init__()
        self.net, self.sigma = net, sigma

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + self.sigma * torch.randn(len(x), 10)  # type: ignore[no-any-return]


def test_a_random_net_is_attacked_in_expectation_and_judged_by_votes(make: Make, gray: Tensor) -> None:
    net = Reader(0, 10).eval()
    y = net(gray).argmax(dim=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = measure(
            make(Noisy(net, 0.003).eval(), gray[:10], y[:10], draws=3, budget=Budget(bands=2, band_steps=3))
        )
    first, second = points(found, "attack")
    assert "eot=3" in str(first.details["attack"])
    assert first.accuracy < 0.3 and second.accuracy > 0.7
    assert first.passes["backward"] == 3 * 3 * 10 == int(first.passes["backward"])
    assert points(found, "random noise")[0].passes == {"forward": 30}
