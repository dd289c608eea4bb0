"""Folders of images: every layout, and errors that name the file before anything is trained."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hardy.data import load_data
from hardy.data.load import open_rows
from hardy.data.pictures import FolderReader, decode
from hardy.errors import DataError


def picture(path: Path, size: tuple[int, int] = (8, 8), value: int = 0, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 0, 255 - value)).save(path)


def tree(root: Path, *parts: str, per_class: int = 3) -> str:
    for p, part in enumerate(parts or (".",)):
        for c, name in enumerate(("cat", "dog")):
            for i in range(per_class):
                picture(root / part / name / f"{i}.png", value=100 * p + 10 * c + i)
    return f"folder:{root}"


def test_train_and_test_folders_are_the_parts(tmp_path: Path) -> None:
    spec = tree(tmp_path, "train", "test")
    train = load_data(spec, split="train", val_fraction=0.0)
    assert train.class_names == ("cat", "dog") and train.y.tolist() == [0, 0, 0, 1, 1, 1]
    assert train.x[:, 0, 0, 0].tolist() == [0, 1, 2, 10, 11, 12]
    assert (train.x[:, 2, 5, 5] == 255 - train.x[:, 0, 0, 0]).all() and (train.x[:, 1] == 0).all()
    test = load_data(spec)
    assert test.x[:, 0, 0, 0].tolist() == [100, 101, 102, 110, 111, 112]
    assert not set(train.index.tolist()) & set(test.index.tolist())


def test_val_stands_in_for_test_unless_both_are_there(tmp_path: Path) -> None:
    spec = tree(tmp_path, "train", "val")
    assert load_data(spec).x[0, 0, 0, 0] == 100
    spec = tree(tmp_path, "train", "val", "test")
    assert [int(load_data(spec, split=s).x[0, 0, 0, 0]) for s in ("train", "val", "test")] == [0, 100, 200]
    assert len(load_data(spec, split="train")) == 6  # nothing is cut off then


def test_a_plain_folder_gives_a_fifth_of_each_class_to_the_test_whatever_the_seed(tmp_path: Path) -> None:
    spec = tree(tmp_path, per_class=10)
    parts = {s: load_data(spec, split=s, seed=3, val_fraction=0.25) for s in ("train", "val", "test")}
    assert {s: torch.bincount(d.y).tolist() for s, d in parts.items()} == {
        "train": [6, 6],
        "val": [2, 2],
        "test": [2, 2],
    }
    assert len({i for d in parts.values() for i in d.index.tolist()}) == 20
    other = {s: load_data(spec, split=s, seed=4, val_fraction=0.25) for s in parts}
    assert torch.equal(other["test"].index, parts["test"].index)
    assert not torch.equal(other["val"].index, parts["val"].index)
    moved = tree(tmp_path / "elsewhere", per_class=10)  # the path below the folder counts, not where it lies
    assert torch.equal(load_data(moved).index, parts["test"].index)


def test_resizing_takes_the_short_side_and_the_centre(tmp_path: Path) -> None:
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200  # only the middle third is bright
    Image.fromarray(wide).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png", 10).shape == (10, 10, 3)
    assert (decode(tmp_path / "a.png", 10)[:, 1:9] == 200).all()
    assert decode(tmp_path / "a.png", None).shape == (20, 60, 3)
    Image.fromarray(wide.transpose(1, 0, 2)).save(tmp_path / "tall.png")
    assert (decode(tmp_path / "tall.png", 10)[1:9] == 200).all()
    for w, h in ((7, 7), (33, 32), (100, 1)):
        picture(tmp_path / "b.png", (w, h))
        assert decode(tmp_path / "b.png", 32).shape == (32, 32, 3)


def test_pixels_come_out_where_they_were(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 7, 9, 3), dtype=np.uint8)
    for i, name in enumerate(("cat", "dog")):
        (tmp_path / "test" / name).mkdir(parents=True)
        Image.fromarray(pixels[i]).save(tmp_path / "test" / name / "0.png")
    assert np.array_equal(load_data(f"folder:{tmp_path}").x.numpy(), np.moveaxis(pixels, 3, 1))
    square = load_data(f"folder:{tmp_path}", size=7).x.numpy()
    assert np.array_equal(square, np.moveaxis(pixels[:, :, 1:8], 3, 1))


def test_gray_palette_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    tree(tmp_path, "test")
    picture(tmp_path / "test" / "cat" / "gray.png", value=77, mode="L")
    Image.new("RGBA", (8, 8), (1, 2, 3, 9)).save(tmp_path / "test" / "cat" / "a.png")
    Image.new("P", (8, 8)).save(tmp_path / "test" / "cat" / "b.png")
    x = load_data(f"folder:{tmp_path}").x
    assert x.shape == (9, 3, 8, 8) and (x == 77).all((1, 2, 3)).any()


def test_unreadable_images_are_named_together(tmp_path: Path) -> None:
    spec = tree(tmp_path, "test")
    whole = (tmp_path / "test" / "dog" / "1.png").read_bytes()
    (tmp_path / "test" / "dog" / "1.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "test" / "cat" / "2.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"cat/2.png cannot be read .*; .*dog/1.png cannot be read") as caught:
        load_data(spec, size=8)
    assert "more" not in str(caught.value)
    (tmp_path / "test" / "cat" / "0.png").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"one size unless it is resized; .*cat/0.png cannot be read \(no known image format\)"
    ):
        load_data(spec)


def test_mixed_sizes_need_a_size(tmp_path: Path) -> None:
    spec = tree(tmp_path, "test")
    picture(tmp_path / "test" / "dog" / "1.png", (9, 7))
    with pytest.raises(DataError, match=r"dog/1.png is 7x9, not 8x8: set size"):
        load_data(spec)
    assert load_data(spec, size=6).shape == (3, 6, 6)


def test_wrong_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        load_data(f"folder:{tmp_path}/nowhere")
    with pytest.raises(DataError, match="must have one sub-folder per class; got none"):
        load_data(f"folder:{tmp_path}")
    (tmp_path / "train" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match=r"no images below .*; known are .jpg"):
        load_data(f"folder:{tmp_path}", split="train")
    tree(tmp_path, "train", "test")
    (tmp_path / "train" / "cow").mkdir()
    with pytest.raises(DataError, match="must have an image to train on; none for 'cow'"):
        load_data(f"folder:{tmp_path}", split="train")
    picture(tmp_path / "test" / "emu" / "0.png")
    with pytest.raises(DataError, match="test has the class 'emu', which train has not"):
        load_data(f"folder:{tmp_path}")


def test_only_the_wanted_images_are_decoded(tmp_path: Path) -> None:
    spec = tree(tmp_path, "train", "test", per_class=20)
    kept = load_data(spec, split="train", limit=4, val_fraction=0.0)
    for path in (tmp_path / "test").rglob("*.png"):
        path.write_bytes(b"broken")
    again = load_data(spec, split="train", limit=4, val_fraction=0.0)
    assert torch.equal(kept.x, again.x) and kept.y.tolist() == [0, 0, 1, 1]


def test_other_files_and_hidden_folders_are_left_alone(tmp_path: Path) -> None:
    spec = tree(tmp_path, "test")
    (tmp_path / "test" / "cat" / "notes.txt").write_text("hello")
    (tmp_path / "test" / ".thumbnails").mkdir()
    assert len(load_data(spec)) == 6 and load_data(spec).class_names == ("cat", "dog")


def test_images_are_in_the_order_of_their_paths_however_deep(tmp_path: Path) -> None:
    names = ["a/b.png", "a/B.JPG", "a-b/c.png", "a.png", "a/b/c.png", "b/a.bmp", "b.PNG", "a b/z.png", ".hidden/x.png"]
    for i, name in enumerate(names):
        picture(tmp_path / "test" / "cat" / name, value=i)
    picture(tmp_path / "test" / "dog" / "0.png", value=99)
    want = [str(p.relative_to(tmp_path / "test" / "cat")) for p in sorted((tmp_path / "test" / "cat").rglob("*.*"))]
    rows = open_rows(f"folder:{tmp_path}")
    assert isinstance(rows.read, FolderReader)
    got = [str(rows.read.path(i).relative_to(tmp_path / "test" / "cat")) for i in range(len(names))]
    assert got == [name for name in want if name in names] and len(rows.y) == len(names) + 1


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = tree(tmp_path, "test")
    listed = os.scandir

    def closed(path: str | Path) -> object:
        if Path(path).name == "dog":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(DataError, match=r"test/dog cannot be read \(Permission denied\)"):
        load_data(spec)
