"""Images whose shape is of one class and whose texture is of another: published ones, and generated ones.

Geirhos, Rubisch, Michaelis, Bethge, Wichmann, Brendel. "ImageNet-trained CNNs are biased towards texture; increasing
shape bias improves accuracy and robustness". ICLR 2019, https://arxiv.org/abs/1811.12231. Their 1,280 images are at
https://github.com/rgeirhos/texture-vs-shape (stimuli/style-transfer-preprocessed-512; 80 of them have no conflict).
"""

import re
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hardy.data.arrays import DAMAGED, to_nchw
from hardy.data.cue_classes import outputs_of
from hardy.data.load import resize
from hardy.data.pictures import DAMAGED as BAD_IMAGE
from hardy.data.pictures import SUFFIXES, decode
from hardy.data.shapes import conflicting, read_recipe, shapes_size
from hardy.errors import DataError

__all__ = ["CueConflict", "cue_conflict", "shapes_conflict"]

FILE = re.compile(r"(?:.*_)?([a-z]+)\d+-([a-z]+)\d+")  # airplane1-bicycle2: shape, texture
SIDED = re.compile(r"x\d*")  # x, x32, x64: images of the .npz


@dataclass(frozen=True, kw_only=True)
class CueConflict:
    """Images whose shape is of one class and whose texture is of another.

    Attributes:
        x: Images in the size of the model, float (n, c, h, w), pixels in [0, 1].
        shape: Class of the shape of every image, int (n,).
        texture: Class of its texture, int (n,); another one.
        groups: For every class, the outputs of the model that stand for it. An answer is the class whose outputs have
            the largest mean probability, as the authors recommend; other outputs do not count. Empty: class k is output
            k, and all outputs count.
        class_names: Names of the classes; empty for those of the model.
        name: What the images are called in the record.
        mapping: In words, which outputs stand for which classes, if they are not the same.

    Raises:
        DataError: other tensors, no image, shape and texture of an image agree, or a class without outputs.
    """

    x: Tensor  # shapes are checked below, for everybody
    shape: Tensor
    texture: Tensor
    groups: tuple[tuple[int, ...], ...] = ()
    class_names: tuple[str, ...] = ()
    name: str = "cue-conflict"
    mapping: str = ""

    def __post_init__(self) -> None:
        classes = (len(self.x),)
        images = self.x.ndim == 4 and self.x.is_floating_point() and len(self.x) > 0
        if not images or self.shape.shape != classes or self.texture.shape != classes:
            got = [f"{t.dtype} {tuple(t.shape)}" for t in (self.x, self.shape, self.texture)]
            raise DataError(
                f"CueConflict: x must be float n c h w, shape and texture integers (n,), n >= 1; got {got}."
            )
        if bool((self.shape == self.texture).any()):
            raise DataError(
                "CueConflict: shape and texture of an image must differ. Leave out images where they agree."
            )
        both = torch.cat([self.shape, self.texture])
        flat = [output for group in self.groups for output in group]
        if self.groups and not (int(both.min()) >= 0 and int(both.max()) < len(self.groups) and all(self.groups)):
            raise DataError(
                f"CueConflict: every class must have outputs in groups; got classes {int(both.min())} .. "
                f"{int(both.max())} and groups of {[len(group) for group in self.groups]} outputs."
            )
        if len(set(flat)) < len(flat) or min(flat, default=0) < 0:
            raise DataError(f"CueConflict: an output must stand for one class, and be at least 0; got {self.groups}.")


def cue_conflict(
    path: str | Path,
    *,
    class_names: Sequence[str],
    size: int | None = None,
    groups: Mapping[str, Sequence[int]] | None = None,
) -> CueConflict:
    """Read cue-conflict images for a model.

    Which outputs stand for which of the 16 classes: ``groups`` if given; for a model of 1,000 classes, which must be
    those of ILSVRC 2012 in their usual order, the authors' lists; else the output of the same name ("boat" is also
    "ship", "car" also "automobile", "airplane" also "aeroplane"). CIFAR-10 and STL-10 have seven: airplane, bird, boat,
    car, cat, dog, truck. Images are kept whose shape and texture both have outputs and differ; answers are restricted
    to these outputs, as in the paper. Small images keep little of their texture, so that a shape bias at 32 pixels is
    to be compared with that of other models on the same images, not with published ones at 224.

    Args:
        path: A folder in the published format, ``CLASS/CLASS1-OTHER2.png`` (shape, then texture), or a ``.npz`` file
            with ``shape texture class_names`` and images ``x``, or ``x32``, ``x64``, ...: uint8, n h w 3.
        class_names: Of the model, in the order of its outputs.
        size: Height and width of the model's images in pixels; None: as they are. From a file the next larger ones are
            taken, or else the largest.
        groups: By class of the images, the outputs that stand for it; classes that are not named are left out.

    Raises:
        DataError: not there, damaged, or not in the format; or fewer than two classes have outputs.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        files, shape, texture = _listed(path)
    elif path.is_file():
        shape, texture = _labels(path)
    else:
        raise DataError(f"cue_conflict: {path} must be a folder or a .npz file; there is none.")
    outputs, how = outputs_of(sorted({*shape, *texture}), class_names, groups)
    pairs = list(zip(shape, texture, strict=True))
    kept = [i for i, pair in enumerate(pairs) if pair[0] != pair[1] and {*pair} <= {*outputs}]
    if not kept:
        raise DataError(f"cue_conflict: {path} has no image whose shape and texture are two of {', '.join(outputs)}.")
    x = _decoded([files[i] for i in kept], size) if path.is_dir() else _images(path, kept, len(pairs), size)
    names = tuple(outputs)
    return CueConflict(
        x=x.float() / 255,
        shape=torch.tensor([names.index(shape[i]) for i in kept]),
        texture=torch.tensor([names.index(texture[i]) for i in kept]),
        groups=tuple(outputs.values()),
        class_names=names,
        name=f"cue-conflict ({len(kept)} of {len(pairs)} images)",
        mapping=how,
    )


def shapes_conflict(spec: str = "shapes", *, n: int = 1000, size: int | None = None) -> CueConflict:
    """Draw cue-conflict images of the generated data set, for a model that was trained on it.

    The shape is of one class, and the texture is the one that goes with another class in training.

    Args:
        spec: As ``load_data`` takes it, such as "shapes:classes=4"; the number of classes and the seed matter.
        n: Number of images; the shapes are equally frequent.
        size: Height and width in pixels; default 32.

    Raises:
        DataError: another spec, no image, or a size below 8.
        ParameterError: an option out of range.
    """
    recipe = read_recipe(spec)
    if n < 1:
        raise DataError(f"shapes_conflict: n must be at least 1; got {n}.")
    x, shape, texture = conflicting(recipe, n, shapes_size(size))
    how = "the texture of a class is the one that it has in training"
    return CueConflict(
        x=x.float() / 255, shape=shape, texture=texture, class_names=recipe.class_names, name=spec, mapping=how
    )


def _listed(path: Path) -> tuple[list[Path], list[str], list[str]]:
    """List the images of a folder in the published format, with the classes that their names say."""
    files = sorted(p for p in path.glob("*/*") if p.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError(f"cue_conflict: {path} must hold one folder per shape class, with images; there are none.")
    shape, texture = [], []
    for file in files:
        found = FILE.fullmatch(file.stem)
        if found is None or found[1] != file.parent.name:
            raise DataError(
                f"cue_conflict: a file must be named after its shape, its folder, and its texture, as in "
                f"airplane/airplane1-bicycle2.png; got {file.parent.name}/{file.name}."
            )
        shape.append(found[1])
        texture.append(found[2])
    return files, shape, texture


def _decoded(files: Sequence[Path], size: int | None) -> Tensor:
    def one(file: Path) -> Tensor:
        try:
            return torch.from_numpy(decode(file, size).transpose(2, 0, 1).copy())
        except BAD_IMAGE as error:
            raise DataError(f"cue_conflict: every image must be readable; {file} is not ({error}).") from error

    with ThreadPoolExecutor() as pool:
        images = list(pool.map(one, files))
    if len({image.shape for image in images}) > 1:
        raise DataError(f"cue_conflict: the images below {files[0].parent.parent} differ in size. Give size.")
    return torch.stack(images)


def _labels(path: Path) -> tuple[list[str], list[str]]:
    """Read the classes of the images of a ``.npz`` file, by name."""
    with _opened(path) as file:
        names = [str(name) for name in file["class_names"].tolist()]
        labels = file["shape"], file["texture"]
    for y in labels:
        if y.ndim != 1 or y.dtype.kind not in "iu" or len(y) != len(labels[0]) or not len(y):
            raise DataError(f"cue_conflict: shape and texture of {path} must be equally many integers; got {y.shape}.")
        if int(y.min()) < 0 or int(y.max()) >= len(names):
            raise DataError(f"cue_conflict: labels of {path} must be in 0 .. {len(names) - 1}; got up to {y.max()}.")
    shape, texture = ([names[i] for i in y.tolist()] for y in labels)
    return shape, texture


def _images(path: Path, kept: Sequence[int], total: int, size: int | None) -> Tensor:
    """Read the images of a ``.npz`` file: the smallest that are not below ``size``, or else the largest."""
    with _opened(path) as file:
        found = sorted((int(name[1:] or 0), name) for name in file.files if SIDED.fullmatch(name))
        if not found:
            raise DataError(f"cue_conflict: {path} must hold images x, x32 or the like; got {file.files}.")
        chosen = next((name for side, name in found if size is not None and side >= size), found[-1][1])
        x = to_nchw(file[chosen], f"cue_conflict: {path} {chosen}")
    if len(x) != total or x.shape[1] != 3:
        raise DataError(f"cue_conflict: {chosen} of {path} must be {total} RGB images; got {tuple(x.shape)} (n c h w).")
    x = x[torch.tensor(kept)]
    return x if size is None or x.shape[2:] == (size, size) else resize(x, size)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a ``.npz`` file; what is damaged in it becomes a DataError."""
    try:
        with path.open("rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise DataError(f"cue_conflict: {path} must be a .npz file; got a single array.")
            yield file
    except (*DAMAGED, tokenize.TokenError) as error:  # numpy tokenizes a header that it cannot parse
        if isinstance(error, DataError):
            raise
        message = f"cue_conflict: {path} is not a readable .npz file ({type(error).__name__}: {error})."
        raise DataError(message) from error
