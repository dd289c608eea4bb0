"""Generated images of simple shapes filled with textures, which agree in training and need not at test.

A data set for questions about shape and texture that needs no download: class k has a shape and a texture of its own.
In the training part a share of the images (``correlation``) has the texture of its class, that of the others is drawn
independently; in the test part every texture is independent of the shape. A net that reads textures alone is right in
training and at chance at test. The design is ours; the question is that of Geirhos et al., "ImageNet-trained CNNs are
biased towards texture", ICLR 2019, https://arxiv.org/abs/1811.12231.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

from hardy import seeding
from hardy.data.drawing import SHAPES, TEXTURES, draw
from hardy.data.rows import Reader, Rows, Split, check_memory
from hardy.errors import DataError, ParameterError, did_you_mean

__all__ = ["ShapesRecipe", "conflicting", "read_recipe", "shapes", "shapes_size"]

KIND = "shapes"
SIZE, LEAST = 32, 8  # pixels per side: default, and the smallest on which a texture can be told


@dataclass(frozen=True, kw_only=True)
class ShapesRecipe:
    """What ``shapes:classes=4,correlation=0.9`` says.

    Attributes:
        classes: The first so many shapes and textures, 2 to 8.
        n: Images of the training part.
        n_test: Images of the test part.
        correlation: Share of the training images whose texture is tied to their class; that of the others is drawn from
            all. In [0, 1]; 0: texture says nothing of the class.
        seed: Another seed gives other images.

    Raises:
        ParameterError: a number out of range.
    """

    classes: int = len(SHAPES)
    n: int = 5000
    n_test: int = 1000
    correlation: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        most = min(len(SHAPES), len(TEXTURES))
        if not 2 <= self.classes <= most:
            raise ParameterError(f"shapes: classes must be in 2 .. {most}; got {self.classes}.")
        if min(self.n, self.n_test) < 1:
            raise ParameterError(f"shapes: n and n_test must be at least 1; got {self.n} and {self.n_test}.")
        if not 0 <= self.correlation <= 1:
            raise ParameterError(f"shapes: correlation must be in [0, 1]; got {self.correlation}.")

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the shapes, in label order."""
        return tuple(SHAPES)[: self.classes]


KINDS = {"classes": int, "n": int, "n_test": int, "correlation": float, "seed": int}


def read_recipe(spec: str) -> ShapesRecipe:
    """Read ``shapes`` or ``shapes:classes=4,correlation=0.9``; what is not named has its default.

    Raises:
        DataError: not in this form.
        ParameterError: a number out of range.
    """
    kind, _, options = spec.partition(":")
    if kind != KIND:
        raise DataError(f"data {spec!r}: must be shapes, or shapes:classes=4,correlation=0.9.")
    given: dict[str, float] = {}
    for part in options.split(",") if options else []:
        key, _, text = part.partition("=")
        if key not in KINDS or key in given:
            raise DataError(f"data {spec!r}: {key!r} is no option, or there twice; {did_you_mean(key, KINDS)}")
        try:
            given[key] = KINDS[key](text)
        except ValueError as error:
            raise DataError(f"data {spec!r}: {key} must be a number, as in {key}=1; got {text!r}.") from error
    return ShapesRecipe(**given)  # type: ignore[arg-type]  # of the right kinds


def shapes_size(size: int | None) -> int:
    """Give the side of the images in pixels.

    Raises:
        DataError: below 8.
    """
    side = SIZE if size is None else size
    if side < LEAST:
        raise DataError(f"data 'shapes': size must be at least {LEAST} for textures to be seen; got {side}.")
    return side


def shapes(path: Path | None, size: int | None, download: bool = False) -> dict[Split, Rows]:
    """Generate ``shapes`` or ``shapes:classes=4,n=2000,n_test=500,correlation=0.9,seed=1`` (:class:`ShapesRecipe`).

    RGB, 32 pixels per side, or ``size``. Images are drawn when they are read, each from the hash of its row, so that a
    larger ``n`` begins with the same images. Class names are those of the shapes; class sizes differ by at most 1.

    Raises:
        DataError: options that are not of this form, or a size below 8.
        ParameterError: an option out of range.
    """
    del download
    name = KIND if path is None else f"{KIND}:{path}"
    recipe, side = read_recipe(name), shapes_size(size)

    def part(split: Split, n: int, correlation: float) -> Rows:
        rows = torch.arange(n)
        key = seeding.keys(seeding.root(recipe.seed, f"shapes, {split}"), rows)
        y = rows % recipe.classes
        tie, other = seeding.uniform(key, 1, (2,)).unbind(dim=1)
        texture = torch.where(tie < correlation, y, (other * recipe.classes).long())
        return Rows(y, rows, recipe.class_names, name, ShapesReader(y, texture, key, side, name))

    return {"train": part("train", recipe.n, recipe.correlation), "test": part("test", recipe.n_test, 0.0)}


def conflicting(recipe: ShapesRecipe, n: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw images whose texture is that of another class, each other class equally likely.

    Returns:
        Images uint8 (n, 3, size, size), the classes of their shapes (n,) and those of their textures (n,).
    """
    rows = torch.arange(n)
    key = seeding.keys(seeding.root(recipe.seed, "shapes, conflict"), rows)
    shape = rows % recipe.classes
    step = 1 + (seeding.uniform(key, 1, (1,))[:, 0] * (recipe.classes - 1)).long()
    texture = (shape + step) % recipe.classes
    return ShapesReader(shape, texture, key, size, KIND)(rows), shape, texture


@dataclass(frozen=True, eq=False)
class ShapesReader(Reader):
    """Draws images: ``y``, ``texture`` and ``key`` of every row, (n,) int64 each."""

    y: Tensor
    texture: Tensor
    key: Tensor
    size: int
    name: str

    def __call__(self, rows: Int64[Tensor, "m"]) -> Tensor:
        check_memory((len(rows), 3, self.size, self.size), self.name)
        return draw(self.y[rows], self.texture[rows], self.key[rows], size=self.size)
