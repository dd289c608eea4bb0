"""Objects from folders, arrays, boxes and callables; each image gets its own mask, and the crop of its image."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hardy.data import ArrayData, Batches, load_data, object_masks, with_background
from hardy.data.augment import augment_images
from hardy.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images of 8 x 8 in two classes; the object of image i is a square of i + 1 pixels at the top left."""
    for i in range(6):
        for root, kind in (("images", "RGB"), ("masks", "L")):
            where = tmp_path / root / f"class{i % 2}"
            where.mkdir(parents=True, exist_ok=True)
            pixels = np.zeros((8, 8), np.uint8)
            pixels[: i + 1, : i + 1] = 255
            Image.fromarray(pixels).convert(kind).save(where / f"{i}.{'ppm' if root == 'images' else 'png'}")
    return tmp_path


def sides(masks: Tensor) -> list[int]:
    return [round(float(mask.sum()) ** 0.5) for mask in masks]


def test_a_folder_gives_each_image_the_mask_at_its_path(folder: Path) -> None:
    for split in ("train", "test"):
        data = load_data(f"folder:{folder / 'images'}", split=split, val_fraction=0.0)
        found, known = object_masks(data, f"folder:{folder / 'masks'}")
        assert known.all() and torch.equal(found, data.x[:, 0] > 127)
        assert torch.equal(object_masks(data, folder / "masks")[0], found)


def test_images_without_a_mask_have_no_background(folder: Path) -> None:
    (folder / "masks" / "class0" / "0.png").unlink()
    data = load_data(f"folder:{folder / 'images'}", split="train", val_fraction=0.0)
    found, known = object_masks(data, folder / "masks")
    seen = sides(data.x[:, 0] > 127)
    assert known.tolist() == [side != 1 for side in seen]
    given = with_background(data, folder / "masks").background
    assert given is not None
    assert all(bool((background == 0).all()) is not bool(k) for background, k in zip(given, known, strict=True))
    assert torch.equal(given[known] == 255, ~found[known])


def test_masks_are_resized_and_cut_as_images_are(tmp_path: Path) -> None:
    for c in ("a", "b"):
        for root in ("images", "masks"):
            (tmp_path / root / c).mkdir(parents=True)
            pixels = np.zeros((20, 40), np.uint8)
            pixels[:, 12:20] = 255
            for i in range(5):
                Image.fromarray(pixels).convert("RGB").save(tmp_path / root / c / f"{i}.png")
    data = load_data(f"folder:{tmp_path / 'images'}", split="train", size=10)
    found, _ = object_masks(data, tmp_path / "masks")
    assert torch.equal(found, data.x[:, 0] > 127) and 0 < int(found[0].sum()) < 100


def test_an_array_is_addressed_by_identity(tmp_path: Path) -> None:
    data = ArrayData.make(torch.zeros(5, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1, 0, 1, 0]), split="train")
    masks = np.zeros((5, 4, 4), np.uint8)
    for i in range(5):
        masks[i, :i, :] = 7
    np.savez(tmp_path / "m.npz", masks_train=masks)
    chosen = data.subset(torch.tensor([4, 1]))
    found, known = object_masks(chosen, f"npz:{tmp_path / 'm.npz'}")
    assert known.all() and found.sum((1, 2)).tolist() == [16, 4]


def test_boxes_add_up_and_know_paths_and_numbers(folder: Path, tmp_path: Path) -> None:
    data = load_data(f"folder:{folder / 'images'}", split="train", val_fraction=0.0)
    names = [f"class{i % 2}/{i}.ppm" for i in range(6)]
    lines = [f"{name},0,0,{i + 1},{i + 1}" for i, name in enumerate(names)]
    (tmp_path / "boxes.csv").write_text("image,left,top,right,bottom\n" + "\n".join(lines) + "\n")
    found, known = object_masks(data, f"boxes:{tmp_path / 'boxes.csv'}")
    assert known.all() and torch.equal(found, data.x[:, 0] > 127)
    plain = ArrayData.make(torch.zeros(2, 1, 4, 6, dtype=torch.uint8), torch.tensor([0, 1]))
    (tmp_path / "b.csv").write_text("image,left,top,right,bottom\n1,0,0,2,1\n1,4,3,6,4\n")
    found, known = object_masks(plain, f"boxes:{tmp_path / 'b.csv'}")
    assert known.tolist() == [False, True] and found[1].nonzero().tolist() == [[0, 0], [0, 1], [3, 4], [3, 5]]


def test_a_callable_sees_images_and_identities() -> None:
    data = ArrayData.make(torch.arange(32, dtype=torch.uint8).reshape(2, 1, 4, 4), torch.tensor([0, 1]))
    found, known = object_masks(data, lambda x, index: (x[:, 0] % 2 == 0) & (index == 1)[:, None, None])
    assert known.tolist() == [False, True] and found.sum((1, 2)).tolist() == [0, 8]  # nothing marked: not known


def test_batches_cut_and_mirror_the_background_as_the_image() -> None:
    x = torch.randint(0, 256, (7, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = ArrayData.make(x, torch.arange(7) % 2, split="train")
    known = with_background(data, lambda images, _: images[:, 0] > 127)
    assert known.subset(torch.tensor([3])).background is not None
    plain = Batches(data, batch_size=3, seed=0)
    both = Batches(known, batch_size=3, seed=0)
    for (a, y, key), (b, y2, key2, background) in zip(plain.epoch(1), both.epoch(1), strict=True):
        assert torch.equal(a, b) and torch.equal(y, y2) and torch.equal(key, key2)  # masks move nothing
        inside = augment_images(torch.full((len(key), 1, 16, 16), 255, dtype=torch.uint8), key, ("crop", "flip"))[:, 0]
        want = (b[:, 0] <= 127 / 255) & (inside > 0)  # what is padded is no background
        assert torch.equal(background, want.float()) and 0 < float(background.mean()) < 1


@pytest.mark.parametrize(
    ("masks", "said"),
    [
        ("folder:/nowhere", "no such folder"),
        ("nothing", "must be a folder, folder:DIR, npz:FILE or boxes:FILE"),
        ("npz:/nowhere.npz", "readable .npz"),
        ("boxes:/nowhere.csv", "four whole numbers"),
    ],
)
def test_a_source_that_is_not_there(masks: str, said: str) -> None:
    data = ArrayData.make(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]))
    with pytest.raises(DataError, match=said):
        object_masks(data, masks)


def test_sources_that_do_not_fit(tmp_path: Path) -> None:
    data = ArrayData.make(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]))
    np.savez(tmp_path / "a.npz", masks_test=np.zeros((2, 5, 5), np.uint8))
    np.savez(tmp_path / "b.npz", other=np.zeros((2, 4, 4), np.uint8))
    (tmp_path / "c.csv").write_text("a,b\n1,2\n")
    (tmp_path / "d.csv").write_text("image,left,top,right,bottom\n0,0,0,5,1\n")
    (tmp_path / "e.csv").write_text("image,left,top,right,bottom\n0,0,zero,1,1\n")
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "f.npz", masks_test=np.ones((1, 4, 4), np.uint8))
    np.savez(tmp_path / "g.npz", masks_test=np.zeros((2, 4, 4), np.uint8))
    for masks, said in (
        (f"npz:{tmp_path}/a.npz", r"h, w = \(4, 4\); got uint8, \(2, 5, 5\)"),
        (f"npz:{tmp_path}/b.npz", "must hold masks_test; got other"),
        (f"npz:{tmp_path}/f.npz", "a row for every image of the whole part, at least 2.* got 1"),
        (f"npz:{tmp_path}/g.npz", "must mark objects .* got none in 2"),
        (f"boxes:{tmp_path}/c.csv", "first line must be image,left,top,right,bottom"),
        (f"boxes:{tmp_path}/d.csv", "line 2: a box must lie in 4 x 4 pixels"),
        (f"boxes:{tmp_path}/e.csv", "four whole numbers"),
        (f"folder:{tmp_path}/empty", "got none in 2"),
        (lambda x, _: x, r"must give bool \(n, h, w\) = \(2, 4, 4\); got torch.uint8"),
    ):
        with pytest.raises(DataError, match=said):
            object_masks(data, masks)


def test_background_must_fit() -> None:
    x, y = torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1])
    for wrong in (
        torch.zeros(2, 4, 4),
        torch.zeros(2, 4, 5, dtype=torch.uint8),
        torch.zeros(1, 4, 4, dtype=torch.uint8),
    ):
        with pytest.raises(DataError, match="background must be uint8, n h w"):
            ArrayData(x, y, torch.arange(2), ("a", "b"), background=wrong)
