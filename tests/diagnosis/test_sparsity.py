"""How a map is filled, against closed forms and slow counts."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hardy.diagnosis.sparsity import carrying, effective_channels, shared, silent, strongest
from hardy.errors import ParameterError


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=7).filter(any), st.sampled_from([0.5, 0.9, 1.0]))
def test_counts_agree_with_slow_ones(row: list[int], share: float) -> None:
    map_ = torch.tensor([row], dtype=torch.float32)
    p = [value / sum(row) for value in row if value]
    assert float(effective_channels(map_)[0]) == pytest.approx(math.exp(-sum(q * math.log(q) for q in p)), rel=1e-5)
    fewest = next(
        size
        for size in range(1, len(row) + 1)
        if any(sum(c) >= share * sum(row) - 1e-9 for c in itertools.combinations(row, size))
    )
    assert int(carrying(map_, share)[0]) == fewest


def test_scale_changes_nothing_and_bounds_are_met() -> None:
    map_ = torch.rand(5, 9)
    assert torch.allclose(effective_channels(map_), effective_channels(map_ * 1e-6), rtol=1e-5)
    assert torch.equal(carrying(map_), carrying(map_ * 1e3))
    assert effective_channels(torch.ones(1, 9))[0] == pytest.approx(9)
    assert carrying(torch.ones(1, 10))[0] == 9


def test_classes_without_a_map_are_left_out() -> None:
    map_ = torch.tensor([[torch.nan] * 3, [0, 0, 0], [1, 0, 2]])
    assert effective_channels(map_)[:2].isnan().all()
    assert carrying(map_).tolist() == [0, 0, 2]
    assert not strongest(map_, 2)[:2].any()
    overlap = shared(map_, 1)
    assert overlap[2, 2] == 1 and overlap[:2].isnan().all() and overlap[:, :2].isnan().all()
    assert silent(map_).tolist() == [False, True, False]
    assert silent(map_[:1]).tolist() == [False] * 3


def test_shared_channels_against_sets() -> None:
    map_ = torch.rand(6, 12)
    for top in (1, 4, 12):
        overlap = shared(map_, top)
        sets = [set(row.topk(top).indices.tolist()) for row in map_]
        for a, b in itertools.product(range(6), repeat=2):
            assert overlap[a, b] == pytest.approx(len(sets[a] & sets[b]) / top)


def test_shared_by_chance_is_the_share_of_channels() -> None:
    generator = torch.Generator().manual_seed(0)
    overlap = shared(torch.rand(200, 40, generator=generator), 10)
    pairs = overlap[torch.triu(torch.ones(200, 200), 1).bool()]
    assert abs(float(pairs.mean()) - 0.25) < 0.005


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(ParameterError, match="share"):
        carrying(torch.ones(1, 2), 0.0)
    with pytest.raises(ParameterError, match="top"):
        shared(torch.ones(1, 2), 3)
