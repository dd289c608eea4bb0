"""The blur family of the common corruptions: defocus, glass, motion, zoom and Gaussian blur.

Hendrycks, Dietterich. "Benchmarking neural network robustness to common corruptions and perturbations". ICLR 2019,
https://arxiv.org/abs/1903.12261. The constants are those of the authors' generators, ``make_cifar_c.py`` (CIFAR-10-C,
32 px) and ``make_imagenet_c.py`` (ImageNet-C, 224 px; the same as in the package ``imagecorruptions`` 1.1.2), in
https://github.com/hendrycks/robustness, and so are the borders: each function states its own. All channels of a pixel
move together, so an image of one channel is treated as each channel of a colour image. The generators' cutting to
whole gray levels is not done here, neither at the end nor inside glass and motion blur.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy.fft import next_fast_len
from torch import Tensor

from hardy import seeding
from hardy.corruptions._chunks import in_chunks
from hardy.corruptions.scale import Scale, check

__all__ = ["BLURS", "DISKS", "GLASS", "MOTIONS", "ZOOMS", "defocus", "gaussian", "glass", "motion", "zoom"]

BLURS: Mapping[Scale, tuple[float, ...]] = {  # standard deviation in pixels; severity 1 to 5, as in all tables
    "cifar": (0.4, 0.6, 0.7, 0.8, 1.0),
    "imagenet": (1.0, 2.0, 3.0, 4.0, 6.0),
}
DISKS: Mapping[Scale, tuple[tuple[float, float], ...]] = {  # radius, standard deviation of its soft edge, in pixels
    "cifar": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1)),
    "imagenet": ((3.0, 0.1), (4.0, 0.5), (6.0, 0.5), (8.0, 0.5), (10.0, 0.5)),
}
GLASS: Mapping[Scale, tuple[tuple[float, int, int], ...]] = {  # standard deviation and reach in pixels, rounds
    "cifar": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    "imagenet": ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
}
MOTIONS: Mapping[Scale, tuple[tuple[int, float], ...]] = {  # radius, standard deviation, in pixels
    "cifar": ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5)),
    "imagenet": ((10, 3.0), (15, 5.0), (15, 8.0), (15, 12.0), (20, 15.0)),
}
ZOOMS: Mapping[Scale, tuple[tuple[int, float], ...]] = {  # how many factors from 1 on, their step
    "cifar": ((7, 0.01), (12, 0.01), (16, 0.01), (21, 0.01), (26, 0.01)),
    "imagenet": ((12, 0.01), (16, 0.01), (11, 0.02), (13, 0.02), (11, 0.03)),
}


def gaussian(
    x: Float[Tensor, "n c h w"],
    *,
    severity: int,
    scale: Scale,
    key: Int[Tensor, "n"],  # noqa: ARG001
    counter: int = 0,  # noqa: ARG001
) -> Float[Tensor, "n c h w"]:
    """Blur with a Gaussian cut at four standard deviations, the published ``gaussian_blur``; borders repeat.

    Args:
        x: Pixels in [0, 1].
        severity: 1 to 5; picks the standard deviation in :data:`BLURS`.
        scale: Whose constants.
        key: One int64 per row; not used, nothing is random here.
        counter: Not used.

    Returns:
        Pixels in [0, 1], like ``x``.

    Raises:
        ParameterError: another severity or scale.
    """
    check("gaussian_blur", severity, scale)
    return _gauss(x, BLURS[scale][severity - 1]).clamp_(0, 1)


def defocus(
    x: Float[Tensor, "n c h w"],
    *,
    severity: int,
    scale: Scale,
    key: Int[Tensor, "n"],  # noqa: ARG001
    counter: int = 0,  # noqa: ARG001
) -> Float[Tensor, "n c h w"]:
    """Average over a disk with a soft edge, the published ``defocus_blur``; borders reflect about the last pixel.

    Args and errors as :func:`gaussian`, with :data:`DISKS`; nothing is random here either.

    Returns:
        Pixels in [0, 1], like ``x``.
    """
    check("defocus_blur", severity, scale)
    kernel = _disk(*DISKS[scale][severity - 1]).to(x)
    reach = len(kernel) // 2
    rows, columns = (_reflected(size, reach).to(x.device) for size in x.shape[2:])

    def blurred(planes: Tensor) -> Tensor:
        padded = planes.index_select(2, rows).index_select(3, columns)
        return _correlate(padded, kernel).clamp_(0, 1)

    return in_chunks(blurred, x.flatten(0, 1).unsqueeze(1), multiple=16).reshape(x.shape)


def glass(
    x: Float[Tensor, "n c h w"], *, severity: int, scale: Scale, key: Int[Tensor, "n"], counter: int = 0
) -> Float[Tensor, "n c h w"]:
    """Blur, displace pixels locally at random, blur again, the published ``glass_blur``; borders repeat.

    The generators visit the pixels from the last to the first (without a margin of ``reach + 1`` at the start and
    ``reach - 1`` at the end of rows and columns) and mean to swap each with one drawn from [-reach, reach) in both
    directions. Their swap assigns array views to each other and therefore copies: the visited pixel takes the other's
    present value, the other keeps it. What was published holds those copies, and so does this function (of one channel
    too, where ``imagecorruptions`` does swap).

    Args and errors as :func:`gaussian`, with :data:`GLASS`; the displacements depend on the key.

    Returns:
        Pixels in [0, 1], like ``x``.
    """
    check("glass_blur", severity, scale)
    sigma, reach, rounds = GLASS[scale][severity - 1]
    h, w = x.shape[2:]
    if min(h, w) <= 2 * reach:  # no pixel is visited
        return _gauss(_gauss(x, sigma), sigma).clamp_(0, 1)

    def displaced(part: Tensor, keys: Tensor) -> Tensor:
        source = _sources(seeding.fold(keys, 0), counter, (h, w), reach)
        for number in range(1, rounds):
            source = source.gather(1, _sources(seeding.fold(keys, number), counter, (h, w), reach))
        return part.flatten(2).gather(2, source[:, None].expand(-1, part.shape[1], -1)).reshape(part.shape)

    return _gauss(in_chunks(displaced, _gauss(x, sigma), key), sigma).clamp_(0, 1)


def motion(
    x: Float[Tensor, "n c h w"], *, severity: int, scale: Scale, key: Int[Tensor, "n"], counter: int = 0
) -> Float[Tensor, "n c h w"]:
    """Smear along a line at a random angle in [-45, 45) degrees, the published ``motion_blur``; borders repeat.

    As ImageMagick's ``MotionBlurImage``, which both generators call: pixel p becomes the mean of the pixels nearest to
    p + i (cos a, sin a), i = 0 .. 2 radius, with weights of half a Gaussian. (``imagecorruptions`` does the same, but
    loses the weight of taps beyond the image.) By fast Fourier transform, so equal to a plain sum up to rounding.

    Args and errors as :func:`gaussian`, with :data:`MOTIONS`; the angle depends on the key.

    Returns:
        Pixels in [0, 1], like ``x``.
    """
    check("motion_blur", severity, scale)
    radius, sigma = MOTIONS[scale][severity - 1]
    h, w = x.shape[2:]
    aside = math.ceil(2 * radius * math.sin(math.pi / 4))
    height, width = (_fast(side) for side in (h + 2 * aside, w + 2 * radius))

    def smeared(part: Tensor, keys: Tensor) -> Tensor:
        angle = (seeding.uniform(keys, counter, (1,)) - 0.5) * (math.pi / 2)
        padded = F.pad(part.float(), (0, width - w, aside, height - h - aside), mode="replicate")
        kernel = torch.fft.rfft2(_line(angle, radius, sigma, (height, width))).conj()[:, None]
        blurred: Tensor = torch.fft.irfft2(torch.fft.rfft2(padded).mul_(kernel), s=(height, width))
        return blurred[:, :, aside : aside + h, :w].clamp_(0, 1)

    return in_chunks(smeared, x, key)


def zoom(
    x: Float[Tensor, "n c h w"],
    *,
    severity: int,
    scale: Scale,
    key: Int[Tensor, "n"],  # noqa: ARG001
    counter: int = 0,  # noqa: ARG001
) -> Float[Tensor, "n c h w"]:
    """Average the image with enlarged copies of itself, the published ``zoom_blur``.

    Each factor cuts the middle out and enlarges it bilinearly, corner pixels onto corner pixels. The image itself
    counts twice, as in the generators, whose factors begin at 1. (``imagecorruptions`` keeps the upper left corner of
    what comes out too large, the generators and this function its middle.)

    Args and errors as :func:`gaussian`, with :data:`ZOOMS`; nothing is random here.

    Returns:
        Pixels in [0, 1], like ``x``.
    """
    check("zoom_blur", severity, scale)
    factors = _factors(*ZOOMS[scale][severity - 1])

    def zoomed(planes: Tensor) -> Tensor:
        image = planes.transpose(0, 1).contiguous(memory_format=torch.channels_last)  # a pixel's planes side by side
        total = image.clone()
        for factor in factors:
            total += _enlarged(image, factor)
        return total.div_(len(factors) + 1).clamp_(0, 1).transpose(0, 1)

    return in_chunks(zoomed, x.flatten(0, 1).unsqueeze(1), multiple=32).reshape(x.shape)


def _gauss(x: Float[Tensor, "n c h w"], sigma: float) -> Float[Tensor, "n c h w"]:
    """Blur along both axes, cut at round(4 sigma) pixels as SciPy and scikit-image do, borders repeated."""
    reach = int(4 * sigma + 0.5)
    if reach == 0:
        return x.clone()
    kernel = _bell(reach, sigma).to(x)

    def blurred(planes: Tensor) -> Tensor:
        padded = F.pad(planes, (reach, reach, reach, reach), mode="replicate")
        return _correlate(_correlate(padded, kernel[None, :]), kernel[:, None])

    return in_chunks(blurred, x.flatten(0, 1).unsqueeze(1), multiple=16).reshape(x.shape)


def _bell(reach: int, sigma: float) -> Float[Tensor, "k"]:
    """Sample a Gaussian at -reach .. reach, with sum 1; float64, for the caller to round."""
    at = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weights = torch.exp(-(at**2) / (2 * sigma**2))
    return weights / weights.sum()


def _correlate(planes: Float[Tensor, "p 1 h w"], kernel: Float[Tensor, "a b"]) -> Float[Tensor, "p 1 k l"]:
    """Slide a kernel over planes without padding; planes as channels of one image, which is the fast form."""
    kernels = kernel.expand(len(planes), 1, -1, -1)
    return F.conv2d(planes.transpose(0, 1), kernels, groups=len(planes)).transpose(0, 1)


def _disk(radius: float, sigma: float) -> Float[Tensor, "k k"]:
    """Build the generators' disk: pixels whose centre is inside, smoothed by a Gaussian of 3 (radius over 8: 5) taps.

    It lives on a grid of 17 x 17 pixels (radius over 8: as large as the disk), where the smoothing reflects at the
    border. Outer rows and columns without a weight of 1e-12 are cut.
    """
    half = max(8, int(radius))
    taps = 1 if radius <= 8 else 2
    at = torch.arange(-half, half + 1, dtype=torch.float64)
    disk = (at[:, None] ** 2 + at**2 <= radius**2).double()
    smooth = torch.zeros(len(at), len(at), dtype=torch.float64)
    for shift, weight in zip(range(2 * taps + 1), _bell(taps, sigma).tolist(), strict=True):
        smooth[torch.arange(len(at)), _reflected(len(at), taps)[shift : shift + len(at)]] += weight
    disk = smooth @ (disk / disk.sum()) @ smooth.T
    cut = int((disk.amax(dim=0) < 1e-12).sum()) // 2
    return disk[cut : len(at) - cut, cut : len(at) - cut]


def _reflected(size: int, reach: int) -> Int[Tensor, "k"]:
    """Index -reach .. size - 1 + reach of a row that is mirrored at its end pixels as often as needed."""
    period = max(1, 2 * (size - 1))
    at = torch.arange(-reach, size + reach) % period
    return torch.minimum(at, period - at) if size > 1 else at


def _sources(key: Int[Tensor, "n"], counter: int, size: tuple[int, int], reach: int) -> Int[Tensor, "n hw"]:
    """Say from which place each pixel's value comes in one round of displacement, all pixels at once.

    A visited pixel takes the value that its neighbour has by then: the old one, if the neighbour is visited later or
    never; else what the neighbour took itself. Following that from neighbour to neighbour ends at an old value. With a
    reach of 1 every neighbour is visited later.
    """
    h, w = size
    side = torch.arange(-reach, reach, device=key.device)
    offsets = (side[:, None] * w + side).flatten()
    cell = (seeding.uniform(key, counter, (h - 2 * reach, w - 2 * reach)) * len(offsets)).long()
    offset = F.pad(offsets.take(cell), (reach + 1, reach - 1, reach + 1, reach - 1)).flatten(1)
    source = torch.arange(h * w, device=key.device) + offset
    if reach == 1:
        return source
    taken = (offset > 0).flatten()  # from a neighbour that was visited before, or never: that one has itself as source
    place = (source + h * w * torch.arange(len(key), device=key.device)[:, None]).flatten()
    end, at = place.clone(), taken.nonzero().squeeze(1)
    neighbour = place[at]
    while len(at):
        further, on = place[neighbour], taken[neighbour].nonzero().squeeze(1)
        end[at] = further
        at, neighbour = at[on], further[on]
    return end.reshape(len(key), -1) % (h * w)


def _fast(size: int) -> int:
    """Find an even number of at least ``size`` whose Fourier transform is fast."""
    half: int = next_fast_len((size + 1) // 2, real=True)  # type: ignore[no-untyped-call]
    return 2 * half


def _line(angle: Float[Tensor, "n 1"], radius: int, sigma: float, size: tuple[int, int]) -> Float[Tensor, "n a b"]:
    """Draw one line of weights per angle from the corner of a plane; rows above the corner wrap to the bottom."""
    i = torch.arange(2 * radius + 1, device=angle.device, dtype=angle.dtype)
    weights = torch.exp(-(i**2) / (2 * sigma**2))
    right, down = (torch.ceil(i * part - 0.5).long() for part in (torch.cos(angle), torch.sin(angle)))
    flat = torch.zeros(len(angle), size[0] * size[1], device=angle.device)
    flat.scatter_add_(1, down % size[0] * size[1] + right, (weights / weights.sum()).expand(len(angle), -1))
    return flat.reshape(-1, *size)


def _factors(count: int, step: float) -> tuple[float, ...]:
    """List the zoom factors, rounded as ``numpy.arange`` does: a last bit decides how many pixels are cut out."""
    return tuple(1 + i * ((1 + step) - 1) for i in range(count))


def _enlarged(x: Float[Tensor, "n c h w"], factor: float) -> Float[Tensor, "n c h w"]:
    """Cut out the middle, enlarge it by the factor, and cut out the middle again, to the size of the image."""
    inner = [math.ceil(size / factor) for size in x.shape[2:]]
    outer = [round(size * factor) for size in inner]
    (top, left), (down, right) = (
        [(a - b) // 2 for a, b in zip(large, small, strict=True)]
        for large, small in ((x.shape[2:], inner), (outer, x.shape[2:]))
    )
    middle = x[:, :, top : top + inner[0], left : left + inner[1]]
    large = F.interpolate(middle, size=outer, mode="bilinear", align_corners=True)
    return large[:, :, down : down + x.shape[2], right : right + x.shape[3]]
