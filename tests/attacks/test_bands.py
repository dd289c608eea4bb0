"""Bands against scipy's transform, and that they partition the spectrum into equal dimensions."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dctn, idctn

from hardy.attacks.bands import band_numbers, cosines, make_band
from hardy.errors import ParameterError

SIZES = [(8, 8), (32, 32), (5, 7), (12, 6), (1, 9)]


@pytest.mark.parametrize("side", [1, 2, 7, 32, 224])
def test_the_transform_is_orthonormal(side: int) -> None:
    matrix = cosines(side)
    eye = torch.eye(side, dtype=torch.float64)
    torch.testing.assert_close(matrix @ matrix.T, eye, rtol=0, atol=1e-13)
    torch.testing.assert_close(matrix.T @ matrix, eye, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("h", "w"), SIZES)
def test_projection_is_what_scipy_gives(h: int, w: int) -> None:
    x = torch.randn(3, 2, h, w, generator=torch.Generator().manual_seed(0))
    for index in range(3):
        mask = (band_numbers(h, w, 3) == index).numpy()
        want = idctn(dctn(x.double().numpy(), axes=(2, 3), norm="ortho") * mask, axes=(2, 3), norm="ortho")
        got = make_band(index, 3, height=h, width=w).project(x)
        torch.testing.assert_close(got, torch.from_numpy(want).float(), rtol=0, atol=3e-6)


@pytest.mark.parametrize(("h", "w"), [(224, 224), (40, 24)])
def test_large_images_come_back_from_all_bands_together(h: int, w: int) -> None:
    x = torch.rand(1, 3, h, w, generator=torch.Generator().manual_seed(0))
    parts = [make_band(i, 5, height=h, width=w).project(x) for i in range(5)]
    torch.testing.assert_close(torch.stack(parts).sum(dim=0), x, rtol=0, atol=2e-5)


@given(h=st.integers(1, 12), w=st.integers(1, 12), data=st.data())
@settings(max_examples=40, deadline=None)
def test_bands_partition_the_spectrum_into_equal_dimensions(h: int, w: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, h * w))
    sizes = torch.bincount(band_numbers(h, w, count).flatten(), minlength=count)
    assert len(sizes) == count and sizes.sum() == h * w and sizes.max() - sizes.min() <= 1
    bands = [make_band(i, count, height=h, width=w) for i in range(count)]
    assert torch.equal(torch.stack([band.mask for band in bands]).sum(dim=0), torch.ones(h, w))
    assert [band.size for band in bands] == sizes.tolist()
    x = torch.rand(1, 1, h, w, generator=torch.Generator().manual_seed(count)) - 0.3
    parts = [band.project(x) for band in bands]
    torch.testing.assert_close(torch.stack(parts).sum(dim=0), x, rtol=0, atol=1e-5)
    for band, part, other in zip(bands, parts, parts[1:] + parts[:1], strict=True):
        torch.testing.assert_close(band.project(part), part, rtol=0, atol=1e-5)
        assert count == 1 or abs(float((part * other).sum())) < 1e-5


@pytest.mark.parametrize(("h", "w"), SIZES)
def test_bands_are_shells_in_a_fixed_order(h: int, w: int) -> None:
    terms = sorted(((i * w) ** 2 + (j * h) ** 2, i, j) for i in range(h) for j in range(w))
    count = min(6, h * w)
    found = band_numbers(h, w, count)
    for place, (_, i, j) in enumerate(terms):
        assert int(found[i, j]) == place * count // (h * w)
    bands = [make_band(i, count, height=h, width=w) for i in range(count)]
    for band, above in itertools.pairwise(bands):
        assert band.low <= band.high <= above.low <= 2**0.5


def test_words_count_cycles() -> None:
    lowest, highest = (make_band(i, 64, height=8, width=8) for i in (0, 63))
    assert (lowest.low, lowest.high, lowest.size) == (0, 0, 1)
    constant = torch.full((1, 1, 8, 8), 0.3)
    torch.testing.assert_close(lowest.project(constant), constant)
    assert lowest.describe() == "0 to 0 cycles per 8 pixels"
    assert highest.describe() == "4.9 to 4.9 cycles per 8 pixels"  # 7 half waves down and across
    wave = make_band(2, 8, height=4, width=2)  # (0, 1) of 2 columns is as fine as (2, 0) of 4 rows
    assert wave.high == 0.5 and wave.describe() == "1 to 1 cycles per 4 pixels"


def test_share_is_of_the_energy() -> None:
    band = make_band(1, 4, height=8, width=8)
    z = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    inside = band.project(z)
    outside = z - inside
    parts = [inside / inside.norm(), outside / outside.norm()]
    for scale in (1.0, 1e-25):
        mixed = scale * (3 * parts[0] + 4 * parts[1])
        want = 9 * parts[0].square().sum((1, 2, 3)) / (mixed / scale).square().sum((1, 2, 3))
        torch.testing.assert_close(band.share(mixed), want, rtol=1e-5, atol=0)
    assert band.share(torch.zeros(2, 3, 8, 8)).tolist() == [1, 1]
    assert (band.share(inside) > 1 - 1e-6).all() and (band.share(outside) < 1e-6).all()


def test_bands_that_do_not_exist_are_errors() -> None:
    with pytest.raises(ParameterError, match="from 0 to the number of bands - 1; got band 3 of 3"):
        make_band(3, 3, height=8, width=8)
    with pytest.raises(ParameterError, match="at most the number of pixels, 6 of 2x3 images; got 7"):
        make_band(0, 7, height=2, width=3)
