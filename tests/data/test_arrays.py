"""Digits and .npz files come out as they went in, and damaged files are errors that name them."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hardy.data import load_data
from hardy.errors import DataError

NAMES = ("cat", "dog")


def arrays(n: int = 6, channels: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (n, 4, 5, channels) if channels else (n, 4, 5)
    return {
        "x_train": rng.integers(0, 256, shape, dtype=np.uint8),
        "y_train": np.arange(n) % 2,
        "x_test": rng.integers(0, 256, shape, dtype=np.uint8)[:2],
        "y_test": np.arange(2),
    }


def save(path: Path, **content: object) -> str:
    np.savez(path, **content)  # type: ignore[arg-type]
    return f"npz:{path}"


def test_digits_are_scikit_learns_scaled_to_bytes() -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    train, test = load_data("digits", split="train", val_fraction=0.0), load_data("digits")
    assert (len(train), len(test)) == (1437, 360) and test.shape == (1, 8, 8)
    x = torch.cat([train.images(), test.images()])[:, 0]
    torch.testing.assert_close(x * 16, torch.from_numpy(bunch.images).float(), atol=16 / 255 / 2 + 1e-6, rtol=0)
    assert torch.cat([train.y, test.y]).tolist() == bunch.target.tolist()
    assert torch.cat([train.index, test.index]).tolist() == list(range(1797))
    with pytest.raises(DataError, match="take no path"):
        load_data("digits:somewhere")


@pytest.mark.parametrize("channels", [0, 1, 3, 4])
def test_npz_images_come_out_channels_first(channels: int, tmp_path: Path) -> None:
    want = arrays(channels=channels)
    spec = save(tmp_path / "a.npz", **want, class_names=np.array(NAMES))
    got = load_data(spec, split="train", val_fraction=0.0)
    x = want["x_train"].reshape(6, 4, 5, channels or 1)
    assert np.array_equal(got.x.numpy(), np.moveaxis(x, 3, 1)) and got.x.is_contiguous()
    assert got.y.tolist() == want["y_train"].tolist() and got.class_names == NAMES and got.index.tolist() == [*range(6)]
    assert np.array_equal(load_data(spec).x.numpy(), np.moveaxis(want["x_test"].reshape(2, 4, 5, channels or 1), 3, 1))


def test_images_of_a_selection_go_with_their_rows(tmp_path: Path) -> None:
    want = arrays(20)
    spec = save(tmp_path / "a.npz", **want)
    for split in ("train", "val"):
        got = load_data(spec, split=split, val_fraction=0.4, limit=5)
        assert len(got) == 5 and got.index.tolist() != list(range(5))
        assert np.array_equal(got.x.numpy(), np.moveaxis(want["x_train"], 3, 1)[got.index.numpy()])
        assert got.y.tolist() == want["y_train"][got.index.numpy()].tolist()


def test_labels_may_be_columns_of_any_integer_type_and_class_names_bytes(tmp_path: Path) -> None:
    want = arrays() | {"y_test": np.array([[1], [0]], dtype=np.uint8), "class_names": np.array([b"cat", b"dog"])}
    got = load_data(save(tmp_path / "a.npz", **want))
    assert got.y.tolist() == [1, 0] and got.class_names == NAMES


def test_without_names_the_classes_are_those_of_all_parts(tmp_path: Path) -> None:
    want = arrays() | {"y_train": np.array([0, 1, 2, 0, 1, 2])}
    assert load_data(save(tmp_path / "a.npz", **want)).class_names == ("0", "1", "2")


def test_one_part_is_enough_and_a_missing_part_is_named(tmp_path: Path) -> None:
    want = {k: v for k, v in arrays().items() if "test" in k}
    spec = save(tmp_path / "a.npz", **want)
    assert len(load_data(spec)) == 2
    with pytest.raises(DataError, match="has no train part; it has test"):
        load_data(spec, split="train")


def test_a_validation_part_of_its_own_is_kept(tmp_path: Path) -> None:
    want = arrays()
    spec = save(tmp_path / "a.npz", **want, x_val=want["x_train"][:3], y_val=want["y_train"][:3])
    assert [len(load_data(spec, split=s)) for s in ("train", "val", "test")] == [6, 3, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": np.zeros((2, 4, 4, 3))}, "x_test: must be uint8, 0 .. 255; got float64. Scale and round"),
        ({"x_test": np.zeros((2, 3, 32, 32), np.uint8)}, r"got \(2, 3, 32, 32\). Is it n c h w"),
        ({"x_test": np.zeros((2, 12), np.uint8)}, "must be n h w or n h w c"),
        ({"x_test": np.zeros((3, 4, 4, 3), np.uint8)}, "x_test has 3 images, y_test has 2 labels"),
        ({"y_test": np.zeros(2)}, "y_test: must be one integer per image; got float64"),
        ({"y_test": np.zeros((2, 2), int)}, "must be one integer per image"),
        ({"y_test": np.array([0, 2]), "class_names": np.array(NAMES)}, r"must be in 0 .. 1 .* got 2 at row 1"),
        ({"y_train": np.array([0, 1, -1, 0, 0, 0])}, "y_train: labels must be in .* got -1 at row 2"),
        ({"class_names": np.array([1, 2])}, "class_names must be a list of strings"),
        ({"y_test": np.array([0, "a"], dtype=object)}, "not a readable .npz file"),
    ],
)
def test_wrong_contents_are_named(changes: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        load_data(save(tmp_path / "a.npz", **(arrays() | changes)))


def test_files_that_are_no_npz_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3))
    for path, message in ((tmp_path / "a.npy", "single array"), (tmp_path / "b.npz", "no such file")):
        with pytest.raises(DataError, match=message):
            load_data(f"npz:{path}")
    with pytest.raises(DataError, match="must hold x_train and y_train, or x_test and y_test; got z"):
        load_data(save(tmp_path / "c.npz", z=np.zeros(2)))


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("/tmp/hardy-npz-bomb-went-off",)  # noqa: S108


def test_pickled_objects_are_not_read(tmp_path: Path) -> None:
    spec = save(tmp_path / "a.npz", **(arrays() | {"x_test": np.array([Bomb(), Bomb()], dtype=object)}))
    with pytest.raises(DataError, match=r"not a readable .npz file"):
        load_data(spec)
    assert not Path("/tmp/hardy-npz-bomb-went-off").exists()  # noqa: S108


@pytest.mark.filterwarnings("ignore")  # about old formats
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80, deadline=None)
@given(data=st.data())
def test_damaged_files_are_data_errors(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    save(path, **arrays(2))
    whole = path.read_bytes()
    at, cut = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.booleans())
    flipped = bytes([whole[at] ^ data.draw(st.integers(1, 255))])
    path.write_bytes(whole[:at] if cut else whole[:at] + flipped + whole[at + 1 :])
    try:
        got = load_data(f"npz:{path}")
    except DataError as error:
        assert "a.npz" in str(error)  # noqa: PT017
    else:
        assert got.x.dtype == torch.uint8


@pytest.mark.data
def test_real_cifar10_and_mnist_load_whole() -> None:
    folder = os.environ.get("HARDY_DATA")
    if folder is None:
        pytest.skip("HARDY_DATA is not set")
    train, val, test = (load_data(f"cifar10:{folder}", split=s) for s in ("train", "val", "test"))
    assert len(train) + len(val) == 40_000 and len(val) == 4_000 and len(test) == 10_000
    assert not set(train.index.tolist()) & set(val.index.tolist())
    counts = torch.bincount(train.y) + torch.bincount(val.y)
    assert ((torch.bincount(val.y) - counts / 10).abs() <= 1.5).all()
    torch.testing.assert_close(  # the mean of CIFAR-10 that everybody uses
        train.x.double().mean((0, 2, 3)) / 255, torch.tensor([0.4914, 0.4822, 0.4465]).double(), atol=2e-3, rtol=0
    )
    assert load_data(f"npz:{folder}/mnist.npz", limit=50).shape == (1, 28, 28)
