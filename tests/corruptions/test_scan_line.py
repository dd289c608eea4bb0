"""Scan-line drop against a loop over patches and pixels; the profiles as closed forms."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hardy import seeding
from hardy.corruptions.scan_line import ORDERS, PROFILES, drop_counts, scan_line_drop, scan_order
from hardy.errors import ParameterError, ShapeError


def keys(n: int) -> Tensor:
    return seeding.keys(seeding.root(0, "test"), torch.arange(n))


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def walk(order: str, grid: int) -> list[tuple[int, int]]:
    """Read the grid as one would by hand."""
    steps = range(grid)
    match order:
        case "rows":
            return [(r, c) for r in steps for c in steps]
        case "columns":
            return [(r, c) for c in steps for r in steps]
        case "rows_reversed":
            return [(r, c) for r in reversed(steps) for c in reversed(steps)]
        case _:
            return [(r, c) for c in reversed(steps) for r in reversed(steps)]


def reference_counts(profile: str, d: float, p: int, n: int) -> list[int]:
    """Write the profiles as the paper's code has them (peak and valley: for an even number of patches)."""
    peak = [n * d * (i + 1) / (p // 2) if i < p // 2 else n * d * (p - i) / (p // 2) for i in range(p)]
    return {
        "ramp": [math.floor(n * d * (i + 1) / p) for i in range(p)],
        "peak": [math.floor(v) for v in peak],
        "valley": [math.floor(n * d) - math.floor(v) for v in peak],
        "whole": [n] * math.floor(p * d) + [0] * (p - math.floor(p * d)),
        "even": [math.floor(n * d)] * p,
    }[profile]


def reference(x: Tensor, fill: Tensor, key: Tensor, *, profile: str, order: str, rate: float, grid: int) -> Tensor:
    out = x.clone()
    n, _, h, w = x.shape
    high, wide = h // grid, w // grid
    counts = reference_counts(profile, rate, grid * grid, high * wide)
    for i in range(n):
        drawn = seeding.uniform(key[i : i + 1], 0, (grid * grid, high * wide))[0]
        for (r, c), count in zip(walk(order, grid), counts, strict=True):
            for pixel in drawn[r * grid + c].argsort().tolist()[:count]:
                a, b = r * high + pixel // wide, c * wide + pixel % wide
                out[i, :, a, b] = fill[i, :, a, b]
    return out


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("shape", "grid"), [((3, 3, 8, 8), 2), ((2, 1, 8, 12), 4)])
def test_equals_a_loop_over_patches(shape: tuple[int, ...], grid: int, order: str, profile: str) -> None:
    x, fill, key = images(*shape), images(*shape, seed=1), keys(shape[0])
    for rate in (0.25, 0.5, 0.875):
        got = scan_line_drop(x, rate=rate, profile=profile, order=order, grid=grid, fill=fill, key=key)
        assert torch.equal(got, reference(x, fill, key, profile=profile, order=order, rate=rate, grid=grid))


@pytest.mark.parametrize("order", ORDERS)
def test_orders_are_permutations_and_the_reverse_of_the_reverse_is_the_order(order: str) -> None:
    read = scan_order(order, 5)
    assert read.tolist() == [r * 5 + c for r, c in walk(order, 5)]
    assert sorted(read.tolist()) == list(range(25))
    other = order.removesuffix("_reversed") if order.endswith("_reversed") else f"{order}_reversed"
    assert torch.equal(scan_order(other, 5).flip(0), read)


@given(st.floats(0, 1), st.integers(1, 70), st.integers(1, 50))
def test_counts_are_possible_and_the_valley_completes_the_peak(rate: float, patches: int, pixels: int) -> None:
    counts = {name: drop_counts(name, rate=rate, patches=patches, pixels=pixels) for name in PROFILES}
    for found in counts.values():
        assert len(found) == patches and min(found) >= 0 and max(found) <= pixels
    both = zip(counts["peak"], counts["valley"], strict=True)
    assert [a + b for a, b in both] == list(counts["even"])
    assert counts["peak"] == counts["peak"][::-1] and max(counts["peak"]) == counts["even"][0]
    assert sorted(counts["ramp"]) == list(counts["ramp"]) and counts["ramp"][-1] == counts["even"][0]
    assert sorted(counts["whole"], reverse=True) == list(counts["whole"])


@pytest.mark.parametrize("profile", PROFILES)
def test_counts_are_those_of_the_paper(profile: str) -> None:
    for rate, patches in itertools.product((0.0, 0.25, 0.5, 0.75, 1.0), (4, 16, 64)):
        expected = reference_counts(profile, rate, patches, 48)
        assert list(drop_counts(profile, rate=rate, patches=patches, pixels=48)) == expected


def test_a_rate_counts_as_the_fraction_that_was_meant() -> None:
    assert drop_counts("even", rate=0.29, patches=2, pixels=100) == (29, 29)
    assert drop_counts("whole", rate=0.7, patches=10, pixels=3).count(3) == 7


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("profile", PROFILES)
def test_rate_0_is_the_image_and_rate_1_the_fill_where_it_should(profile: str, order: str) -> None:
    x, fill, key = images(3, 2, 6, 6), images(3, 2, 6, 6, seed=1), keys(3)
    none, every = (
        scan_line_drop(x, rate=rate, profile=profile, order=order, grid=3, fill=fill, key=key) for rate in (0.0, 1.0)
    )
    assert torch.equal(none, x)
    assert torch.equal(every, fill) == (profile in {"whole", "even"})


def test_whole_patches_are_lost_from_the_side_that_the_order_starts_at() -> None:
    x, fill = torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)
    lost = {
        order: scan_line_drop(x, rate=0.5, profile="whole", order=order, grid=4, fill=fill, key=keys(1))[0, 0]
        for order in ORDERS
    }
    assert lost["rows"][:4].all() and lost["columns"][:, :4].all()
    assert lost["rows_reversed"][4:].all() and lost["columns_reversed"][:, 4:].all()
    assert all(found.sum() == 32 for found in lost.values())


def test_the_even_control_does_not_depend_on_the_order() -> None:
    x, fill, key = images(3, 2, 8, 8), images(3, 2, 8, 8, seed=1), keys(3)
    made = [scan_line_drop(x, rate=0.5, profile="even", order=o, grid=4, fill=fill, key=key) for o in ORDERS]
    assert all(torch.equal(made[0], other) for other in made)
    assert not torch.equal(made[0], x)


@pytest.mark.parametrize("profile", ["ramp", "peak", "even"])
def test_higher_rates_drop_more_of_the_same_pixels(profile: str) -> None:
    x, fill, key = torch.zeros(4, 3, 8, 8), torch.ones(4, 3, 8, 8), keys(4)
    found = [
        scan_line_drop(x, rate=rate, profile=profile, order="columns", grid=2, fill=fill, key=key)
        for rate in (0.1, 0.3, 0.6, 0.9)
    ]
    for less, more in itertools.pairwise(found):
        assert (less <= more).all() and less.sum() < more.sum()


def test_an_image_does_not_depend_on_its_batch_and_all_channels_go_together() -> None:
    x, fill, key, rng = torch.zeros(5, 3, 8, 8), torch.ones(5, 3, 8, 8), keys(5), torch.get_rng_state()
    got = scan_line_drop(x, rate=0.7, profile="ramp", order="rows", grid=2, fill=fill, key=key)
    rows = torch.tensor([4, 2])
    part = scan_line_drop(x[rows], rate=0.7, profile="ramp", order="rows", grid=2, fill=fill[rows], key=key[rows])
    assert torch.equal(part, got[rows]) and torch.equal(got[:, 0], got[:, 2])
    assert not torch.equal(got[0], got[1])
    assert torch.equal(rng, torch.get_rng_state())


def test_every_pixel_of_a_patch_is_dropped_equally_often() -> None:
    n, x = 3000, torch.zeros(3000, 1, 6, 6)
    got = scan_line_drop(x, rate=1 / 3, profile="even", order="rows", grid=2, fill=torch.ones_like(x), key=keys(n))
    assert ((got.double().mean(dim=0) - 1 / 3).abs() < 4 * (2 / 9 / n) ** 0.5).all()


def test_errors_say_what_to_do() -> None:
    x = images(1, 1, 8, 8)
    good = {"rate": 0.5, "profile": "ramp", "order": "rows", "grid": 2, "fill": x, "key": keys(1)}
    for wrong, error, text in (
        ({"profile": "rmap"}, ParameterError, "unknown profile 'rmap'; did you mean 'ramp'"),
        ({"order": "row"}, ParameterError, "unknown order 'row'; did you mean 'rows'"),
        ({"rate": 1.5}, ParameterError, r"share must be in \[0, 1\]; got 1.5"),
        ({"grid": 0}, ParameterError, "grid must be at least 1; got 0"),
        ({"grid": 3}, ShapeError, "grid must divide height and width; got 3 for 8x8"),
    ):
        with pytest.raises(error, match=text):
            scan_line_drop(x, **(good | wrong))
