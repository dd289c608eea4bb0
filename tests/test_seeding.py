"""Keyed numbers are uniform, independent, and depend on nothing but seed, purpose, row and counter."""

import itertools
import math
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from hardy.seeding import PART, fold, keys, normal, permutation, root, uniform

ROOT = root(0, "test")
KEYS, UNIFORM = (
    [-8966407520475447845, -4676027434416012509],
    [[0.09255528450012207, 0.8450544476509094], [0.9604523181915283, 0.676679253578186]],
)
FOLD, PERMUTATION = [4180543620483348956, -8855118316584707738], [[0, 3, 4, 1, 2], [0, 2, 3, 1, 4]]
DRAW = (
    "import torch; from hardy.seeding import *; print(uniform(keys(root(3, 'a'), torch.arange(2)), 5, (3,)).tolist())"
)


def draw(rows: Tensor, counter: int = 0, size: int = 100) -> Tensor:
    return uniform(keys(ROOT, rows), counter, (size,))


def reference(state: int, n: int) -> list[int]:
    """SplitMix64, the published C code in Python integers."""
    out, full = [], 2**64 - 1
    for _ in range(n):
        state = z = (state + 0x9E3779B97F4A7C15) & full
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & full
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & full
        out.append(z ^ (z >> 31))
    return out


def test_equals_splitmix64() -> None:
    assert reference(0, 2) == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]  # published first outputs of seed 0
    # the key 0 with counter 0 is the state 0, as the finaliser maps 0 to 0
    got = uniform(torch.zeros(1, dtype=torch.int64), 0, (50,))[0]
    assert got.tolist() == [(z >> 40) / 2**24 for z in reference(0, 50)]


@pytest.mark.parametrize("axis", ["within a row", "over rows", "over counters"])
def test_is_uniform(axis: str) -> None:
    n = 100_000
    u = {
        "within a row": lambda: draw(torch.tensor([7]), size=n),
        "over rows": lambda: draw(torch.arange(n), size=1),
        "over counters": lambda: torch.cat([draw(torch.tensor([7]), counter=c, size=20) for c in range(1000)]),
    }[axis]().flatten()
    assert u.min() >= 0 and u.max() < 1
    assert stats.kstest(u.numpy(), "uniform").pvalue > 1e-3  # fixed numbers: this cannot flake
    assert stats.chisquare(torch.histc(u, 50, 0, 1).numpy()).pvalue > 1e-3
    bits = (u * 2**24).long()[:, None] >> torch.arange(24) & 1
    assert ((bits.double().mean(0) - 0.5).abs() < 4.5 * 0.5 / len(u) ** 0.5).all()


@pytest.mark.parametrize("other", ["next key", "next counter", "next purpose", "next seed", "next element"])
def test_streams_are_independent(other: str) -> None:
    rows = torch.arange(200)
    a = draw(rows)
    b = {
        "next key": lambda: draw(rows + 1),
        "next counter": lambda: draw(rows, counter=1),
        "next purpose": lambda: uniform(keys(root(0, "test2"), rows), 0, (100,)),
        "next seed": lambda: uniform(keys(root(1, "test"), rows), 0, (100,)),
        "next element": lambda: draw(rows, size=101)[:, 1:],
    }[other]()
    table = torch.histogramdd(torch.stack([a, b], -1).reshape(-1, 2).double(), bins=[8, 8]).hist
    assert stats.chi2_contingency(table.numpy()).pvalue > 1e-3
    assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) < 4 / a.numel() ** 0.5


@given(st.permutations(range(12)), st.integers(1, 11), st.integers(0, 2**40))
def test_a_row_does_not_depend_on_its_batch(order: list[int], split: int, counter: int) -> None:
    rows = torch.tensor(order)
    want = draw(torch.arange(12), counter, size=5)
    assert torch.equal(draw(rows, counter, size=5), want[rows])
    assert torch.equal(torch.cat([draw(rows[:split], counter, 5), draw(rows[split:], counter, 5)]), want[rows])


def test_keys_and_counters_do_not_add_up() -> None:
    pairs = [(key, counter) for key in range(20) for counter in range(20)]
    first = [uniform(torch.tensor([key]), counter, (4,))[0].tolist() for key, counter in pairs]
    assert len({tuple(row) for row in first}) == len(pairs)


def test_repeats_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    assert torch.equal(draw(torch.arange(3)), draw(torch.arange(3)))
    assert torch.equal(uniform(torch.arange(3), torch.tensor(9), (2, 2)), uniform(torch.arange(3), 9, (2, 2)))
    assert torch.equal(torch.get_rng_state(), before)


def test_is_the_same_in_another_process() -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    out = subprocess.run([sys.executable, "-c", DRAW], check=True, capture_output=True, text=True, env=env)  # noqa: S603
    assert out.stdout.strip() == str(uniform(keys(root(3, "a"), torch.arange(2)), 5, (3,)).tolist())


@pytest.mark.gpu
def test_is_the_same_on_the_gpu() -> None:
    key = keys(ROOT, torch.arange(64))
    assert torch.equal(uniform(key.cuda(), 3, (1000,)).cpu(), uniform(key, 3, (1000,)))


@pytest.mark.parametrize(("n", "shape"), [(0, (3,)), (2, ()), (2, (0, 4)), (3, (2, 5, 1))])
def test_shapes(n: int, shape: tuple[int, ...]) -> None:
    assert uniform(keys(ROOT, torch.arange(n)), 0, shape).shape == (n, *shape)


class TestRoot:
    def test_is_a_signed_64_bit_integer_that_depends_on_both(self) -> None:
        seen = {root(seed, purpose) for seed in range(-20, 20) for purpose in ("", "a", "b", "a:b", "lfm:conv1")}
        assert len(seen) == 200 and all(-(2**63) <= value < 2**63 for value in seen)
        assert min(seen) < 0 < max(seen)

    def test_is_fixed_for_all_time(self) -> None:
        # runs are resumed and repeated with later versions: these numbers are part of the format
        assert root(0, "test") == 5048190540218691743
        key = keys(root(0, "test"), torch.arange(2))
        assert key.tolist() == KEYS and uniform(key, 3, (2,)).tolist() == UNIFORM
        assert fold(key, 5).tolist() == FOLD and permutation(key, 0, 5).tolist() == PERMUTATION


class TestFold:
    @given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1))
    def test_two_numbers_give_two_keys(self, a: int, b: int) -> None:
        key = keys(ROOT, torch.arange(8))
        assert torch.equal(fold(key, a), fold(key, b)) is (a == b)
        assert len(fold(key, a).unique()) == 8
        assert not (fold(key, a) == key).any()

    def test_numbers_may_be_tensors_one_for_all_or_one_per_row(self) -> None:
        key, data = keys(ROOT, torch.arange(4)), torch.tensor([5, 0, -3, 2**62])
        rows = [fold(key[i : i + 1], int(data[i])) for i in range(4)]
        assert torch.equal(fold(key, data), torch.cat(rows))
        assert torch.equal(fold(key, torch.tensor(7)), fold(key, 7))

    def test_order_matters_and_folds_do_not_add_up(self) -> None:
        key = keys(ROOT, torch.arange(50))
        seen = {tuple(fold(fold(key, a), b).tolist()) for a in range(6) for b in range(6)}
        seen |= {tuple(fold(key, a).tolist()) for a in range(40)} | {tuple(key.tolist())}
        assert len(seen) == 36 + 40 + 1

    @pytest.mark.parametrize("other", ["the key itself", "the next number", "the neighbour", "a counter"])
    def test_streams_of_folded_keys_are_independent(self, other: str) -> None:
        key = keys(ROOT, torch.arange(200))
        a = uniform(fold(key, 1), 0, (100,))
        b = {
            "the key itself": lambda: uniform(key, 0, (100,)),
            "the next number": lambda: uniform(fold(key, 2), 0, (100,)),
            "the neighbour": lambda: uniform(fold(keys(ROOT, torch.arange(1, 201)), 1), 0, (100,)),
            "a counter": lambda: uniform(key, 1, (100,)),
        }[other]()
        table = torch.histogramdd(torch.stack([a, b], -1).reshape(-1, 2).double(), bins=[8, 8]).hist
        assert stats.chi2_contingency(table.numpy()).pvalue > 1e-3

    def test_folded_keys_are_uniform_bits(self) -> None:
        bits = fold(keys(ROOT, torch.arange(20_000)), 1)[:, None] >> torch.arange(64) & 1
        assert ((bits.double().mean(0) - 0.5).abs() < 4.5 * 0.5 / 20_000**0.5).all()


class TestNormal:
    @pytest.mark.parametrize("axis", ["within a row", "over rows", "odd rows"])
    def test_is_standard_normal(self, axis: str) -> None:
        n = 100_000
        z = {
            "within a row": lambda: normal(keys(ROOT, torch.arange(1)), 0, (n,)),
            "over rows": lambda: normal(keys(ROOT, torch.arange(n)), 0, (1,)),
            "odd rows": lambda: normal(keys(ROOT, torch.arange(n // 5)), 0, (5,)),
        }[axis]().flatten()
        assert len(z) == n and stats.kstest(z.numpy(), "norm").pvalue > 1e-3
        assert abs(z.mean()) < 4 / n**0.5 and abs(z.var() - 1) < 4 * (2 / n) ** 0.5
        assert abs((z**4).mean() - 3) < 4 * (96 / n) ** 0.5 and abs((z**3).mean()) < 4 * (15 / n) ** 0.5

    def test_numbers_of_one_row_are_independent(self) -> None:
        z = normal(keys(ROOT, torch.arange(20_000)), 0, (6,))
        corr = torch.corrcoef(z.T) - torch.eye(6)
        squares = torch.corrcoef((z**2).T) - torch.eye(6)  # sine and cosine of one radius are tied if badly made
        assert corr.abs().max() < 4.5 / 20_000**0.5 and squares.abs().max() < 4.5 / 20_000**0.5

    @given(st.permutations(range(9)), st.integers(1, 8), st.integers(1, 7))
    def test_a_row_does_not_depend_on_its_batch(self, order: list[int], split: int, size: int) -> None:
        key = keys(ROOT, torch.arange(9))
        want = normal(key, 2, (size,))
        assert torch.equal(normal(key[order], 2, (size,)), want[order])
        assert torch.equal(torch.cat([normal(key[:split], 2, (size,)), normal(key[split:], 2, (size,))]), want)

    def test_is_finite_at_the_ends_of_the_uniform_numbers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        key = keys(ROOT, torch.arange(1))
        for end in (0.0, 1 - 2**-24):
            monkeypatch.setattr("hardy.seeding.uniform", lambda _k, _c, shape, end=end: torch.full((1, *shape), end))
            z = normal(key, 0, (4,))
            assert z.isfinite().all() and z.abs().max() <= 5.9

    @pytest.mark.parametrize(("n", "shape"), [(0, (3,)), (2, ()), (2, (0, 4)), (3, (2, 5, 1))])
    def test_shapes(self, n: int, shape: tuple[int, ...]) -> None:
        z = normal(keys(ROOT, torch.arange(n)), 0, shape)
        assert z.shape == (n, *shape) and z.dtype == torch.float32


class TestPermutation:
    @given(st.integers(0, 60), st.integers(0, 2**40))
    def test_is_a_permutation(self, size: int, counter: int) -> None:
        order = permutation(keys(ROOT, torch.arange(5)), counter, size)
        assert order.shape == (5, size)
        assert torch.equal(order.sort(dim=1).values, torch.arange(size).expand(5, size))

    def test_all_orders_are_equally_likely(self) -> None:
        order = permutation(keys(ROOT, torch.arange(24_000)), 0, 4)
        code = (order * torch.tensor([64, 16, 4, 1])).sum(1)
        want = sorted(64 * a + 16 * b + 4 * c + d for a, b, c, d in itertools.permutations(range(4)))
        counts = torch.stack([(code == value).sum() for value in want])
        assert counts.sum() == 24_000 == 1000 * math.factorial(4)
        assert stats.chisquare(counts.numpy()).pvalue > 1e-3

    def test_a_row_does_not_depend_on_its_batch(self) -> None:
        key, order = keys(ROOT, torch.arange(6)), torch.tensor([3, 5, 0])
        assert torch.equal(permutation(key[order], 1, 20), permutation(key, 1, 20)[order])
        assert not torch.equal(permutation(key, 1, 20), permutation(key, 2, 20))


@pytest.mark.parametrize("draw_one", [normal, lambda key, c, _: permutation(key, c, 5), lambda key, c, _: fold(key, c)])
def test_everything_leaves_the_global_generator_alone(draw_one: Callable[..., Tensor]) -> None:
    before, key = torch.get_rng_state(), keys(ROOT, torch.arange(3))
    assert torch.equal(draw_one(key, 1, (2,)), draw_one(key, 1, (2,)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("draw", [uniform, normal])
def test_many_numbers_are_drawn_in_parts_that_do_not_show(draw: Callable[..., Tensor]) -> None:
    key = keys(root(1, "parts"), torch.arange(9))
    size = PART // 4 + 1  # three rows at a time
    whole = draw(key, 2, (size,))
    assert whole.shape == (9, size) and key.tolist() == keys(root(1, "parts"), torch.arange(9)).tolist()
    for i in (0, 2, 3, 8):
        assert torch.equal(whole[i : i + 1], draw(key[i : i + 1], 2, (size,)))
    assert draw(key, 2, (0,)).shape == (9, 0) and draw(key[:0], 2, (5,)).shape == (0, 5)
