"""Parts are cut by identity: exact, disjoint, each class its share, whatever the order of the rows."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hardy.data import rows as module
from hardy.data.arrays import ArrayReader
from hardy.data.rows import Rows, check_memory, free_bytes, spread_order
from hardy.errors import DataError

labels = st.lists(st.integers(0, 4), min_size=1, max_size=60)


def make(y: Tensor) -> Rows:
    index = torch.arange(len(y)) * 7 + 3
    return Rows(y, index, tuple("abcde"), "test", ArrayReader(index))


@given(y=labels, seed=st.integers(0, 99))
def test_the_order_is_a_permutation_that_does_not_depend_on_the_order_of_the_rows(y: list[int], seed: int) -> None:
    rows = make(torch.tensor(y))
    order = spread_order(rows.y, rows.index, seed=seed, purpose="p")
    assert order.sort().values.tolist() == list(range(len(y)))
    mixed = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    again = spread_order(rows.y[mixed], rows.index[mixed], seed=seed, purpose="p")
    assert torch.equal(rows.index[mixed][again], rows.index[order])


@given(count=st.integers(1, 12), classes=st.integers(1, 5), data=st.data())
def test_classes_of_equal_size_differ_by_at_most_one(count: int, classes: int, data: st.DataObject) -> None:
    y = torch.arange(count * classes) % classes
    n = data.draw(st.integers(1, count * classes))
    order = spread_order(y, torch.arange(len(y)), seed=0, purpose="p")
    got = torch.bincount(y[order[:n]], minlength=classes)
    assert got.max() - got.min() <= 1


def test_unequal_classes_keep_their_shares() -> None:
    y = torch.tensor([0] * 600 + [1] * 300 + [2] * 100)
    order = spread_order(y, torch.arange(1000), seed=0, purpose="p")
    for n in (10, 100, 500):
        got = torch.bincount(y[order[:n]], minlength=3).double()
        assert ((got - n * torch.tensor([0.6, 0.3, 0.1])).abs() <= 1.5).all()
    alone = spread_order(torch.tensor([0] * 999 + [1]), torch.arange(1000), seed=0, purpose="p")
    assert 498 <= alone.tolist().index(999) <= 500  # the one image of a class stands in the middle


def test_seed_and_purpose_change_the_choice_and_the_choice_looks_random() -> None:
    y, index = torch.zeros(2000, dtype=torch.int64), torch.arange(2000)
    first, seed, purpose = (
        set(spread_order(y, index, seed=s, purpose=p)[:1000].tolist()) for s, p in ((0, "a"), (1, "a"), (0, "b"))
    )
    spread = 4 * (2000 * 0.25 / 4) ** 0.5  # four standard errors of a hypergeometric count around 500
    assert abs(len(first & seed) - 500) < spread and abs(len(first & purpose) - 500) < spread
    assert abs(sum(i < 1000 for i in first) - 500) < spread


@given(y=labels, fraction=st.floats(0, 1), seed=st.integers(0, 9))
def test_a_division_is_exact_disjoint_and_complete(y: list[int], fraction: float, seed: int) -> None:
    rows = make(torch.tensor(y))
    stay, cut = rows.divide(fraction, seed=seed, purpose="p")
    assert len(cut.y) == round(fraction * len(y))
    assert sorted(stay.index.tolist() + cut.index.tolist()) == rows.index.tolist()
    for part in (stay, cut):
        positions = (part.index - 3) // 7
        assert positions.tolist() == sorted(positions.tolist())  # the old order
        assert torch.equal(part.y, rows.y[positions])
        assert torch.equal(part.read(torch.arange(len(part.y))), part.index)  # the images go with their rows


def test_selections_of_selections_read_the_right_images() -> None:
    rows = make(torch.tensor([0, 1, 2, 3, 4]))
    twice = rows.take(torch.tensor([4, 2, 0])).take(torch.tensor([2, 1]))
    assert twice.index.tolist() == twice.read(torch.arange(2)).tolist() == [3, 17]


def test_too_many_images_for_the_memory_say_how_many_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda: 10 * 2**30)
    with pytest.raises(DataError, match=r"100000 of 3x224x224 need 14.0 GiB, 10.0 GiB are free. Take fewer with limit"):
        check_memory((100_000, 3, 224, 224), "folder:x")
    check_memory((50_000, 3, 224, 224), "folder:x")
    monkeypatch.setattr(module, "free_bytes", lambda: None)
    check_memory((10**9, 3, 224, 224), "folder:x")


def test_free_memory_is_a_sensible_number_where_the_system_tells() -> None:
    free = free_bytes()
    assert (free is None) == (not Path("/proc/meminfo").exists())
    assert free is None or 2**20 < free < 2**50
