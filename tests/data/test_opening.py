"""What goes into memory and what stays on the disk; what is wrong with either is said before training."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hardy.data import ArrayData, StreamData, load_data, open_data, opening
from hardy.errors import DataError

GIB = 2**30
NEED = 12 * 3 * 8 * 8  # bytes of the images of make_folder


def make_folder(root: Path, *, sizes: tuple[tuple[int, int], ...] = ((8, 8),), n: int = 12) -> Path:
    for i in range(n):
        here = root / "train" / "abc"[i % 3]
        here.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", sizes[i % len(sizes)], (i, 0, 0)).save(here / f"{i:02}.png")
    return root


def test_small_sets_are_those_of_load_data(tmp_path: Path) -> None:
    make_folder(tmp_path)
    for spec, more in ((f"folder:{tmp_path}", {"size": 6}), ("digits", {"limit": 50}), ("shapes:n=30", {})):
        opened = open_data(spec, split="train", **more)  # type: ignore[arg-type]
        loaded = load_data(spec, split="train", **more)  # type: ignore[arg-type]
        assert isinstance(opened, ArrayData)
        assert torch.equal(opened.x, loaded.x) and torch.equal(opened.index, loaded.index)
        assert (opened.class_names, opened.name, opened.split) == (loaded.class_names, loaded.name, "train")


@pytest.mark.parametrize(
    ("free", "resident", "streamed"),
    [
        *((100 * GIB, 2 * GIB, False), (100 * GIB, NEED, False), (100 * GIB, NEED - 1, True)),
        *((4 * NEED, 2 * GIB, False), (4 * NEED - 4, 2 * GIB, True)),
        *((None, 2 * GIB, False), (None, NEED - 1, True)),
    ],
)
def test_what_is_above_two_gib_or_a_quarter_of_the_free_memory_stays_on_the_disk(
    free: int | None, resident: int, streamed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert opening.RESIDENT == 2 * GIB
    make_folder(tmp_path)
    monkeypatch.setattr(opening, "free_bytes", lambda: free)
    monkeypatch.setattr(opening, "RESIDENT", resident)
    for size in (None, 8):
        data = open_data(f"folder:{tmp_path}", split="train", size=size, val_fraction=0.0)
        assert isinstance(data, StreamData) == streamed
    assert isinstance(open_data(f"folder:{tmp_path}", split="train", size=2), ArrayData)  # a sixteenth
    assert isinstance(open_data(f"folder:{tmp_path}", split="train", stream=False), ArrayData)
    assert isinstance(open_data(f"folder:{tmp_path}", split="train", stream=True), StreamData)


def test_resized_crops_leave_files_on_the_disk_and_arrays_in_memory(tmp_path: Path) -> None:
    make_folder(tmp_path)
    more = {"split": "train", "augment": ("resized_crop", "flip")}
    assert isinstance(open_data(f"folder:{tmp_path}", **more), StreamData)  # type: ignore[arg-type]
    assert isinstance(open_data(f"folder:{tmp_path}", stream=False, **more), ArrayData)  # type: ignore[arg-type]
    assert isinstance(open_data("digits", **more), ArrayData)  # type: ignore[arg-type]


def test_a_compressed_file_is_read_whole_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = np.zeros((8, 4, 4), dtype=np.uint8), np.arange(8) % 2
    np.savez_compressed(tmp_path / "a.npz", x_train=x, y_train=y)
    monkeypatch.setattr(opening, "RESIDENT", 0)
    assert isinstance(open_data(f"npz:{tmp_path}/a.npz", split="train"), ArrayData)
    with pytest.raises(DataError, match=r"must not be compressed. Write it with numpy\.savez"):
        open_data(f"npz:{tmp_path}/a.npz", split="train", stream=True)
    np.savez(tmp_path / "b.npz", x_train=x, y_train=y)
    assert isinstance(open_data(f"npz:{tmp_path}/b.npz", split="train"), StreamData)


def test_bad_files_and_other_sizes_are_found_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = f"folder:{make_folder(tmp_path, sizes=((8, 8), (8, 8), (8, 8), (8, 8), (9, 7)))}"
    with pytest.raises(DataError, match=r"b/04\.png is 7x9, not 8x8: set size; .*a/09\.png is 7x9|a/09.*b/04"):
        open_data(spec, split="train", stream=True, val_fraction=0.0)
    assert open_data(spec, split="train", stream=True, size=4, val_fraction=0.0).shape == (3, 4, 4)
    bad = tmp_path / "train" / "a" / "00.png"
    bad.write_bytes(bad.read_bytes()[:40])
    for size in (4, None):
        with pytest.raises(DataError, match=r"a/00\.png cannot be read"):
            open_data(spec, split="train", stream=True, size=size, val_fraction=0.0)
    monkeypatch.setattr(opening, "VERIFIED", 11)  # too many to read them all: said when the image is due
    data = open_data(spec, split="train", stream=True, size=4, val_fraction=0.0)
    with pytest.raises(DataError, match=r"a/00\.png cannot be read"):
        data.images()
    data = open_data(spec, split="train", stream=True, size=4, val_fraction=0.0, skip_bad=True)
    resident = load_data(spec, split="train", size=4, val_fraction=0.0, skip_bad=True)
    assert len(data) == 11 and torch.equal(data.index, resident.index) and torch.equal(data.images(), resident.images())
    assert data.skipped == resident.skipped and len(data.skipped) == 1 and "a/00.png" in data.skipped[0]


def test_a_class_without_an_image_and_wrong_names_are_refused_as_ever(tmp_path: Path) -> None:
    make_folder(tmp_path, n=12)
    with pytest.raises(DataError, match="every class must have an image"):
        open_data(f"folder:{tmp_path}", split="train", limit=2, stream=True)
    with pytest.raises(DataError, match="no such kind of data"):
        open_data("folders:x", stream=True)
