"""Patch drop: exact counts, nested over shares, keyed per image; the foreground against a search over all sets."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hardy import seeding
from hardy.corruptions.patch_drop import (
    drop_patches,
    exact,
    first_patches,
    foreground,
    largest_grid,
    patch_drop,
    patch_mass,
    salient_order,
)
from hardy.errors import ParameterError, ShapeError


def keys(n: int) -> Tensor:
    return seeding.keys(seeding.root(0, "test"), torch.arange(n))


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def marked(x: Tensor, grid: int) -> Tensor:
    """Say which patches of 0/1 images are 1, and check that no patch is cut."""
    n, _, h, w = x.shape
    pieces = x.reshape(n, -1, grid, h // grid, grid, w // grid)
    assert torch.equal(pieces.amin(dim=(1, 3, 5)), pieces.amax(dim=(1, 3, 5)))
    return pieces.amax(dim=(1, 3, 5)).flatten(1).bool()


SHAPES = [((5, 3, 32, 32), 8), ((3, 1, 8, 8), 4), ((4, 2, 6, 9), 3), ((1, 1, 5, 5), 5), ((2, 3, 4, 8), 1)]


@pytest.mark.parametrize(("shape", "grid"), SHAPES)
def test_nothing_dropped_is_the_image_and_everything_dropped_is_the_fill(shape: tuple[int, ...], grid: int) -> None:
    x, fill = images(*shape), images(*shape, seed=1)
    assert torch.equal(patch_drop(x, share=0.0, grid=grid, fill=fill, key=keys(len(x))), x)
    assert torch.equal(patch_drop(x, share=1.0, grid=grid, fill=fill, key=keys(len(x))), fill)


@given(st.sampled_from(SHAPES), st.floats(0, 1), st.floats(0, 1))
def test_the_number_of_patches_is_exact_and_larger_shares_drop_more_of_the_same(
    case: tuple[tuple[int, ...], int], one: float, other: float
) -> None:
    (shape, grid), key = case, keys(case[0][0])
    x, fill = torch.zeros(shape), torch.ones(shape)
    less, more = (
        marked(patch_drop(x, share=share, grid=grid, fill=fill, key=key), grid) for share in sorted((one, other))
    )
    assert (more.sum(dim=1) == int(exact(max(one, other)) * grid * grid)).all()
    assert not (less & ~more).any()


def test_a_share_counts_as_the_fraction_that_was_meant() -> None:
    assert [int(exact(k / 100) * 100) for k in range(101)] == list(range(101))
    assert [int(exact(share) * 64) for share in (0.1, 0.3, 0.5, 0.7, 0.9)] == [6, 19, 32, 44, 57]
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ParameterError, match=r"a share must be in \[0, 1\]; got"):
            exact(share)


def test_images_lose_different_patches_that_depend_on_their_key_alone() -> None:
    x, fill, key, rng = images(6, 3, 8, 8), images(6, 3, 8, 8, seed=1), keys(6), torch.get_rng_state()
    got, order = patch_drop(x, share=0.4, grid=4, fill=fill, key=key), torch.tensor([4, 1, 3])
    masks = marked(patch_drop(torch.zeros_like(x), share=0.4, grid=4, fill=torch.ones_like(x), key=key), 4)
    assert len({tuple(mask.tolist()) for mask in masks}) == 6
    assert torch.equal(patch_drop(x[order], share=0.4, grid=4, fill=fill[order], key=key[order]), got[order])
    assert not torch.equal(patch_drop(x, share=0.4, grid=4, fill=fill, key=key, counter=1), got)
    assert torch.equal(rng, torch.get_rng_state())


def test_every_patch_is_dropped_equally_often() -> None:
    n = 4000
    masks = marked(patch_drop(torch.zeros(n, 1, 4, 4), share=0.25, grid=4, fill=torch.ones(n, 1, 4, 4), key=keys(n)), 4)
    assert ((masks.double().mean(dim=0) - 0.25).abs() < 4 * (0.25 * 0.75 / n) ** 0.5).all()
    pairs = masks.double().T @ masks.double() / n  # without replacement: 4/16 * 3/15
    off = pairs[~torch.eye(16, dtype=torch.bool)]
    assert ((off - 0.05).abs() < 4.5 * (0.05 * 0.95 / n) ** 0.5).all()


def test_patches_are_numbered_row_by_row() -> None:
    dropped = torch.zeros(1, 6 * 6, dtype=torch.bool)
    dropped[0, 6 * 2 + 5] = True
    hit = drop_patches(torch.zeros(1, 1, 12, 18), dropped=dropped, grid=6, fill=torch.ones(1, 1, 12, 18))
    assert hit[0, 0, 4:6, 15:18].all() and hit.sum() == 6
    order = torch.tensor([[2, 0, 1], [1, 2, 0]])
    assert first_patches(order, 2).tolist() == [[True, False, True], [False, True, True]]


@pytest.mark.parametrize(
    ("h", "w", "at_most", "grid"),
    [(32, 32, 8, 8), (28, 28, 8, 7), (8, 8, 8, 4), (224, 224, 8, 8), (32, 48, 8, 8), (28, 30, 8, 2), (6, 6, 8, 3)],
)
def test_the_grid_is_the_largest_that_divides_both_sides(h: int, w: int, at_most: int, grid: int) -> None:
    assert largest_grid(h, w, at_most=at_most) == grid


@pytest.mark.parametrize(("h", "w", "at_most"), [(31, 31, 8), (3, 3, 8), (32, 31, 8), (32, 32, 1), (1, 1, 8)])
def test_some_images_have_no_grid(h: int, w: int, at_most: int) -> None:
    assert largest_grid(h, w, at_most=at_most) is None


def test_mass_is_the_sum_of_what_is_positive_in_each_patch() -> None:
    attribution = images(3, 6, 9) - 0.5
    mass = patch_mass(attribution, grid=3)
    for image, patch in itertools.product(range(3), range(9)):
        r, c = divmod(patch, 3)
        values = attribution[image, 2 * r : 2 * r + 2, 3 * c : 3 * c + 3].flatten().tolist()
        assert float(mass[image, patch]) == pytest.approx(sum(max(v, 0) for v in values), abs=1e-6)


def test_the_salient_order_falls_and_ties_are_random() -> None:
    mass, key = images(5, 9), keys(5)
    falling = mass.gather(1, salient_order(mass, key=key))
    assert torch.equal(falling, mass.sort(dim=1, descending=True).values)
    nothing = torch.zeros(5, 9)
    assert torch.equal(salient_order(nothing, key=key), seeding.permutation(key, 0, 9))
    rows = torch.tensor([3, 0])
    assert torch.equal(salient_order(mass[rows], key=key[rows]), salient_order(mass, key=key)[rows])


@given(st.lists(st.integers(0, 20), min_size=1, max_size=7), st.integers(0, 20))
def test_the_foreground_is_the_smallest_set_that_holds_its_share(masses: list[int], twentieths: int) -> None:
    mass = torch.tensor([masses], dtype=torch.float32)
    held = foreground(mass, salient_order(mass, key=keys(1)), share=twentieths / 20)[0].tolist()
    weights = masses if sum(masses) else [1] * len(masses)
    enough = [
        chosen
        for chosen in itertools.product((False, True), repeat=len(weights))
        if 20 * sum(itertools.compress(weights, chosen)) >= twentieths * sum(weights)
    ]
    smallest = min(sum(chosen) for chosen in enough)
    off_by_rounding = 20 * sum(itertools.compress(weights, held)) >= twentieths * sum(weights) - 1e-5
    assert off_by_rounding and abs(sum(held) - smallest) <= (1 if tied(weights, twentieths) else 0)


def tied(weights: list[int], twentieths: int) -> bool:
    """Say whether some of the largest weights hold exactly the share, so that rounding may take one more."""
    falling = sorted(weights, reverse=True)
    return any(20 * sum(falling[:k]) == twentieths * sum(weights) for k in range(len(falling) + 1))


def test_the_foreground_grows_with_its_share_and_patches_that_are_alike_count_exactly() -> None:
    mass = 0.01 + images(20, 25) ** 4
    order = salient_order(mass, key=keys(20))
    sets = [foreground(mass, order, share=share) for share in (0.0, 0.1, 0.5, 0.9, 1.0)]
    assert not sets[0].any() and sets[4].all()
    for less, more in itertools.pairwise(sets):
        assert not (less & ~more).any()
    alike = torch.full((4, 100), 0.37)
    order = salient_order(alike, key=keys(4))
    for k in range(101):
        assert (foreground(alike, order, share=k / 100).sum(dim=1) == k).all()
        assert (foreground(0 * alike, order, share=k / 100).sum(dim=1) == k).all()


def test_errors_say_what_to_do() -> None:
    x = images(1, 1, 8, 8)
    with pytest.raises(ShapeError, match="grid must divide height and width; got 3 for 8x8"):
        patch_drop(x, share=0.5, grid=3, fill=x, key=keys(1))
    with pytest.raises(ParameterError, match="grid must be at least 1; got 0"):
        patch_drop(x, share=0.5, grid=0, fill=x, key=keys(1))
    with pytest.raises(ParameterError, match=r"share must be in \[0, 1\]; got 1.5"):
        patch_drop(x, share=1.5, grid=2, fill=x, key=keys(1))
    with pytest.raises(ShapeError, match="got 5 for 8x8"):
        patch_mass(x[:, 0], grid=5)
