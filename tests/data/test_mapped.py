"""Arrays read in place against numpy."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from hardy.data import load_data, open_data
from hardy.data.arrays import npz
from hardy.data.mapped import find_array
from hardy.errors import DataError


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32", ">u2"])
@pytest.mark.parametrize("shape", [(7,), (3, 4, 5, 2), (5, 0, 2)])
def test_an_array_is_found_where_numpy_wrote_it(dtype: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    want = {"a": np.arange(3.0), "x_train": np.random.default_rng(0).integers(0, 200, shape).astype(dtype)}
    np.savez(tmp_path / "a.npz", **want)  # type: ignore[arg-type]
    for name, array in want.items():
        found = find_array(tmp_path / "a.npz", f"{name}.npy")
        assert found is not None and found.shape == array.shape and found.dtype == array.dtype
        if array.size:
            got = found.open()
            assert np.array_equal(got, array) and not got.flags.writeable


def test_headers_of_all_versions_and_zip_extras_are_read(tmp_path: Path) -> None:
    x = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    for version in ((1, 0), (2, 0), (3, 0)):
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            info = zipfile.ZipInfo("x.npy")
            info.extra = b"\xfe\xca\x04\x00abcd"
            with archive.open(info, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, x, version=version)
        found = find_array(tmp_path / "a.npz", "x.npy")
        assert found is not None and np.array_equal(found.open(), x)


def test_what_cannot_be_mapped_is_none(tmp_path: Path) -> None:
    x = np.arange(24).reshape(4, 6)
    np.savez_compressed(tmp_path / "a.npz", x=x)
    assert find_array(tmp_path / "a.npz", "x.npy") is None
    np.savez(tmp_path / "b.npz", x=np.asfortranarray(x))
    assert find_array(tmp_path / "b.npz", "x.npy") is None


def test_damage_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    x, y = np.zeros((6, 4, 4), dtype=np.uint8), np.arange(6) % 2
    np.savez(path, x_train=x[:5], y_train=y)
    with pytest.raises(DataError, match="x_train has 5 images, y_train has 6 labels"):
        open_data(f"npz:{path}", split="train", stream=True)
    np.savez(path, x_train=x.astype(np.float32), y_train=y)
    with pytest.raises(DataError, match=r"x_train: must be uint8, 0 \.\. 255; got float32"):
        open_data(f"npz:{path}", split="train", stream=True)
    np.savez(path, x_train=x, y_train=y)
    reader = npz(path, None)["train"].read.streamed()
    assert reader is not None
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"not a readable \.npz file"):
        reader(torch.tensor([5]))


def test_gray_and_colour_images_are_those_of_the_whole_file(tmp_path: Path) -> None:
    for shape in ((9, 5, 4), (9, 5, 4, 3)):
        x = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        np.savez(tmp_path / "a.npz", x_train=x, y_train=np.arange(9) % 3)
        rows = npz(tmp_path / "a.npz", None)["train"].take(torch.tensor([8, 1, 4, 3, 0]))
        reader = rows.read.streamed()
        assert reader is not None
        chosen = torch.tensor([4, 0, 0])
        assert torch.equal(reader(chosen), rows.read(chosen)) and len(reader(chosen[:0])) == 0
        assert torch.equal(
            reader(chosen), load_data(f"npz:{tmp_path}/a.npz", split="train", val_fraction=0.0).x[[0, 8, 8]]
        )
