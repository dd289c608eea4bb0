"""JPEG against Pillow, pixel by pixel: nearly equal, and its tables are equal."""

import io
import os
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hardy.corruptions import jpeg

parity = runpy.run_path(str(Path(__file__).with_name("parity.py")))
keys, pictures = parity["keys"], parity["pictures"]
slow = parity["load"]("digital")


def by_pillow(levels: Tensor, quality: int) -> Tensor:
    out = []
    for image in levels.permute(0, 2, 3, 1).to(torch.uint8).numpy():
        file = io.BytesIO()
        Image.fromarray(image if image.shape[2] == 3 else image[..., 0]).save(file, "JPEG", quality=quality)
        out.append(np.asarray(Image.open(file), dtype=np.float32).reshape(image.shape))
    return torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("quality", [95, 80, 58, 40, 15, 7])
@pytest.mark.parametrize("channels", [1, 3])
def test_nearly_equals_pillow(channels: int, quality: int) -> None:
    """At every size, odd ones and such that fill no block included; libjpeg's cosine transform is not exact."""
    code, means, beyond, lost = (jpeg._gray if channels == 1 else jpeg._colour), [], [], []
    for shape in ((32, 32), (8, 8), (9, 7), (20, 12), (24, 40), (37, 50)):
        levels = (pictures(20, channels, *shape) * 255).round()
        want = by_pillow(levels, quality)
        far = (code(levels, quality) - want).abs()
        means.append(float(far.mean()))
        beyond.append(float((far > 1).float().mean()))
        lost.append(float((want - levels).abs().mean()))
    assert max(means) < 1 and float(np.mean(means)) < 0.35  # gray levels; JPEG itself makes 1.4 to 40
    assert max(beyond) < 0.12 and all(mean < 0.12 * loss for mean, loss in zip(means, lost, strict=True))


@pytest.mark.data
def test_nearly_equals_pillow_on_photographs() -> None:
    with np.load(Path(os.environ["HARDY_DATA"]) / "cifar10.npz") as data:
        images = torch.from_numpy(data["x_test"][:200]).float()
    levels = images if images.shape[1] == 3 else images.permute(0, 3, 1, 2)
    for quality in (80, 65, 58, 50, 40):
        far = (jpeg._colour(levels, quality) - by_pillow(levels, quality)).abs()
        assert far.mean() < 0.2 and (far > 1).float().mean() < 0.04 and (far == 0).float().mean() > 0.88


@pytest.mark.parametrize("quality", [80, 10])
def test_flat_images_and_noise_of_strong_colours(quality: int) -> None:
    """Coefficients of flat images lie on halves exactly; strong colours leave the range of 256 levels."""
    flat = torch.arange(0, 256, 5.0)[:, None, None, None].expand(-1, 3, 16, 16)
    assert torch.equal(jpeg._colour(flat, quality), by_pillow(flat, quality))
    noise = (torch.rand(10, 3, 32, 32, generator=torch.Generator().manual_seed(0)) > 0.5).float() * 255
    far = (jpeg._colour(noise, quality) - by_pillow(noise, quality)).abs()
    assert far.mean() < 1


def test_quality_fifty_keeps_the_tables_and_others_scale_them() -> None:
    luma = torch.tensor(jpeg.LUMA).flatten()
    assert torch.equal(jpeg._table(50, chroma=False), luma)
    assert torch.equal(jpeg._table(25, chroma=False), (2 * luma).clamp(max=255))
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", quality=18)
    tables = Image.open(file).quantization
    for number, chroma in ((0, False), (1, True)):
        assert jpeg._table(18, chroma=chroma).tolist() == list(tables[number])


def test_the_cosine_transform_is_orthogonal_and_of_whole_multiples() -> None:
    matrix = jpeg._cosines().double()
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(64, dtype=torch.float64), rtol=0, atol=1e-3)
    assert torch.equal((matrix / jpeg.FINE).round() * jpeg.FINE, matrix)
