"""The weather corruptions image by image in NumPy and SciPy, as slow references; constants as published.

Each takes an image (h, w, c) with values in [0, 1], a severity from 1 to 5, a scale ("cifar" or "imagenet") and a
generator, and returns such an image. Nothing is cut to whole gray levels at the end. Frost has the generated ice of
hardy.corruptions.weather, since the published photographs are not at hand.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Image = NDArray[np.float64]

CONSTANTS = {
    "brightness": {"cifar": [0.05, 0.1, 0.15, 0.2, 0.3], "imagenet": [0.1, 0.2, 0.3, 0.4, 0.5]},
    "fog": {
        "cifar": [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],
        "imagenet": [(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)],
    },
    "frost": {
        "cifar": [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)],
        "imagenet": [(1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)],
    },
    "snow": {
        "cifar": [
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ],
        "imagenet": [
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ],
    },
    "spatter": {
        "cifar": [
            (0.62, 0.1, 0.7, 0.7, 0.5, 0),
            (0.65, 0.1, 0.8, 0.7, 0.5, 0),
            (0.65, 0.3, 1, 0.69, 0.5, 0),
            (0.65, 0.1, 0.7, 0.69, 0.6, 1),
            (0.65, 0.1, 0.5, 0.68, 0.6, 1),
        ],
        "imagenet": [
            (0.65, 0.3, 4, 0.69, 0.6, 0),
            (0.65, 0.3, 3, 0.68, 0.6, 0),
            (0.65, 0.3, 2, 0.68, 0.5, 0),
            (0.65, 0.3, 1, 0.65, 1.5, 1),
            (0.67, 0.4, 1, 0.65, 1.5, 1),
        ],
    },
}
ICES = [(0.30, 0.58, 0.64, 0.06), (0.78, 0.80, 0.83, 0.07), (0.78, 0.80, 0.83, 0.07), (0.57, 0.62, 0.67, 0.10)]
ICES += [(0.41, 0.45, 0.50, 0.14)]


def brightness(image: Image, severity: int, scale: str, rng: np.random.Generator) -> Image:
    added = CONSTANTS["brightness"][scale][severity - 1]
    if image.shape[2] == 1:
        return np.clip(image + added, 0, 1)
    hsv = to_hsv(image)
    hsv[..., 2] = np.clip(hsv[..., 2] + added, 0, 1)
    return np.clip(to_rgb(hsv), 0, 1)


def fog(image: Image, severity: int, scale: str, rng: np.random.Generator) -> Image:
    thickness, decay = CONSTANTS["fog"][scale][severity - 1]
    drift = plasma(_power(image), decay, rng)[: image.shape[0], : image.shape[1], None]
    most = image.max()
    return np.clip((image + thickness * drift) * most / (most + thickness), 0, 1)


def frost(image: Image, severity: int, scale: str, rng: np.random.Generator) -> Image:
    kept, weight = CONSTANTS["frost"][scale][severity - 1]
    return np.clip(kept * image + weight * ice(image.shape, rng), 0, 1)


def snow(image: Image, severity: int, scale: str, rng: np.random.Generator) -> Image:
    mean, deviation, zoom, least, radius, sigma, kept = CONSTANTS["snow"][scale][severity - 1]
    height, width = image.shape[:2]
    noise = rng.normal(mean, deviation, size=(math.ceil(height / zoom), math.ceil(width / zoom)))
    flakes = ndimage.zoom(noise, zoom, order=1)
    top, left = (flakes.shape[0] - height) // 2, (flakes.shape[1] - width) // 2
    flakes = flakes[top : top + height, left : left + width]
    flakes = np.clip(np.where(flakes < least, 0, flakes), 0, 1)
    flakes = fallen(flakes, radius, sigma, rng.uniform(-135, -45))[..., None]
    gray = image if image.shape[2] == 1 else image @ np.array([[0.299], [0.587], [0.114]])
    bleached = kept * image + (1 - kept) * np.maximum(image, gray * 1.5 + 0.5)
    return np.clip(bleached + flakes + np.rot90(flakes, 2), 0, 1)


def spatter(image: Image, severity: int, scale: str, rng: np.random.Generator) -> Image:
    mean, deviation, sigma, least, strength, mud = CONSTANTS["spatter"][scale][severity - 1]
    liquid = ndimage.gaussian_filter(rng.normal(mean, deviation, image.shape[:2]), sigma, mode="nearest")
    liquid[liquid < least] = 0
    if mud:
        cover = ndimage.gaussian_filter((liquid > least).astype(float), strength, mode="nearest")
        cover[cover < 0.8] = 0
        return np.clip(image * (1 - cover[..., None]) + cover[..., None] * _colour((63, 42, 20), image), 0, 1)
    return np.clip(image + water(liquid, strength)[..., None] * _colour((175, 238, 238), image), 0, 1)


def water(liquid: Image, strength: float) -> Image:
    """Shade drops as the generators do with OpenCV, but with the Euclidean distance."""
    levels = np.minimum(np.floor(liquid * 255), 255)
    edge = canny(levels)
    distance = np.minimum(ndimage.distance_transform_edt(~edge), 20) if edge.any() else np.full(edge.shape, 20.0)
    distance = np.floor(ndimage.uniform_filter(distance, 3, mode="mirror") + 1e-9).astype(np.uint8)
    relief = ndimage.correlate(
        equalised(distance), np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], dtype=float), mode="mirror"
    )
    cover = levels * np.round(ndimage.uniform_filter(np.clip(relief, 0, 255), 3, mode="mirror"))
    return cover * strength / max(cover.max(), 1)


def equalised(levels: NDArray[np.uint8]) -> Image:
    counts = np.bincount(levels.ravel(), minlength=256)
    first = int(levels.min())
    if counts[first] == levels.size:
        return levels.astype(float)
    table = np.round((np.cumsum(counts) - counts[first]) * (255 / (levels.size - counts[first])))
    return table[levels]


def canny(levels: Image) -> NDArray[np.bool_]:
    """Find edges as OpenCV's Canny with thresholds 50 and 150 does, pixel by pixel in the thinning."""
    dx, dy = (ndimage.sobel(levels, axis=axis, mode="nearest") for axis in (1, 0))
    size = np.abs(dx) + np.abs(dy)
    padded, weak = np.pad(size, 1), np.zeros(size.shape, dtype=bool)
    for row, column in zip(*np.nonzero(size > 50), strict=True):
        around, here = padded[row : row + 3, column : column + 3], size[row, column]
        x, y = abs(dx[row, column]), abs(dy[row, column])
        if y < 0.41421356 * x:
            weak[row, column] = here > around[1, 0] and here >= around[1, 2]
        elif y > 2.41421356 * x:
            weak[row, column] = here > around[0, 1] and here >= around[2, 1]
        else:
            side = -1 if (dx[row, column] < 0) != (dy[row, column] < 0) else 1
            weak[row, column] = here > around[0, 1 - side] and here > around[2, 1 + side]
    labels, _ = ndimage.label(weak, np.ones((3, 3)))
    return weak & np.isin(labels, np.unique(labels[weak & (size > 150)]))


def plasma(size: int, decay: float, rng: np.random.Generator) -> Image:
    """Make a height map by diamond-square in place, from 0 to 1."""
    heights, step, wibble = np.zeros((size, size)), size, 100.0

    def drawn(total: Image) -> Image:
        return total / 4 + wibble * rng.uniform(-wibble, wibble, total.shape)

    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        heights[half::step, half::step] = drawn(
            corners + np.roll(corners, -1, 0) + np.roll(corners, -1, 1) + np.roll(corners, (-1, -1), (0, 1))
        )
        centres = heights[half::step, half::step]
        heights[::step, half::step] = drawn(centres + np.roll(centres, 1, 0) + corners + np.roll(corners, -1, 1))
        heights[half::step, ::step] = drawn(centres + np.roll(centres, 1, 1) + corners + np.roll(corners, -1, 0))
        step, wibble = half, wibble / decay
    heights -= heights.min()
    return heights / heights.max()


def ice(shape: tuple[int, ...], rng: np.random.Generator) -> Image:
    """Make the ice that stands for the published photographs."""
    *colour, deviation = ICES[rng.integers(5)]
    veins = -np.abs(plasma(_power(np.empty(shape)), 1.15, rng)[: shape[0], : shape[1]] - 0.5)
    gray = (veins - veins.mean()) / veins.std(ddof=1) * deviation + rng.uniform(-0.5, 0.5) * math.sqrt(12) * 0.04
    if shape[2] == 1:
        colour = [np.dot(colour, [0.299, 0.587, 0.114])]
    return np.clip(gray[..., None] + np.array(colour), 0, 1)


def fallen(flakes: Image, radius: int, sigma: float, degrees: float) -> Image:
    """Sum shifted copies as ImageMagick's motion blur does."""
    (height, width), reach = flakes.shape, 2 * radius
    weights = np.exp(-(np.arange(reach + 1) ** 2) / (2 * sigma**2))
    padded = np.pad(flakes, ((reach, 0), (reach, reach)), mode="edge")
    out = np.zeros_like(flakes)
    for i, weight in enumerate(weights / weights.sum()):
        right = math.ceil(i * math.cos(math.radians(degrees)) - 0.5) + reach
        down = math.ceil(i * math.sin(math.radians(degrees)) - 0.5) + reach
        out += weight * padded[down : down + height, right : right + width]
    return out


def to_hsv(image: Image) -> Image:
    """Convert as scikit-image does: hue in [0, 1), 0 for gray."""
    value, spread = image.max(axis=2), np.ptp(image, axis=2)
    safe = np.where(spread == 0, 1, spread)
    red, green, blue = np.moveaxis(image, 2, 0)
    hue = np.where(
        value == blue,
        4 + (red - green) / safe,
        np.where(value == green, 2 + (blue - red) / safe, (green - blue) / safe),
    )
    saturation = np.where(spread == 0, 0, spread / np.where(value == 0, 1, value))
    return np.stack([np.where(spread == 0, 0, hue / 6 % 1), saturation, value], axis=2)


def to_rgb(hsv: Image) -> Image:
    """Convert back, by the sixth of the circle that the hue lies in."""
    hue, saturation, value = np.moveaxis(hsv, 2, 0)
    sixth = np.floor(hue * 6)
    part = hue * 6 - sixth
    low, falling = value * (1 - saturation), value * (1 - part * saturation)
    rising = value * (1 - (1 - part) * saturation)
    which = (sixth.astype(int) % 6)[None]
    return np.stack(
        [
            np.choose(which, [value, falling, low, low, rising, value])[0],
            np.choose(which, [rising, value, value, falling, low, low])[0],
            np.choose(which, [low, low, rising, value, value, falling])[0],
        ],
        axis=2,
    )


def _power(image: Image) -> int:
    return 2 ** math.ceil(math.log2(max(2, *image.shape[:2])))


def _colour(levels: tuple[int, int, int], image: Image) -> Image:
    colour = np.array(levels) / 255
    return colour if image.shape[2] == 3 else colour @ np.array([[0.2989], [0.5870], [0.1140]])


REFERENCES = {each.__name__: each for each in (snow, frost, fog, brightness, spatter)}
