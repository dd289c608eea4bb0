"""Published corrupted images: folders like CIFAR-10-C (and CIFAR-100-C) and like ImageNet-C.

Hendrycks, Dietterich. "Benchmarking neural network robustness to common corruptions and perturbations". ICLR 2019,
https://arxiv.org/abs/1903.12261; the files: https://zenodo.org/records/2535967 and https://zenodo.org/records/2235448.
"""

import functools
import tokenize
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hardy.data import arrays
from hardy.data.folder import identity
from hardy.data.pictures import DAMAGED, SUFFIXES, decode
from hardy.errors import DataError, ParameterError, did_you_mean

__all__ = ["CifarC", "ImageNetC", "cifar_c", "corrupted", "imagenet_c"]

SEVERITIES = (1, 2, 3, 4, 5)
GROUPS = ("noise", "blur", "weather", "digital", "extra")  # folders that the archives of ImageNet-C unpack into
PARTS = ("", "val/", "test/", "train/")  # of a clean folder, which the identities of its images begin with


@dataclass(frozen=True, eq=False)
class CifarC:
    """An open folder of :func:`cifar_c`.

    Attributes:
        name: The folder as the user named it.
        labels: Class of each image of one severity, shape (n,).
        arrays: By corruption: (5 n, h, w, c), uint8, the severities one after the other; stays on the disk.
    """

    name: str
    labels: npt.NDArray[np.int64]
    arrays: Mapping[str, npt.NDArray[np.uint8]] = field(repr=False)

    @property
    def corruptions(self) -> tuple[str, ...]:
        """Names of the corruptions that are there."""
        return tuple(self.arrays)

    def images(
        self, corruption: str, severity: int, rows: Int[Tensor, "n"], y: Int[Tensor, "n"]
    ) -> Float[Tensor, "n c h w"]:
        """Give the copies of the images at these places of the clean data, float32 in [0, 1], on the CPU.

        Args:
            corruption: One of :attr:`corruptions`.
            severity: 1 to 5.
            rows: Places in the clean test data.
            y: Their classes.

        Raises:
            ParameterError: no such corruption or severity.
            DataError: no such place, or an image of another class: copies of other data, or in another order.
        """
        _check(self.name, self.corruptions, corruption, severity)
        at, n = rows.cpu().numpy().astype(np.int64), len(self.labels)
        if len(at) and not (at.min() >= 0 and at.max() < n):
            raise DataError(
                f"{self.name}: has {n} images; got the places {at.min()} to {at.max()}. Evaluate the test part."
            )
        _check_classes(self.name, self.labels[at], y)
        pixels = self.arrays[corruption][(severity - 1) * n + at]
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255)


@dataclass(frozen=True, eq=False)
class ImageNetC:
    """An open folder of :func:`imagenet_c`.

    Attributes:
        name: The folder as the user named it.
        folders: By corruption: where its severities are.
        files: ``CLASS/FILE`` of every image, sorted, the same for every corruption and severity.
        labels: Their classes: places of the class folders in sorted order.
        size: Side of the images that are given, in pixels.
    """

    name: str
    folders: Mapping[str, Path]
    files: tuple[str, ...] = field(repr=False)
    labels: npt.NDArray[np.int64] = field(repr=False)
    size: int
    _checked: set[Path] = field(default_factory=set, init=False, repr=False)

    @property
    def corruptions(self) -> tuple[str, ...]:
        """Names of the corruptions that are there."""
        return tuple(self.folders)

    def images(
        self, corruption: str, severity: int, rows: Int[Tensor, "n"], y: Int[Tensor, "n"]
    ) -> Float[Tensor, "n 3 s s"]:
        """Give the copies of these images, float32 in [0, 1], on the CPU; nothing else is decoded.

        Args:
            corruption: One of :attr:`corruptions`.
            severity: 1 to 5.
            rows: Places in the sorted listing, as torchvision's ``ImageFolder`` counts them, or identities of images
                that ``load_data("folder:DIR")`` gave, which are found by class and file name.
            y: Their classes.

        Raises:
            ParameterError: no such corruption or severity.
            DataError: no such image, an image of another class, a folder that is not there or holds other files than
                the first, or a damaged image.
        """
        _check(self.name, self.corruptions, corruption, severity)
        at = self._places(rows)
        _check_classes(self.name, self.labels[at], y)
        root = self.folders[corruption] / str(severity)
        if root not in self._checked:
            self._compare(root)
            self._checked.add(root)
        with ThreadPoolExecutor() as pool:
            pixels = list(pool.map(lambda i: self._decode(root / self.files[i]), at.tolist()))
        x = np.stack(pixels) if pixels else np.empty((0, self.size, self.size, 3), np.uint8)
        return torch.from_numpy(x).permute(0, 3, 1, 2).float().div(255)

    def _places(self, rows: Tensor) -> npt.NDArray[np.int64]:
        n = len(self.files)
        found = [row if 0 <= row < n else self._known.get(row, -1) for row in rows.tolist()]
        if -1 in found:
            row = rows.tolist()[found.index(-1)]
            raise DataError(f"{self.name}: has {n} images; none is the clean image {row}. Are these copies of them?")
        return np.array(found, np.int64)

    @functools.cached_property
    def _known(self) -> dict[int, int]:
        """Places by the identities that the folder reader gives."""
        return {identity(Path(part + file).as_posix()): i for i, file in enumerate(self.files) for part in PARTS}

    def _compare(self, root: Path) -> None:
        if differing := sorted(set(_listing(root, self.name)[0]) ^ set(self.files)):
            raise DataError(
                f"{self.name}: every corruption and severity must hold the same files; {root} and "
                f"{next(iter(self.folders.values()))} differ in {len(differing)}, such as {differing[0]}. Unpack again."
            )

    def _decode(self, file: Path) -> npt.NDArray[np.uint8]:
        try:
            return decode(file, self.size)
        except DAMAGED as error:
            raise DataError(f"{self.name}: {file} cannot be read ({error}). Unpack or download it again.") from error


def cifar_c(folder: str | Path) -> CifarC:
    """Open a folder with one ``.npy`` per corruption, uint8 (5 n, h, w, c), and ``labels.npy``, (5 n,).

    The five severities stand one after the other, each with all n images in the order of the clean test data (10,000 of
    3x32x32 in CIFAR-10-C and CIFAR-100-C; any here). Files are mapped, not read: opening is quick, and only the images
    asked for come into memory. Nothing is unpickled.

    Raises:
        DataError: no such folder, no file, a damaged file, another type or shape, or labels that are not five times the
            same.
    """
    root, name = Path(folder).expanduser(), f"cifar-c:{folder}"
    if not root.is_dir():
        raise DataError(f"data {name!r}: no such folder. Write cifar-c:DIR.")
    if not (root / "labels.npy").is_file():
        raise DataError(f"{name}: must hold labels.npy and one .npy per corruption; there is no labels.npy.")
    labels = _labels(root / "labels.npy")
    files = sorted(path for path in root.glob("*.npy") if path.stem != "labels")
    if not files:
        raise DataError(f"{name}: must hold one .npy per corruption beside labels.npy; got none.")
    opened = {path.stem: _images(path, len(SEVERITIES) * len(labels)) for path in files}
    return CifarC(name, labels, opened)


def imagenet_c(folder: str | Path, size: int = 224) -> ImageNetC:
    """Open a folder with ``CORRUPTION/SEVERITY/CLASS/*.JPEG``, or with that in ``noise/``, ``blur/`` and so on.

    Classes are numbered in the order of their names, images in that of class and file name, as torchvision's
    ``ImageFolder`` does. The list of images is taken from the first corruption; the others must agree with it.

    Args:
        folder: Where the archives were unpacked.
        size: Side of the images in pixels: the short side is resized to it and the centre cut out; the published ones
            are 224x224 and stay as they are.

    Raises:
        DataError: no such folder, no corruption, a corruption twice, or no images.
        ParameterError: a size below 1.
    """
    root, name = Path(folder).expanduser(), f"imagenet-c:{folder}"
    if size < 1:
        raise ParameterError(f"imagenet_c: size must be at least 1; got {size}.")
    if not root.is_dir():
        raise DataError(f"data {name!r}: no such folder. Write imagenet-c:DIR.")
    folders: dict[str, Path] = {}
    for place in (root, *(root / group for group in GROUPS)):
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            if not any((path / str(severity)).is_dir() for severity in SEVERITIES):
                continue
            if path.name in folders:
                raise DataError(f"{name}: {path.name} must be there once; got {folders[path.name]} and {path}.")
            folders[path.name] = path
    if not folders:
        raise DataError(f"{name}: must hold CORRUPTION/SEVERITY/CLASS/*.JPEG; there is no folder like that.")
    first = next(iter(folders.values()))
    files, labels = _listing(next(first / str(s) for s in SEVERITIES if (first / str(s)).is_dir()), name)
    return ImageNetC(name, folders, files, labels, size)


KINDS: Mapping[str, Callable[[str, int], CifarC | ImageNetC]] = {
    "cifar-c": lambda folder, _: cifar_c(folder),
    "imagenet-c": imagenet_c,
}


def corrupted(spec: str, *, size: int = 224) -> CifarC | ImageNetC:
    """Open published corrupted images by name.

    Args:
        spec: ``cifar-c:DIR`` or ``imagenet-c:DIR``.
        size: Of the images of :func:`imagenet_c`, in pixels.

    Raises:
        DataError: no such kind of data, or as :func:`cifar_c` and :func:`imagenet_c`.
    """
    kind, _, folder = spec.partition(":")
    if kind not in KINDS:
        raise DataError(f"data {spec!r}: no such kind of corrupted images {kind!r}; {did_you_mean(kind, KINDS)}")
    if not folder:
        raise DataError(f"data {spec!r}: the folder must be given. Write {kind}:DIR.")
    return KINDS[kind](folder, size)


def _mapped(path: Path) -> npt.NDArray[np.generic]:
    """Map a ``.npy`` file into memory; a pickled one is refused."""
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (*arrays.DAMAGED, tokenize.TokenError) as error:
        raise DataError(
            f"{path}: not a readable .npy file ({type(error).__name__}: {error}). Unpack or download it again."
        ) from error


def _labels(path: Path) -> npt.NDArray[np.int64]:
    """Read the labels of all severities, which are five times the same; give them once."""
    y = _mapped(path)
    if not np.issubdtype(y.dtype, np.integer) or y.ndim != 1 or len(y) == 0 or len(y) % len(SEVERITIES):
        raise DataError(f"{path}: must be integers, one per image, five severities of n; got {y.dtype}, {y.shape}.")
    blocks: npt.NDArray[np.int64] = np.array(y, np.int64).reshape(len(SEVERITIES), -1)
    if not (blocks == blocks[0]).all():
        raise DataError(f"{path}: must be the labels of the n clean images, five times; the five blocks differ.")
    clean: npt.NDArray[np.int64] = blocks[0]
    return clean


def _images(path: Path, n: int) -> npt.NDArray[np.uint8]:
    x = _mapped(path)
    if x.dtype != np.uint8 or x.ndim != 4 or len(x) != n or x.shape[3] not in {1, 3} or x.size == 0:
        raise DataError(
            f"{path}: must be uint8, n h w c, with 1 or 3 channels and {n} images as labels.npy; "
            f"got {x.dtype}, {x.shape}. Unpack or download it again."
        )
    return x.view(np.uint8)


def _listing(root: Path, name: str) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """List ``CLASS/FILE`` of all images, sorted, and their classes."""
    if not root.is_dir():
        raise DataError(f"{name}: there is no folder {root}. Unpack it, or leave out this severity.")
    classes = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    files, labels = [], []
    for label, each in enumerate(classes):
        here = sorted(path.name for path in (root / each).iterdir() if path.suffix.lower() in SUFFIXES)
        files += [f"{each}/{file}" for file in here]
        labels += [label] * len(here)
    if not files:
        raise DataError(f"{name}: {root} must hold CLASS/*.JPEG; there is no image.")
    return tuple(files), np.array(labels, np.int64)


def _check(name: str, known: tuple[str, ...], corruption: str, severity: int) -> None:
    if corruption not in known:
        raise ParameterError(f"{name}: has no corruption {corruption!r}; {did_you_mean(corruption, known)}")
    if severity not in SEVERITIES:
        raise ParameterError(f"{name}: severity must be a whole number from 1 to 5; got {severity!r}.")


def _check_classes(name: str, labels: npt.NDArray[np.int64], y: Tensor) -> None:
    wrong = np.flatnonzero(labels != y.cpu().numpy())
    if len(wrong):
        i = int(wrong[0])
        raise DataError(
            f"{name}: must be copies of the evaluated images, in their order; {len(wrong)} of {len(labels)} are of "
            f"another class, first number {i}: {labels[i]} here, {int(y[i])} there. Are data, split and order the same?"
        )
