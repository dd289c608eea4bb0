"""The order and the keys of an epoch, and how ranks share them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hardy.data import ArrayData, Batches
from hardy.data.schedule import Schedule
from hardy.errors import ParameterError
from hardy.seeding import fold, keys, root


@given(
    n=st.integers(1, 40), size=st.integers(1, 40), ranks=st.integers(1, 5), drop=st.booleans(), shuffle=st.booleans()
)
def test_shares_of_all_ranks_interleave_to_the_whole_batch(
    n: int, size: int, ranks: int, drop: bool, shuffle: bool
) -> None:
    size = max(1, min(size, n))
    ranks = min(ranks, size)
    index = torch.arange(n) * 5 + 2
    whole = Schedule(index, size, 3, shuffle, drop)
    shares = [Schedule(index, size, 3, shuffle, drop, rank, ranks) for rank in range(ranks)]
    assert all(len(share) == len(whole) for share in shares)
    rows = [list(share.batches(2)) for share in shares]
    seen = []
    for step, batch in enumerate(whole.batches(2)):
        parts = [each[step] for each in rows]
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        merged = torch.full_like(batch, -1)
        for rank, part in enumerate(parts):
            merged[rank::ranks] = part
        assert torch.equal(merged, batch)
        seen += batch.tolist()
    assert len(seen) == len(set(seen)) == (n // size * size if drop else n)
    assert shuffle or seen == list(range(len(seen)))


def test_keys_are_of_the_identity_the_seed_and_the_epoch_for_every_rank() -> None:
    index = torch.tensor([9, 4, 7, 1])
    want = fold(keys(root(5, "sample"), index), 3)
    assert torch.equal(Schedule(index, 2, 5).keys(3), want)
    assert torch.equal(Schedule(index, 2, 5, rank=1, ranks=2).keys(3), want)


def test_a_resumed_epoch_is_the_rest_of_a_whole_one() -> None:
    schedule = Schedule(torch.arange(23), 4, 1, drop_last=False, rank=1, ranks=3)
    whole, rest = list(schedule.batches(7)), list(schedule.batches(7, start=2))
    assert [r.tolist() for r in rest] == [r.tolist() for r in whole[2:]] and len(rest) == 4
    assert list(schedule.batches(7, start=6)) == []


def test_batches_of_the_ranks_are_the_rows_of_the_batches_of_one() -> None:
    x = torch.randint(0, 256, (22, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = ArrayData.make(x, torch.arange(22) % 4)
    whole = Batches(data, batch_size=6, seed=1, drop_last=False)
    shares = [Batches(data, batch_size=6, seed=1, drop_last=False, rank=r, ranks=4) for r in range(4)]
    assert {len(whole)} == {len(s) for s in shares} == {4}
    for batch, *parts in zip(whole.epoch(1), *(s.epoch(1) for s in shares), strict=True):
        for rank, part in enumerate(parts):
            assert all(torch.equal(a[rank::4], b) for a, b in zip(batch, part, strict=True))


def test_an_empty_share_of_the_last_batch_is_a_batch_of_no_images() -> None:
    data = ArrayData.make(torch.zeros(5, 1, 4, 4, dtype=torch.uint8), torch.arange(5) % 2)
    *_, (x, y, key) = Batches(data, batch_size=4, seed=0, drop_last=False, rank=3, ranks=4).epoch(0)
    assert x.shape == (0, 1, 4, 4) and len(y) == len(key) == 0


def test_wrong_ranks_are_refused() -> None:
    index = torch.arange(8)
    with pytest.raises(ParameterError, match=r"rank must be in \[0, ranks\); got 2 of 2"):
        Schedule(index, 4, 0, rank=2, ranks=2)
    with pytest.raises(ParameterError, match=r"batch_size must be at least 4, one image for each rank; got 3"):
        Schedule(index, 3, 0, rank=0, ranks=4)
