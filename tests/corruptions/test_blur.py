"""The blur corruptions against NumPy and SciPy image by image: equal for the same draws, which are tested too."""

import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from hardy import seeding
from hardy.corruptions import _chunks, blur
from hardy.corruptions.scale import SCALES, SEVERITIES, Scale
from hardy.errors import ParameterError

REFERENCE = runpy.run_path(str(Path(__file__).with_name("reference_blur.py")))
Corrupt = Callable[..., Tensor]
EACH: dict[str, Corrupt] = {
    "gaussian_blur": blur.gaussian,
    "defocus_blur": blur.defocus,
    "glass_blur": blur.glass,
    "motion_blur": blur.motion,
    "zoom_blur": blur.zoom,
}
TABLES = {
    "gaussian_blur": blur.BLURS,
    "defocus_blur": blur.DISKS,
    "glass_blur": blur.GLASS,
    "motion_blur": blur.MOTIONS,
}
SHAPES = [(3, 32, 32), (1, 8, 8), (3, 26, 19)]


def keys(n: int) -> Tensor:
    return seeding.keys(seeding.root(0, "test"), torch.arange(n))


def images(n: int, *shape: int) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))


def smooth(n: int) -> Tensor:
    return F.interpolate(images(n, 3, 8, 8), size=32, mode="bicubic").clamp(0, 1)


def arrays(x: Tensor) -> NDArray[np.float64]:
    return x.permute(0, 2, 3, 1).double().numpy()


def assert_equal(got: Tensor, want: list[NDArray[np.float64]], atol: float = 3e-6) -> None:
    torch.testing.assert_close(got.double(), torch.from_numpy(np.stack(want)).permute(0, 3, 1, 2), atol=atol, rtol=0)


@pytest.mark.parametrize("name", TABLES)
def test_constants_are_the_published_ones(name: str) -> None:
    assert {scale: list(TABLES[name][scale]) for scale in SCALES} == REFERENCE["CONSTANTS"][name]


@pytest.mark.parametrize("scale", SCALES)
def test_zoom_factors_are_the_published_ones_to_the_last_bit(scale: Scale) -> None:
    for (count, step), want in zip(blur.ZOOMS[scale], REFERENCE["CONSTANTS"]["zoom_blur"][scale], strict=True):
        assert list(blur._factors(count, step)) == want.tolist()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", ["gaussian_blur", "defocus_blur", "zoom_blur"])
def test_equals_the_reference(name: str, scale: Scale, severity: int, shape: tuple[int, ...]) -> None:
    x, rng = images(2, *shape), np.random.default_rng(0)
    got = EACH[name](x, severity=severity, scale=scale, key=keys(2))
    assert_equal(got, [REFERENCE["REFERENCES"][name](image, severity, scale, rng) for image in arrays(x)])


@pytest.mark.parametrize("name", ["gaussian_blur", "defocus_blur", "zoom_blur"])
def test_equals_the_reference_on_a_large_image(name: str) -> None:
    x, rng = images(1, 3, 224, 224), np.random.default_rng(0)
    for severity in (2, 5):
        got = EACH[name](x, severity=severity, scale="imagenet", key=keys(1))
        want = REFERENCE["REFERENCES"][name](arrays(x)[0], severity, "imagenet", rng)
        assert_equal(got, [want], atol=1e-5)  # positions of the enlarged copies are rounded to float32


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("scale", SCALES)
def test_motion_equals_the_reference_at_its_angles(scale: Scale, severity: int, shape: tuple[int, ...]) -> None:
    x, key = images(6, *shape), keys(6)
    degrees = (seeding.uniform(key, 3, (1,)).flatten().double() - 0.5) * 90
    got = blur.motion(x, severity=severity, scale=scale, key=key, counter=3)
    constants = REFERENCE["CONSTANTS"]["motion_blur"][scale][severity - 1]
    pairs = zip(arrays(x), degrees.tolist(), strict=True)
    assert_equal(got, [REFERENCE["smeared"](image, *constants, angle) for image, angle in pairs])


def moves(key: Tensor, counter: int, size: tuple[int, int], reach: int, rounds: int) -> NDArray[np.int64]:
    """Draw the displacements of every image (down, right) as the function does, in plain NumPy."""
    out = np.zeros((len(key), rounds, *size, 2), dtype=np.int64)
    inner, side = tuple(part - 2 * reach for part in size), 2 * reach
    for number in range(rounds):
        u = seeding.uniform(seeding.fold(key, number), counter, inner).double().numpy()
        cell = np.floor(u * side**2).astype(np.int64)
        inside = out[:, number, reach + 1 : size[0] - reach + 1, reach + 1 : size[1] - reach + 1]
        inside[..., 0], inside[..., 1] = cell // side - reach, cell % side - reach
    return out


@pytest.mark.parametrize("size", [(32, 32), (21, 30), (9, 9)])
@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("scale", SCALES)
def test_glass_equals_pixel_after_pixel_for_the_same_displacements(
    scale: Scale, severity: int, size: tuple[int, int]
) -> None:
    x, key = images(3, 3, *size), keys(3)
    sigma, reach, rounds = REFERENCE["CONSTANTS"]["glass_blur"][scale][severity - 1]
    got = blur.glass(x, severity=severity, scale=scale, key=key, counter=1)
    blurred, drawn = (REFERENCE["gauss"](image, sigma) for image in arrays(x)), moves(key, 1, size, reach, rounds)
    displaced = [REFERENCE["displaced"](image, each, reach) for image, each in zip(blurred, drawn, strict=True)]
    assert_equal(got, [np.clip(REFERENCE["gauss"](image, sigma), 0, 1) for image in displaced])


@pytest.mark.parametrize("severity", SEVERITIES)
def test_glass_leaves_images_that_are_too_small_to_visit_to_the_gaussian(severity: int) -> None:
    x, (sigma, *_) = images(2, 1, 4, 2), blur.GLASS["imagenet"][severity - 1]
    twice = blur._gauss(blur._gauss(x, sigma), sigma)
    if severity > 1:
        torch.testing.assert_close(blur.glass(x, severity=severity, scale="imagenet", key=keys(2)), twice)


def test_glass_displaces_everywhere_equally_often_except_in_the_margin() -> None:
    n, size = 500, 16  # the first CIFAR severity: its Gaussian is one pixel wide, so that values are places
    place = torch.arange(size * size).reshape(1, 1, size, size) / size**2
    got = blur.glass(place.expand(n, -1, -1, -1), severity=1, scale="cifar", key=keys(n))
    moved = ((got - place) * size**2).round().long()[:, 0]
    inside = moved[:, 2:, 2:]
    assert (moved[:, :2] == 0).all() and (moved[:, :, :2] == 0).all()
    counts = [int((inside == offset).sum()) for offset in (0, -1, -size, -size - 1)]
    assert sum(counts) == inside.numel() and stats.chisquare(counts).pvalue > 1e-4
    still = (inside == 0).double()
    z = (still.mean(dim=0) - 0.25) / (0.25 * 0.75 / n) ** 0.5
    assert z.abs().max() < 4.5
    pairs = (still[:, :, 1:] * still[:, :, :-1]).mean()
    assert abs(pairs - 1 / 16) < 4.5 * 0.25 / (n * 14 * 13) ** 0.5


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", ["glass_blur", "motion_blur"])
def test_random_blurs_have_the_distribution_of_the_reference(name: str, scale: Scale) -> None:
    n, rng, severity = 150, np.random.default_rng(0), 4
    x = smooth(1).expand(n, -1, -1, -1)
    got = EACH[name](x, severity=severity, scale=scale, key=keys(n)).double().flatten(1).numpy()
    image = arrays(x[:1])[0]
    draws = [REFERENCE["REFERENCES"][name](image, severity, scale, rng).transpose(2, 0, 1).ravel() for _ in range(n)]
    want = np.stack(draws)
    error = np.sqrt((got.var(axis=0) + want.var(axis=0)) / n) + 1e-6
    z = (got.mean(axis=0) - want.mean(axis=0)) / error
    assert np.abs(z).max() < 6  # over all values, which depend on each other
    distances = [np.abs(part - x[0].flatten().numpy()).mean(axis=1) for part in (got, want)]
    assert stats.ks_2samp(*distances).pvalue > 1e-3


def test_motion_angles_are_uniform_up_to_45_degrees() -> None:
    n, (radius, sigma) = 3000, blur.MOTIONS["imagenet"][4]
    x = torch.zeros(n, 1, 101, 101)
    x[:, :, 50, 50] = 1
    got = blur.motion(x, severity=5, scale="imagenet", key=keys(n))[:, 0]
    at = torch.arange(101.0) - 50
    down, right = -(got * at[:, None]).sum(dim=(1, 2)), -(got * at).sum(dim=(1, 2))
    degrees = torch.rad2deg(torch.atan2(down, right)).numpy()
    assert stats.kstest(degrees, stats.uniform(-45, 90).cdf).pvalue > 1e-3
    i = np.arange(2 * radius + 1)
    length = np.average(i, weights=np.exp(-(i**2) / (2 * sigma**2)))
    assert (torch.hypot(down, right) - length).abs().max() < 0.5


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", EACH)
def test_a_higher_severity_moves_further_and_stays_in_the_box(name: str, scale: Scale) -> None:
    x, key = smooth(30), keys(30)
    got = [EACH[name](x, severity=severity, scale=scale, key=key) for severity in SEVERITIES]
    distance = [float((each - x).abs().mean()) for each in got]
    if name == "glass_blur":  # the published constants trade reach for rounds, which is no order
        distance = [distance[0], distance[4]]
    assert distance == sorted(distance) and distance[0] < 0.9 * distance[-1], distance
    assert all(each.min() >= 0 and each.max() <= 1 and each.dtype == x.dtype for each in got)


@pytest.mark.parametrize("name", EACH)
def test_a_constant_image_stays_as_it_is(name: str) -> None:
    x = torch.full((2, 3, 20, 20), 0.7)
    for severity in (1, 3, 5):
        got = EACH[name](x, severity=severity, scale="imagenet", key=keys(2))
        bright = 1.0107857735871493 if name == "defocus_blur" and severity == 5 else 1.0  # the published disk's sum
        torch.testing.assert_close(got, x * bright, atol=2e-6, rtol=0)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (1, 1, 1), (3, 2, 9)])
@pytest.mark.parametrize("name", EACH)
def test_an_image_depends_on_its_key_and_counter_alone(
    name: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, key, state = images(9, *shape), keys(9), torch.get_rng_state()

    def run(rows: list[int], counter: int = 0) -> Tensor:
        return EACH[name](x[rows], severity=4, scale="imagenet", key=key[rows], counter=counter)

    whole, order = run(list(range(9))), [7, 0, 3]
    torch.testing.assert_close(run(order), whole[order], atol=5e-7, rtol=0)
    assert torch.equal(run(order), run(order))
    if name not in {"glass_blur", "motion_blur"} or shape == (3, 32, 32):
        changed = (run(order, counter=1) - whole[order]).abs().amax(dim=(1, 2, 3)) > 1e-3
        assert changed.tolist() == [name in {"glass_blur", "motion_blur"}] * 3
    monkeypatch.setattr(_chunks, "CACHED", 1)
    torch.testing.assert_close(run(list(range(9))), whole, atol=5e-7, rtol=0)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", EACH)
def test_channels_are_treated_alike(name: str) -> None:
    gray, key = images(4, 1, 16, 20), keys(4)
    colour = gray.expand(-1, 3, -1, -1)
    for severity in (2, 5):
        one, three = (EACH[name](x, severity=severity, scale="cifar", key=key) for x in (gray, colour))
        torch.testing.assert_close(three, one.expand(-1, 3, -1, -1), atol=5e-7, rtol=0)


@pytest.mark.parametrize("name", EACH)
def test_an_empty_batch_and_strides_are_no_trouble(name: str) -> None:
    x = images(4, 3, 12, 12)
    assert EACH[name](x[:0], severity=1, scale="cifar", key=keys(0)).shape == (0, 3, 12, 12)
    got, last = (
        EACH[name](each, severity=3, scale="imagenet", key=keys(4))
        for each in (x, x.to(memory_format=torch.channels_last))
    )
    torch.testing.assert_close(got, last, atol=5e-7, rtol=0)


@pytest.mark.parametrize("name", EACH)
def test_another_severity_or_scale_is_an_error(name: str) -> None:
    with pytest.raises(ParameterError, match=f"{name}: severity must be"):
        EACH[name](images(1, 1, 4, 4), severity=6, scale="cifar", key=keys(1))
    with pytest.raises(ParameterError, match=f"{name}: severity must be"):
        EACH[name](images(1, 1, 4, 4), severity=0, scale="cifar", key=keys(1))
