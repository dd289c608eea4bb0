"""Salt and pepper: the share asked for, whole pixels, half of them white, and nested sets."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hardy import seeding
from hardy.corruptions.salt_pepper import salt_pepper
from hardy.errors import ParameterError


def keys(n: int) -> Tensor:
    return seeding.keys(seeding.root(0, "test"), torch.arange(n))


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_the_share_of_whole_pixels_becomes_black_or_white_equally_often(share: float) -> None:
    x = torch.full((100, 3, 10, 10), 0.5)
    noisy = salt_pepper(x, share=share, key=keys(100))
    assert (noisy == noisy[:, :1]).all()  # all channels of a pixel together
    white, black = noisy[:, 0] == 1, noisy[:, 0] == 0
    assert (noisy[:, 0][~white & ~black] == 0.5).all()
    n = white.numel()
    for found in (white, black):
        p = share / 2
        assert abs(float(found.double().mean()) - p) < 4 * (p * (1 - p) / n) ** 0.5
    assert len({tuple(image.flatten().tolist()) for image in white | black}) > 40  # every image its own pixels


@given(low=st.floats(0, 1), high=st.floats(0, 1), h=st.integers(1, 9), w=st.integers(1, 9))
def test_pixels_of_a_smaller_share_are_among_those_of_a_larger_one(low: float, high: float, h: int, w: int) -> None:
    low, high = sorted((low, high))
    x = torch.full((4, 2, h, w), 0.5)
    few, many = (salt_pepper(x, share=share, key=keys(4)) for share in (low, high))
    changed = few != x
    assert torch.equal(few[changed], many[changed])


def test_no_share_changes_nothing_and_the_whole_leaves_nothing() -> None:
    x = torch.rand(3, 1, 5, 5) * 0.8 + 0.1
    assert torch.equal(salt_pepper(x, share=0.0, key=keys(3)), x)
    assert set(salt_pepper(x, share=1.0, key=keys(3)).unique().tolist()) == {0.0, 1.0}


def test_an_image_does_not_depend_on_its_batch_nor_on_the_global_generator() -> None:
    x, key, rng = torch.rand(8, 1, 6, 6), keys(8), torch.get_rng_state()
    whole, order = salt_pepper(x, share=0.3, key=key), torch.tensor([5, 2])
    assert torch.equal(salt_pepper(x[order], share=0.3, key=key[order]), whole[order])
    assert not torch.equal(salt_pepper(x, share=0.3, key=key, counter=1), whole)
    assert torch.equal(rng, torch.get_rng_state())


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_out_of_range_is_an_error(share: float) -> None:
    with pytest.raises(ParameterError, match=r"share must be in \[0, 1\]; got"):
        salt_pepper(torch.rand(1, 1, 2, 2), share=share, key=keys(1))
