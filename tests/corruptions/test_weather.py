"""Weather: constants as published, equal to the slow references on the same random numbers, alike on their own."""

import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from hardy import seeding
from hardy.corruptions import plasma, spatter, weather
from hardy.errors import ParameterError, ShapeError

parity = runpy.run_path(str(Path(__file__).with_name("parity.py")))
keys, pictures, by_reference, Script = (parity[name] for name in ("keys", "pictures", "by_reference", "Script"))
slow = parity["load"]("weather")
NAMES = ("snow", "frost", "fog", "brightness", "spatter")
TABLES = {
    "brightness": weather.BRIGHTENING,
    "fog": weather.FOGS,
    "frost": weather.FROSTS,
    "snow": weather.SNOWS,
    "spatter": weather.SPATTERS,
}
RANDOM = [name for name in NAMES if name != "brightness"]
CASES = [(scale, severity) for scale in ("cifar", "imagenet") for severity in range(1, 6)]
# from the least to the most mean distance, where that is not 1 to 5; equal ones are left out
ORDERS = {
    ("snow", "imagenet"): (1, 2, 4, 5),
    ("spatter", "cifar"): (1, 4, 5, 3),
    ("frost", "cifar"): (1, 5, 4, 2, 3),  # brighter with less ice, dimmer with more
    ("frost", "imagenet"): (1, 3),
}


def corrupt(name: str, x: Tensor, severity: int, scale: str, key: Tensor | None = None, *, counter: int = 0) -> Tensor:
    key = keys(len(x)) if key is None else key
    return getattr(weather, name)(x, severity=severity, scale=scale, key=key, counter=counter)


def plasma_draws(key: Tensor, size: int) -> list[Tensor]:
    """Cut the numbers of one key into the arrays that the reference draws one after the other."""
    drawn, side, parts = seeding.uniform(key, 0, (size * size - 1,))[0], 1, []
    while side < size:
        parts += drawn[side * side - 1 : 4 * side * side - 1].reshape(3, side, side).unbind(0)
        side *= 2
    return parts


def script(name: str, key: Tensor, severity: int, scale: str, size: tuple[int, int]) -> object:
    """Give the reference the numbers that hardy draws for one key."""
    side = 2 ** int(np.ceil(np.log2(max(size))))
    other = seeding.fold(key, 1)
    if name == "fog":
        return Script(plasma_draws(key, side))
    if name == "frost":
        choice, shift = seeding.uniform(other, 0, (2,))[0]
        return Script([choice, *plasma_draws(key, side), shift])
    if name == "snow":
        zoom = weather.SNOWS[scale][severity - 1][2]
        inner = [int(np.ceil(length / zoom)) for length in size]
        return Script([seeding.normal(key, 0, inner)[0], seeding.uniform(other, 0, (1,))[0, 0]])
    return Script([seeding.normal(key, 0, size)[0]])


@pytest.mark.parametrize("name", NAMES)
def test_constants_are_the_published_ones(name: str) -> None:
    for scale, published in slow["CONSTANTS"][name].items():
        assert [each if isinstance(each, float) else tuple(each) for each in TABLES[name][scale]] == published
    assert set(TABLES[name]) == {"cifar", "imagenet"}


@pytest.mark.parametrize(("scale", "severity"), CASES)
@pytest.mark.parametrize("channels", [1, 3])
def test_brightness_equals_adding_to_the_value_of_hsv(channels: int, scale: str, severity: int) -> None:
    x = pictures(4, channels, 9, 12)
    want = by_reference(slow["brightness"], x, severity, scale, None)
    torch.testing.assert_close(corrupt("brightness", x, severity, scale).double(), want, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("scale", "severity"), CASES)
@pytest.mark.parametrize("name", ["snow", "frost", "fog"])
@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 21, 34)])
def test_equals_the_reference_on_the_same_random_numbers(
    name: str, shape: tuple[int, int, int], scale: str, severity: int
) -> None:
    x, key = 0.7 * pictures(3, *shape), keys(3)
    rngs = [script(name, key[i : i + 1], severity, scale, shape[1:]) for i in range(3)]
    want = by_reference(slow[name], x, severity, scale, rngs)
    near = (corrupt(name, x, severity, scale, key) - want).abs() < 2e-5
    assert near.double().mean() > 0.99  # a flake on the threshold may fall either way
    assert name == "snow" or near.all()


@pytest.mark.parametrize(("scale", "severity"), CASES)
@pytest.mark.parametrize("channels", [1, 3])
def test_spatter_equals_the_reference_on_the_same_random_numbers(channels: int, scale: str, severity: int) -> None:
    x, key = pictures(6, channels, 40, 33), keys(6)
    rngs = [script("spatter", key[i : i + 1], severity, scale, (40, 33)) for i in range(6)]
    want = by_reference(slow["spatter"], x, severity, scale, rngs)
    far = ((corrupt("spatter", x, severity, scale, key) - want).abs() > 2e-5).flatten(1).double().mean(dim=1)
    assert far.median() == 0 and far.mean() < 0.02  # one edge pixel more changes its surroundings


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("scale", ["cifar", "imagenet"])
def test_is_distributed_like_the_reference_and_a_tenth_more_is_noticed(
    name: str, scale: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    n, severity = (600 if name == "frost" else 300), 5 if name == "spatter" else 2
    x, rng = pictures(1, 3, 32, 32).expand(n, -1, -1, -1), np.random.default_rng(0)
    theirs = parity["statistics"](by_reference(slow[name], x, severity, scale, rng), x)
    ours = parity["statistics"](corrupt(name, x, severity, scale), x)
    assert parity["distance"](ours, theirs) < parity["SIGMAS"]
    place = {"snow": 1, "frost": 1, "fog": 0, "spatter": 0}[name]
    wrong = list(TABLES[name][scale])
    constants = list(wrong[severity - 1])
    constants[place] *= 1.1
    kind = type(wrong[severity - 1])
    wrong[severity - 1] = kind(*constants) if name == "spatter" else kind(constants)
    table = {"snow": "SNOWS", "frost": "FROSTS", "fog": "FOGS", "spatter": "SPATTERS"}[name]
    monkeypatch.setitem(getattr(spatter if name == "spatter" else weather, table), scale, tuple(wrong))
    ours = parity["statistics"](corrupt(name, x, severity, scale), x)
    assert parity["distance"](ours, theirs) > parity["SIGMAS"]


def test_ice_has_the_colours_and_the_contrast_of_the_photographs() -> None:
    ice = weather._ice(torch.zeros(400, 3, 32, 32), keys(400), 0)
    colours = torch.tensor(weather.ICES)
    means, spread = ice.mean(dim=(2, 3)), ice.mean(dim=1).flatten(1).std(dim=1)
    ratio = torch.tensor([0.299, 0.587, 0.114])
    nearest = ((spread[:, None] - colours[:, 3]).abs()).argmin(dim=1)
    for index, count in ((0, 80), (1, 160), (3, 80), (4, 80)):  # the second and third photograph are alike
        chosen = nearest == index
        assert abs(int(chosen.sum()) - count) < 4 * (count * (1 - count / 400)) ** 0.5
        assert (means[chosen].mean(dim=0) - colours[index, :3]).abs().max() < 4 * 0.04 / count**0.5
    gray = weather._ice(torch.zeros(20, 1, 32, 32), keys(20), 0)
    torch.testing.assert_close(gray[:, 0], torch.einsum("nchw,c->nhw", ice[:20], ratio), rtol=0, atol=0.02)


def test_smearing_equals_shifted_copies_for_every_direction() -> None:
    flakes = torch.rand(40, 12, 17, generator=torch.Generator().manual_seed(0))
    degrees = torch.linspace(-135, -45.01, 40)
    got = weather._smeared(flakes, torch.deg2rad(degrees), radius=8, sigma=3.0)
    want = [slow["fallen"](f.double().numpy(), 8, 3.0, d) for f, d in zip(flakes, degrees.tolist(), strict=True)]
    near = (got - torch.from_numpy(np.stack(want))).abs().flatten(1).amax(dim=1) < 1e-5
    assert near.sum() >= 38  # rounding an offset of a half may differ at the ends


def test_edges_are_those_of_a_pixelwise_canny() -> None:
    smooth = torch.nn.functional.interpolate(torch.rand(8, 1, 6, 7), size=(30, 41), mode="bicubic")[:, 0]
    levels = torch.where(smooth > 0.4, smooth * 255, 0.0).floor().clamp(0, 255)
    for ours, one in zip(spatter._edges(levels), levels, strict=True):
        assert torch.equal(ours, torch.from_numpy(slow["canny"](one.double().numpy())))


@pytest.mark.parametrize("shape", [(30, 41), (3, 64), (64, 2)])
def test_distances_are_euclidean_up_to_the_cut(shape: tuple[int, int]) -> None:
    edge = torch.rand(5, *shape, generator=torch.Generator().manual_seed(0)) < 0.01
    edge[0], edge[1, 0, 0] = False, True
    got = spatter._distance(edge)
    assert (got[0] == spatter.FAR).all()
    for ours, one in zip(got[1:], edge[1:], strict=True):
        want = ndimage.distance_transform_edt(~one.numpy()) if one.any() else np.full(shape, 20.0)
        torch.testing.assert_close(ours.double(), torch.from_numpy(np.minimum(want, 20)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [2, 8, 32])
def test_plasma_equals_the_algorithm_in_place(size: int) -> None:
    key = keys(3)
    got = plasma.plasma(key, 0, size=size, decay=1.7)
    for i in range(3):
        want = slow["plasma"](size, 1.7, Script(plasma_draws(key[i : i + 1], size)))
        torch.testing.assert_close(got[i].double(), torch.from_numpy(want), rtol=0, atol=1e-5)
    assert (got.amin(dim=(1, 2)) == 0).all() and (got.amax(dim=(1, 2)) == 1).all()
    with pytest.raises(ParameterError, match="power of two above 1; got 12"):
        plasma.plasma(key, 0, size=12, decay=2.0)


@pytest.mark.parametrize("scale", ["cifar", "imagenet"])
@pytest.mark.parametrize("name", NAMES)
def test_severities_are_in_order_where_the_published_ones_are(name: str, scale: str) -> None:
    side = 32 if scale == "cifar" else 64
    x = pictures(60, 3, side, side)
    order = ORDERS.get((name, scale), (1, 2, 3, 4, 5))
    means = [float((corrupt(name, x, severity, scale) - x).abs().mean()) for severity in order]
    assert means == sorted(means) and means[-1] > 1.15 * means[0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_depends_on_its_key_alone(name: str, channels: int) -> None:
    x, key, rng = pictures(130, channels, 16, 16), keys(130), torch.get_rng_state()
    whole, order = corrupt(name, x, 3, "cifar", key), torch.tensor([99, 2, 128])
    assert torch.equal(corrupt(name, x[order], 3, "cifar", key[order]), whole[order])
    assert torch.equal(corrupt(name, x[99:100], 3, "cifar", key[99:100]), whole[99:100])
    assert torch.equal(rng, torch.get_rng_state())
    if name != "brightness":
        assert not torch.equal(corrupt(name, x, 3, "cifar", key, counter=1), whole)
        assert not torch.equal(corrupt(name, x, 3, "cifar", key.flip(0)), whole)


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


def test_water_that_does_not_fall_changes_nothing() -> None:
    x = torch.full((40, 3, 8, 8), 0.3)
    got = corrupt("spatter", x, 1, "cifar")
    dry = (got == x).flatten(1).all(dim=1)
    assert 5 < dry.sum() < 40 and not got.isnan().any()


@pytest.mark.parametrize("name", NAMES)
def test_errors_name_the_corruption(name: str) -> None:
    function: Callable[..., Tensor] = getattr(weather, name)
    with pytest.raises(ParameterError, match=f"{name}: severity must be a whole number from 1 to 5; got 6"):
        function(torch.rand(1, 3, 8, 8), severity=6, scale="cifar", key=keys(1))


def test_spatter_says_that_a_single_pixel_is_too_small() -> None:
    key = torch.tensor([3])
    with pytest.raises(ShapeError, match="must be at least 2x2 pixels; got 1x4"):
        spatter.spatter(torch.rand(1, 3, 1, 4), severity=1, scale="cifar", key=key)
    assert spatter.spatter(torch.rand(1, 3, 2, 2), severity=1, scale="cifar", key=key).shape == (1, 3, 2, 2)
