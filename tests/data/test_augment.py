"""Random resized crops against torchvision: the distribution of the windows, and the pixels."""

import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from hardy.data import ArrayData, Batches
from hardy.data.augment import augment_images, check_augment, cut_resize, draw, draw_boxes
from hardy.errors import ParameterError
from hardy.seeding import keys, root

N = 4000


def drawn(height: int, width: int, n: int = N) -> Tensor:
    return draw_boxes(keys(root(0, "test"), torch.arange(n)), height=height, width=width)


def by_torchvision(height: int, width: int, n: int = N) -> Tensor:
    image = torch.zeros(1, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.tensor([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(n)])


@pytest.mark.parametrize(("height", "width"), [(224, 224), (500, 375), (120, 400)])
def test_windows_are_distributed_as_those_of_torchvision(height: int, width: int) -> None:
    ours, theirs = drawn(height, width), by_torchvision(height, width)
    assert ((ours[:, 0] + ours[:, 2] <= height) & (ours[:, 1] + ours[:, 3] <= width)).all()
    assert (ours >= torch.tensor([0, 0, 1, 1])).all()
    facts = {
        "area": lambda b: b[:, 2] * b[:, 3],
        "ratio": lambda b: b[:, 3] / b[:, 2],
        "top": lambda b: b[:, 0],
        "left": lambda b: b[:, 1],
        "bottom margin": lambda b: height - b[:, 0] - b[:, 2],
        "right margin": lambda b: width - b[:, 1] - b[:, 3],
    }
    for name, fact in facts.items():
        assert stats.ks_2samp(fact(ours).numpy(), fact(theirs).numpy()).pvalue > 1e-3, name


def test_area_and_ratio_of_windows_that_always_fit_are_uniform() -> None:
    """Of a large square only shares near 1 may not fit; below 3/4 of the area every attempt does."""
    boxes = drawn(3000, 3000).double()
    area = boxes[:, 2] * boxes[:, 3] / 9e6
    small = area[area < 0.74]
    assert stats.kstest((small.numpy() - 0.08) / 0.66, "uniform").pvalue > 1e-3
    ratio = torch.log((boxes[:, 3] / boxes[:, 2])[area < 0.74]) / torch.log(torch.tensor(4 / 3))
    assert stats.kstest(ratio.numpy(), "uniform", args=(-1, 2)).pvalue > 1e-3
    assert abs(stats.spearmanr(small.numpy(), ratio.numpy()).statistic) < 4 / len(small) ** 0.5


def test_windows_are_independent_of_crops_and_flips() -> None:
    key = keys(root(0, "test"), torch.arange(N))
    top, left, flip = draw(key, pad=50, flip=True)
    boxes = draw_boxes(key, height=300, width=300)
    facts = (boxes[:, 2] * boxes[:, 3], boxes[:, 3] / boxes[:, 2], boxes[:, 0], boxes[:, 1])
    for fact in facts:
        for other in (top, left, flip):
            assert abs(stats.spearmanr(fact.numpy(), other.numpy()).statistic) < 4 / N**0.5


@pytest.mark.parametrize(("height", "width"), [(4, 400), (400, 4), (1, 1), (2, 50)])
def test_images_that_no_window_fits_give_the_middle_as_in_torchvision(height: int, width: int) -> None:
    ours, theirs = drawn(height, width, 300), by_torchvision(height, width, 300)
    most = theirs.unique(dim=0, return_counts=True)
    assert torch.equal(ours.mode(dim=0).values, most[0][most[1].argmax()])
    assert ((ours[:, 0] + ours[:, 2] <= height) & (ours[:, 1] + ours[:, 3] <= width) & (ours[:, 2:] > 0).all(1)).all()


def test_windows_of_mixed_sizes_are_those_of_each_size() -> None:
    key = keys(root(1, "test"), torch.arange(6))
    h, w = torch.tensor([10, 300, 7, 40, 41, 8]), torch.tensor([20, 100, 7, 400, 4, 90])
    together = draw_boxes(key, height=h, width=w)
    alone = [draw_boxes(key[i : i + 1], height=int(h[i]), width=int(w[i]))[0] for i in range(6)]
    assert torch.equal(together, torch.stack(alone))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 24, 40), (3, 1, 5), (2, 7, 3)])
def test_pixels_are_those_of_torchvision_within_rounding(shape: tuple[int, int, int]) -> None:
    x = torch.randint(0, 256, (60, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    box = draw_boxes(keys(root(0, "test"), torch.arange(60)), height=shape[1], width=shape[2])
    flip = torch.arange(60) % 3 == 0
    want = torch.stack(
        [tv.resized_crop(one.float(), *b.tolist(), size=list(shape[1:])) for one, b in zip(x, box, strict=True)]
    )
    want = torch.where(flip[:, None, None, None], want.flip(3), want)
    got = cut_resize(x, box=box, flip=flip)
    assert got.dtype == torch.uint8 and (got.float() - want).abs().max() < 0.75  # half a level, and weights of 11 bits


def test_the_whole_image_as_a_window_is_the_image() -> None:
    x = torch.randint(0, 256, (4, 3, 9, 13), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    box = torch.tensor([[0, 0, 9, 13]]).expand(4, 4)
    assert torch.equal(cut_resize(x, box=box, flip=torch.zeros(4, dtype=torch.bool)), x)
    white = torch.full_like(x, 255)
    small = torch.tensor([[2, 3, 2, 5]]).expand(4, 4)
    assert torch.equal(cut_resize(white, box=small, flip=torch.ones(4, dtype=torch.bool)), white)


def test_an_image_does_not_depend_on_its_batch_and_flips_are_those_of_crops() -> None:
    x = torch.randint(0, 256, (50, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = ArrayData.make(x, torch.arange(50) % 2)
    whole, parts = (
        {int(k): one for one_x, _, key in b.epoch(1) for one, k in zip(one_x, key, strict=True)}
        for b in (
            Batches(data, batch_size=n, seed=0, augment=("resized_crop", "flip"), drop_last=False) for n in (50, 7)
        )
    )
    assert whole.keys() == parts.keys() and all(torch.equal(whole[k], parts[k]) for k in whole)
    key = keys(root(0, "test"), torch.arange(50))
    unflipped = augment_images(x, key, ("resized_crop",))
    flipped = augment_images(x, key, ("resized_crop", "flip"))
    _, _, flip = draw(key, pad=4, flip=True)
    assert torch.equal(flipped, torch.where(flip[:, None, None, None], unflipped.flip(3), unflipped))
    assert not torch.equal(unflipped, x)


def test_two_crops_and_unknown_names_are_refused() -> None:
    with pytest.raises(ParameterError, match=r'at most one of "crop" and "resized_crop"; got both'):
        check_augment(("crop", "flip", "resized_crop"))
    with pytest.raises(ParameterError, match=r"no augmentation 'resized_crops'; did you mean 'resized_crop'"):
        check_augment(["resized_crops"])
    assert check_augment([]) == ()


@pytest.mark.gpu
def test_the_gpu_gives_the_same_windows_and_pixels() -> None:
    x = torch.randint(0, 256, (500, 3, 64, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    key = keys(root(0, "test"), torch.arange(500))
    cpu, gpu = (augment_images(x.to(d), key.to(d), ("resized_crop", "flip")) for d in ("cpu", "cuda"))
    assert torch.equal(cpu, gpu.cpu())
