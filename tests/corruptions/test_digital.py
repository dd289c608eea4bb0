"""Digital: constants as published, equal to the slow references, on the same random numbers where there are any."""

import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from hardy import seeding
from hardy.corruptions import digital
from hardy.corruptions._bands import map_columns, map_rows, smoothing
from hardy.errors import ParameterError

parity = runpy.run_path(str(Path(__file__).with_name("parity.py")))
keys, pictures, by_reference, Script = (parity[name] for name in ("keys", "pictures", "by_reference", "Script"))
slow = parity["load"]("digital")
NAMES = ("contrast", "elastic_transform", "pixelate", "jpeg_compression", "saturate")
TABLES = {
    "contrast": digital.CONTRASTS,
    "pixelate": digital.PIXELS,
    "jpeg_compression": digital.QUALITIES,
    "saturate": digital.SATURATIONS,
}
CASES = [(scale, severity) for scale in ("cifar", "imagenet") for severity in range(1, 6)]
# from the least to the most mean distance; what is equal or has no order is left out
ORDERS = {
    ("elastic_transform", "cifar"): (5, 4, 3, 2, 1),
    ("elastic_transform", "imagenet"): (3, 1, 2),
    ("saturate", "cifar"): (1, 2),
    ("saturate", "imagenet"): (3, 4, 5),
}


def corrupt(name: str, x: Tensor, severity: int, scale: str, key: Tensor | None = None, *, counter: int = 0) -> Tensor:
    key = keys(len(x)) if key is None else key
    return getattr(digital, name)(x, severity=severity, scale=scale, key=key, counter=counter)


def script(key: Tensor, size: tuple[int, int]) -> object:
    """Give the reference of the elastic transform the numbers that hardy draws for one key."""
    corners = seeding.uniform(seeding.fold(key, 1), 0, (3, 2))[0]
    return Script([corners, *seeding.uniform(key, 0, (2, *size))[0].unbind(0)])


@pytest.mark.parametrize("name", TABLES)
def test_constants_are_the_published_ones(name: str) -> None:
    assert {scale: list(TABLES[name][scale]) for scale in TABLES[name]} == slow["CONSTANTS"][name]


def test_elastic_constants_are_the_published_pixels_at_the_published_sizes() -> None:
    for scale, side in slow["SIDES"].items():
        got = torch.tensor(digital.ELASTICS[scale]) * digital.ELASTIC_SIDE[scale] * side
        torch.testing.assert_close(got, torch.tensor(slow["CONSTANTS"]["elastic_transform"][scale]))


@pytest.mark.parametrize(("scale", "severity"), CASES)
@pytest.mark.parametrize("name", ["contrast", "saturate"])
@pytest.mark.parametrize("shape", [(3, 9, 12), (1, 8, 8)])
def test_colours_equal_the_reference(name: str, shape: tuple[int, int, int], scale: str, severity: int) -> None:
    x = pictures(5, *shape)
    want = by_reference(slow[name], x, severity, scale, None)
    torch.testing.assert_close(corrupt(name, x, severity, scale).double(), want, rtol=0, atol=2e-6)


def test_gray_pixels_redden_only_where_the_published_severities_add_saturation() -> None:
    gray = torch.full((1, 3, 2, 2), 0.5)
    for severity in (1, 2, 3):
        assert torch.equal(corrupt("saturate", gray, severity, "cifar"), gray)
    red = corrupt("saturate", gray, 5, "cifar")[0, :, 0, 0]
    torch.testing.assert_close(red, torch.tensor([0.5, 0.4, 0.4]))
    assert torch.equal(corrupt("saturate", gray[:, :1], 5, "cifar"), gray[:, :1])


@pytest.mark.parametrize(("scale", "severity"), CASES)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (3, 45, 70), (3, 224, 224), (1, 3, 2)])
def test_pixelate_equals_pillow(shape: tuple[int, int, int], scale: str, severity: int) -> None:
    x = pictures(3, *shape[:1], max(shape[1], 2), shape[2])
    want = by_reference(slow["pixelate"], x, severity, scale, None)
    torch.testing.assert_close(corrupt("pixelate", x, severity, scale).double(), want, rtol=0, atol=1e-7)


@pytest.mark.parametrize(("scale", "severity"), CASES)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (3, 24, 37)])
def test_elastic_equals_the_reference_on_the_same_random_numbers(
    shape: tuple[int, int, int], scale: str, severity: int
) -> None:
    x, key = pictures(4, *shape), keys(4)
    rngs = [script(key[i : i + 1], shape[1:]) for i in range(4)]
    want = by_reference(slow["elastic_transform"], x, severity, scale, rngs)
    far = (corrupt("elastic_transform", x, severity, scale, key) - want).abs()
    assert far.max() < 5e-3 and far.mean() < 2e-5  # coordinates are float32


@pytest.mark.parametrize("scale", ["cifar", "imagenet"])
def test_elastic_is_distributed_like_the_reference_and_a_tenth_more_is_noticed(
    scale: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    n, rng = 400, np.random.default_rng(0)
    x = pictures(1, 1, 32, 32).expand(n, -1, -1, -1)
    theirs = parity["statistics"](by_reference(slow["elastic_transform"], x, 5, scale, rng), x)
    ours = parity["statistics"](corrupt("elastic_transform", x, 5, scale), x)
    assert parity["distance"](ours, theirs) < parity["SIGMAS"]
    factor, sigma, reach = digital.ELASTICS[scale][4]
    wrong = (*digital.ELASTICS[scale][:4], (factor * 1.1, sigma, reach * 1.1))
    monkeypatch.setitem(digital.ELASTICS, scale, wrong)
    ours = parity["statistics"](corrupt("elastic_transform", x, 5, scale), x)
    assert parity["distance"](ours, theirs) > parity["SIGMAS"]


@pytest.mark.parametrize("border", ["nearest", "reflect"])
@pytest.mark.parametrize("size", [(5, 8), (70, 33)])
@pytest.mark.parametrize("sigma", [0.0, 0.7, 6.4, 40.0])
def test_smoothing_by_matrices_equals_scipy(border: str, size: tuple[int, int], sigma: float) -> None:
    x = torch.rand(3, 2, *size, generator=torch.Generator().manual_seed(0))
    down, across = (smoothing(side, sigma, truncate=3.0, border=border) for side in size)
    want = ndimage.gaussian_filter(x.double().numpy(), (0, 0, sigma, sigma), mode=border, truncate=3)
    got = map_rows(map_columns(x, down), across).double()
    torch.testing.assert_close(got, torch.from_numpy(want), rtol=0, atol=2e-6)


@pytest.mark.parametrize("scale", ["cifar", "imagenet"])
@pytest.mark.parametrize("name", NAMES)
def test_severities_are_in_order_where_the_published_ones_are(name: str, scale: str) -> None:
    side = 32 if scale == "cifar" else 64
    x = pictures(40, 3, side, side)
    order = ORDERS.get((name, scale), (1, 2, 3, 4, 5))
    means = [float((corrupt(name, x, severity, scale) - x).abs().mean()) for severity in order]
    assert means == sorted(means) and means[-1] > 1.1 * means[0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_depends_on_its_key_alone(name: str, channels: int) -> None:
    x, key, rng = pictures(130, channels, 16, 16), keys(130), torch.get_rng_state()
    whole, order = corrupt(name, x, 3, "cifar", key), torch.tensor([99, 2, 128])
    assert torch.equal(corrupt(name, x[order], 3, "cifar", key[order]), whole[order])
    assert torch.equal(corrupt(name, x[99:100], 3, "cifar", key[99:100]), whole[99:100])
    assert torch.equal(rng, torch.get_rng_state())
    random = name == "elastic_transform"
    assert torch.equal(corrupt(name, x, 3, "cifar", key, counter=1), whole) is not random
    assert torch.equal(corrupt(name, x, 3, "cifar", key.flip(0)), whole) is not random


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 9), (3, 40, 30)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_image_stays_an_image(name: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    x = pictures(3, *shape).to(dtype)
    before = x.clone()
    for scale, severity in CASES:
        got = corrupt(name, x, severity, scale)
        assert got.shape == x.shape and got.dtype == dtype and got.min() >= 0 and got.max() <= 1
        assert torch.equal(x, before)
    assert corrupt(name, x[:0], 1, "cifar", keys(0)).shape == (0, *shape)


@pytest.mark.parametrize("name", NAMES)
def test_errors_name_the_corruption(name: str) -> None:
    function: Callable[..., Tensor] = getattr(digital, name)
    with pytest.raises(ParameterError, match=f"{name}: severity must be a whole number from 1 to 5; got 0"):
        function(torch.rand(1, 3, 8, 8), severity=0, scale="cifar", key=keys(1))
