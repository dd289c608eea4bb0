"""The images of a diagnosis: what it got wrong, and where it looked."""

import base64
import io
from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from hardy.diagnosis.record import Part
from hardy.reporting.diagnosis_parts import Picture, Pictures
from hardy.reporting.numbers import percent

__all__ = ["altered", "answers", "looks", "overlaid", "picture_uri", "thumbnails"]

LARGEST = 160  # pixels; larger images are thinned out, since the page shows thumbnails
SMALL = 64  # images up to here are drawn with hard pixels
WARM = (255, 120, 0)


def answers(part: Part, name: str, class_names: Sequence[str], *, title: str, note: str = "") -> Pictures | None:
    """Show the images that a part kept under a name, with true class, answer and confidence; None where it kept none.

    Args:
        part: It has tensors ``NAME pictures`` (uint8, n c h w), ``NAME labels``, ``... predictions``,
            ``... confidence`` and ``... rows``.
        name: Which of them.
        class_names: Names of all classes.
        title: Heading.
        note: What they are.
    """
    pictures = part.tensors.get(f"{name} pictures")
    if pictures is None or pictures.ndim != 4 or not len(pictures):
        return None
    told = [part.tensors[f"{name} {what}"].tolist() for what in ("labels", "predictions", "confidence", "rows")]
    made = []
    for uri, label, answer, confidence, row in zip(thumbnails(pictures), *told, strict=True):
        true, said = _name(class_names, label), _name(class_names, answer)
        caption = f"{_called(true, said)} ({percent(confidence)} % sure)"
        alt = f"image {row}: true class {true}, answer {said}, confidence {percent(confidence)} %"
        made.append(Picture(images=((uri, f"image {row}", ""),), caption=caption, alt=alt))
    return Pictures(title=title, pictures=tuple(made), pixelated=_small(pictures), note=note)


def looks(part: Part, name: str, class_names: Sequence[str], *, title: str) -> Pictures | None:
    """Show images beside the maps of where the net looks; None where the part kept none.

    Args:
        part: It has tensors ``NAME pictures`` (uint8, n c h w), ``NAME maps`` (n h w), and ``NAME labels``,
            ``... predictions`` and ``... confidence``.
        name: Which of them.
        class_names: Names of all classes.
        title: Heading.
    """
    pictures, maps = part.tensors.get(f"{name} pictures"), part.tensors.get(f"{name} maps")
    if pictures is None or maps is None or not len(pictures):
        return None
    over = thumbnails(torch.stack([overlaid(*pair) for pair in zip(pictures, maps, strict=True)]))
    told = [part.tensors[f"{name} {what}"].tolist() for what in ("labels", "predictions", "confidence")]
    made = []
    for plain, look, label, answer, confidence in zip(thumbnails(pictures), over, *told, strict=True):
        true, said = _name(class_names, label), _name(class_names, answer)
        caption = f"{_called(true, said)} ({percent(confidence)} % sure)"
        images = ((plain, "the image", "image"), (look, "where the net looks", "looks at"))
        made.append(Picture(images=images, caption=caption, alt=f"true class {true}, answer {said}"))
    note = "The warmer the colour, the more the place speaks for the answer."
    return Pictures(title=title, pictures=tuple(made), pixelated=_small(pictures), note=note)


def altered(part: Part, *, title: str) -> Pictures | None:
    """Show the same images as they are and as they were changed; None where the part kept none.

    Args:
        part: It has tensors ``pictures`` and ``pictures CHANGE`` (uint8, n c h w).
        title: Heading.
    """
    plain = part.tensors.get("pictures")
    changes = sorted(name for name in part.tensors if name.startswith("pictures "))
    if plain is None or not len(plain):
        return None
    columns = [thumbnails(part.tensors[name]) for name in ("pictures", *changes)]
    texts = ["as it is", *(name.removeprefix("pictures ") for name in changes)]
    made = [
        Picture(
            images=tuple((uri, text, text) for uri, text in zip(row, texts, strict=True)), caption="", alt="one image"
        )
        for row in zip(*columns, strict=True)
    ]
    return Pictures(title=title, pictures=tuple(made), pixelated=_small(plain))


def thumbnails(pictures: UInt8[Tensor, "n c h w"]) -> list[str]:
    """Write images as data URIs, large ones thinned out; other channels than gray or RGB become their mean."""
    step = -(-max(pictures.shape[2:]) // LARGEST)
    kept = pictures[:, :, ::step, ::step]
    if kept.shape[1] not in (1, 3):
        kept = kept.float().mean(dim=1, keepdim=True).round().to(torch.uint8)
    return [picture_uri(each) for each in kept]


def overlaid(picture: UInt8[Tensor, "c h w"], map_: Float[Tensor, "a b"]) -> UInt8[Tensor, "3 h w"]:
    """Lay a map over a gray copy of an image: full colour at the largest value of the map, none at 0."""
    size = picture.shape[1:]
    strength = map_.nan_to_num(0).clamp_min(0).float()
    strength = torch.nn.functional.interpolate(strength[None, None], size=size, mode="bilinear")[0, 0]
    strength = strength / strength.max().clamp_min(1e-12)
    gray = picture.float().mean(dim=0).expand(3, *size)
    warm = torch.tensor(WARM, dtype=torch.float32)[:, None, None]
    return (gray * (1 - 0.75 * strength) + warm * 0.75 * strength).round().clamp(0, 255).to(torch.uint8)


def picture_uri(image: UInt8[Tensor, "c h w"]) -> str:
    """Write a gray or RGB image as a PNG data URI."""
    from PIL import Image

    pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(pixels.contiguous().numpy()).save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _called(true: str, said: str) -> str:
    return f"{true}, called so" if true == said else f"{true}, called {said}"


def _small(pictures: Tensor) -> bool:
    return max(pictures.shape[2:]) <= SMALL


def _name(names: Sequence[str], label: int) -> str:
    return names[label] if 0 <= label < len(names) else "no answer"
