"""Pixels by masks: what stays, what goes, and who gives a background."""

import pytest
import torch
from torch import Tensor

from hardy import seeding
from hardy.diagnosis.backgrounds import background_share, donors, mean_colour, paint, swap_backgrounds, usable


@pytest.fixture
def x() -> Tensor:
    return torch.rand(6, 3, 5, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def masks() -> Tensor:
    return torch.rand(6, 5, 4, generator=torch.Generator().manual_seed(1)) < 0.4


def keys(n: int, seed: int = 0) -> Tensor:
    return seeding.keys(seeding.root(seed, "test"), torch.arange(n))


def test_share_of_the_background() -> None:
    maps, masks = torch.tensor([[[1.0, 3.0]], [[0.0, 0.0]]]), torch.tensor([[[True, False]], [[True, False]]])
    share = background_share(maps, masks)
    assert float(share[0]) == 0.75 and bool(share[1].isnan())


def test_usable_images_have_an_object_and_a_background() -> None:
    masks = torch.zeros(3, 2, 2, dtype=torch.bool)
    masks[1, 0, 0], masks[2] = True, True
    assert usable(masks).tolist() == [1]


def test_paint_covers_and_leaves_bits(x: Tensor, masks: Tensor) -> None:
    colour = mean_colour(x)
    assert torch.allclose(colour, x.permute(1, 0, 2, 3).flatten(1).mean(1))
    painted = paint(x, masks, colour)
    for i in range(6):
        assert torch.equal(painted[i][:, ~masks[i]], x[i][:, ~masks[i]])
        assert torch.equal(painted[i][:, masks[i]], colour[:, None].expand(3, int(masks[i].sum())))


def test_a_swapped_background_is_the_givers_and_shows_nothing_of_its_object(x: Tensor, masks: Tensor) -> None:
    giver = torch.tensor([3, 2, 5, 0, 1, 4])
    made = swap_backgrounds(x, masks, giver)
    for i, j in enumerate(giver.tolist()):
        behind = x[j][:, ~masks[j]].mean(1)
        for h in range(5):
            for w in range(4):
                if masks[i, h, w]:
                    assert torch.equal(made[i, :, h, w], x[i, :, h, w])
                elif masks[j, h, w]:
                    assert torch.allclose(made[i, :, h, w], behind)
                else:
                    assert torch.equal(made[i, :, h, w], x[j, :, h, w])


def test_givers_are_of_another_class_whatever_the_order() -> None:
    y, rows = torch.arange(50) % 3, torch.arange(50) * 7
    giver = donors(y, keys(50), rows)
    assert giver is not None and bool((y[giver] != y).all())
    shuffled = torch.randperm(50, generator=torch.Generator().manual_seed(2))
    again = donors(y[shuffled], keys(50)[shuffled], rows[shuffled])
    assert again is not None and torch.equal(rows[shuffled][again], rows[giver][shuffled])
    other = donors(y, keys(50, seed=1), rows)
    assert other is not None and not torch.equal(giver, other)
    assert donors(torch.zeros(4, dtype=torch.int64), keys(4), torch.arange(4)) is None


def test_all_images_of_other_classes_give_alike() -> None:
    y = torch.tensor([0] * 2000 + [1] * 4)
    giver = donors(y, keys(2004), torch.arange(2004))
    assert giver is not None
    counts = torch.bincount(giver[:2000])[2000:]
    assert counts.sum() == 2000 and bool(((counts - 500).abs() < 4 * 19.4).all())  # binomial: sqrt(2000 * 3 / 16)
