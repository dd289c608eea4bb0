"""Patch shuffle against a loop over pieces; it moves values and changes none."""

import pytest
import torch
from torch import Tensor

from hardy import seeding
from hardy.corruptions import patch_shuffle
from hardy.errors import ParameterError, ShapeError


def keys(n: int) -> Tensor:
    return seeding.keys(seeding.root(0, "test"), torch.arange(n))


def reference(x: Tensor, grid: int, key: Tensor) -> Tensor:
    out = torch.empty_like(x)
    ph, pw = x.shape[2] // grid, x.shape[3] // grid
    for i, image in enumerate(x):
        order = seeding.permutation(key[i : i + 1], 0, grid * grid)[0].tolist()
        for to, source in enumerate(order):
            (r, c), (a, b) = divmod(to, grid), divmod(source, grid)
            piece = image[:, a * ph : (a + 1) * ph, b * pw : (b + 1) * pw]
            out[i, :, r * ph : (r + 1) * ph, c * pw : (c + 1) * pw] = piece
    return out


@pytest.mark.parametrize(
    ("shape", "grid"), [((5, 3, 8, 8), 2), ((3, 1, 8, 8), 8), ((2, 2, 6, 9), 3), ((1, 1, 4, 4), 1)]
)
def test_equals_a_loop_over_pieces(shape: tuple[int, ...], grid: int) -> None:
    x, key = torch.rand(shape), keys(shape[0])
    got = patch_shuffle(x, grid=grid, key=key)
    assert torch.equal(got, reference(x, grid, key))
    assert torch.equal(got.flatten(2).sort().values, x.flatten(2).sort().values)
    assert grid > 1 or torch.equal(got, x)


def test_images_are_shuffled_differently_and_depend_on_their_key_alone() -> None:
    x = torch.rand(1, 1, 8, 8).expand(6, -1, -1, -1)
    got, key = patch_shuffle(x, grid=4, key=keys(6)), keys(6)
    assert len({tuple(image.flatten().tolist()) for image in got}) == 6
    assert torch.equal(patch_shuffle(x[3:5], grid=4, key=key[3:5]), got[3:5])


def test_every_piece_goes_everywhere_equally_often() -> None:
    n, x = 4000, torch.arange(4.0).reshape(1, 1, 2, 2).expand(4000, -1, -1, -1)
    got = patch_shuffle(x, grid=2, key=keys(n)).flatten(1)
    share = torch.stack([(got == value).double().mean(dim=0) for value in range(4)])
    assert ((share - 0.25).abs() < 4 * (0.25 * 0.75 / n) ** 0.5).all()


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ShapeError, match="grid must divide height and width; got 3 for 8x8"):
        patch_shuffle(torch.rand(1, 1, 8, 8), grid=3, key=keys(1))
    with pytest.raises(ParameterError, match="grid must be at least 1; got 0"):
        patch_shuffle(torch.rand(1, 1, 8, 8), grid=0, key=keys(1))
