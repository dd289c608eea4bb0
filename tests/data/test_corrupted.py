"""Published corrupted images come out as they went in, for the rows asked for; damaged ones are errors that say so."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import ImageFolder

from hardy.data import load_data
from hardy.data.corrupted import cifar_c, corrupted, imagenet_c
from hardy.errors import DataError, ParameterError

N = 12  # images of one severity
LABELS = np.arange(N) % 5
CLASSES = ("n01", "n02", "n10")
PER_CLASS = 3


def cifar(root: Path, *names: str, channels: int = 3) -> Path:
    rng = np.random.default_rng(0)
    for name in names or ("fog", "snow"):
        np.save(root / f"{name}.npy", rng.integers(0, 256, (5 * N, 6, 7, channels), dtype=np.uint8))
    np.save(root / "labels.npy", np.tile(LABELS, 5).astype(np.uint8))
    return root


def picture(file: Path, value: int, size: tuple[int, int] = (16, 16)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(file, quality=95)


def imagenet(root: Path, *places: str) -> Path:
    """Every image has its own gray: 100 * corruption + 20 * severity + place."""
    for p, place in enumerate(places or ("fog", "snow")):
        for severity in range(1, 6):
            for i in range(len(CLASSES) * PER_CLASS):
                file = root / place / str(severity) / CLASSES[i // PER_CLASS] / f"ILSVRC2012_val_{i:08}.JPEG"
                picture(file, 100 * p + 20 * (severity - 1) + i)
    return root


ROWS = torch.tensor([7, 2, 2, 11])


@pytest.mark.parametrize("channels", [1, 3])
def test_cifar_c_gives_the_rows_of_one_severity(tmp_path: Path, channels: int) -> None:
    data = cifar_c(cifar(tmp_path, channels=channels))
    assert data.corruptions == ("fog", "snow") and data.name == f"cifar-c:{tmp_path}"
    y = torch.from_numpy(LABELS)[ROWS]
    for name in data.corruptions:
        stored = np.load(tmp_path / f"{name}.npy")
        for severity in range(1, 6):
            got = data.images(name, severity, ROWS, y)
            for place, row in enumerate(ROWS.tolist()):
                want = stored[(severity - 1) * N + row].transpose(2, 0, 1)
                assert np.array_equal((got[place] * 255).round().numpy(), want)
            assert got.dtype == torch.float32 and got.shape == (4, channels, 6, 7)
    assert data.images("fog", 1, ROWS[:0], y[:0]).shape == (0, channels, 6, 7)


def test_cifar_c_stays_on_the_disk(tmp_path: Path) -> None:
    data = cifar_c(cifar(tmp_path))
    assert all(isinstance(array.base, np.memmap) or isinstance(array, np.memmap) for array in data.arrays.values())
    assert not any(array.flags.writeable for array in data.arrays.values())


def test_copies_of_other_images_are_refused(tmp_path: Path) -> None:
    data = cifar_c(cifar(tmp_path))
    y = torch.from_numpy(LABELS)[ROWS]
    y[2] = 4
    with pytest.raises(DataError, match="1 of 4 are of another class, first number 2: 2 here, 4 there"):
        data.images("fog", 1, ROWS, y)
    for rows in ([0, 12], [-1, 0]):
        with pytest.raises(DataError, match=r"has 12 images; got the places .* Evaluate the test part"):
            data.images("fog", 1, torch.tensor(rows), torch.tensor([0, 0]))
    with pytest.raises(ParameterError, match="has no corruption 'fgo'; did you mean 'fog'"):
        data.images("fgo", 1, ROWS, y)
    with pytest.raises(ParameterError, match="severity must be a whole number from 1 to 5; got 6"):
        data.images("fog", 6, ROWS, y)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("fog", np.zeros((5 * N, 6, 7, 3), np.float32), "must be uint8, n h w c.* got float32"),
        ("fog", np.zeros((4 * N, 6, 7, 3), np.uint8), r"60 images as labels.npy; got uint8, \(48, 6, 7, 3\)"),
        ("fog", np.zeros((5 * N, 3, 6, 7), np.uint8), r"1 or 3 channels .* got uint8, \(60, 3, 6, 7\)"),
        ("fog", np.zeros((5 * N, 42), np.uint8), r"got uint8, \(60, 42\)"),
        ("fog", np.zeros((5 * N, 0, 7, 3), np.uint8), "must be uint8"),
        ("fog", np.array([{}] * 3, dtype=object), "fog.npy: not a readable .npy file"),
        ("labels", np.zeros(5 * N), "labels.npy: must be integers, one per image, .* got float64"),
        ("labels", np.zeros(5 * N - 1, int), r"five severities of n; got int64, \(59,\)"),
        ("labels", np.zeros((5 * N, 1), int), r"got int64, \(60, 1\)"),
        ("labels", np.zeros(0, int), r"got int64, \(0,\)"),
        ("labels", np.arange(5 * N) // 6, "the labels of the n clean images, five times; the five blocks differ"),
    ],
)
def test_wrong_contents_are_named(tmp_path: Path, file: str, content: np.ndarray, message: str) -> None:
    np.save(cifar(tmp_path) / f"{file}.npy", content)
    with pytest.raises(DataError, match=message):
        cifar_c(tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such folder. Write cifar-c:DIR"):
        cifar_c(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"there is no labels.npy"):
        cifar_c(tmp_path)
    np.save(tmp_path / "labels.npy", np.tile(LABELS, 5))
    with pytest.raises(DataError, match=r"must hold one .npy per corruption beside labels.npy; got none"):
        cifar_c(tmp_path)
    np.savez(tmp_path / "fog.npz", np.zeros(3))
    (tmp_path / "fog.npz").rename(tmp_path / "fog.npy")
    with pytest.raises(DataError, match=r"fog.npy: not a readable .npy file"):
        cifar_c(tmp_path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    file=st.sampled_from(["fog", "labels"]),
    cut=st.one_of(st.none(), st.integers(0, 140)),
    changes=st.lists(st.tuples(st.integers(0, 130), st.integers(0, 255)), max_size=4),
)
def test_garbled_files_are_refused_or_give_pixels(
    tmp_path: Path, file: str, cut: int | None, changes: list[tuple[int, int]]
) -> None:
    cifar(tmp_path)
    path = tmp_path / f"{file}.npy"
    content = bytearray(path.read_bytes())
    for place, value in changes:
        content[place] = value
    path.write_bytes(content[:cut])
    try:
        data = cifar_c(tmp_path)
        x = data.images("fog", 5, torch.arange(N), torch.from_numpy(data.labels))
    except DataError as error:
        assert str(tmp_path) in str(error)  # noqa: PT017  (some changes do no harm)
    else:
        assert cut is None and x.shape[0] == N and x.min() >= 0 and x.max() <= 1


@pytest.mark.parametrize("layout", [("fog", "snow"), ("weather/fog", "weather/snow"), ("weather/fog", "snow")])
def test_imagenet_c_counts_images_as_torchvision_does(tmp_path: Path, layout: tuple[str, ...]) -> None:
    data = imagenet_c(imagenet(tmp_path, *layout), size=16)
    assert sorted(data.corruptions) == ["fog", "snow"]
    for place in layout:
        for severity in (1, 5):
            known = ImageFolder(str(tmp_path / place / str(severity)))
            y = torch.tensor(known.targets)
            got = data.images(Path(place).name, severity, torch.arange(len(y)), y)
            for i, (image, _) in enumerate(known):
                assert np.array_equal((got[i] * 255).round().numpy(), np.asarray(image).transpose(2, 0, 1))


def test_imagenet_c_finds_the_images_of_a_folder_by_their_identity(tmp_path: Path) -> None:
    data = imagenet_c(imagenet(tmp_path / "c"), size=16)
    shutil.copytree(tmp_path / "c" / "fog" / "3", tmp_path / "clean" / "val")
    clean = load_data(f"folder:{tmp_path}/clean", split="test", size=16, limit=5)
    got = data.images("fog", 3, clean.index, clean.y)
    assert torch.equal(got, clean.images())
    assert torch.equal(data.images("snow", 3, clean.index, clean.y)[:, 0, 0, 0], got[:, 0, 0, 0] + 100 / 255)
    with pytest.raises(DataError, match=r"has 9 images; none is the clean image 77. Are these copies of them"):
        data.images("fog", 1, torch.tensor([0, 77]), torch.tensor([0, 0]))
    with pytest.raises(DataError, match="are of another class"):
        data.images("fog", 1, clean.index, clean.y + 1)


def test_imagenet_c_decodes_only_what_is_asked_for_and_resizes(tmp_path: Path) -> None:
    imagenet(tmp_path, "fog")
    for file in tmp_path.rglob("*_00000001.JPEG"):
        file.write_bytes(b"no image")
    data = imagenet_c(tmp_path, size=8)
    assert data.images("fog", 2, torch.tensor([4, 0]), torch.tensor([1, 0])).shape == (2, 3, 8, 8)
    with pytest.raises(DataError, match=r"fog/2/n01/ILSVRC2012_val_00000001.JPEG cannot be read"):
        data.images("fog", 2, torch.tensor([0, 1]), torch.tensor([0, 0]))
    whole = next(tmp_path.rglob("*_00000005.JPEG"))
    for cut in (0, 20, 200, len(whole.read_bytes()) // 2):
        file = tmp_path / "fog" / "4" / "n02" / whole.name
        file.write_bytes(whole.read_bytes()[:cut])
        with pytest.raises(DataError, match=r"00000005.JPEG cannot be read"):
            data.images("fog", 4, torch.tensor([5]), torch.tensor([1]))


def test_imagenet_c_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such folder. Write imagenet-c:DIR"):
        imagenet_c(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"must hold CORRUPTION/SEVERITY/CLASS/\*.JPEG; there is no folder like that"):
        imagenet_c(tmp_path)
    (tmp_path / "fog" / "1" / "n01").mkdir(parents=True)
    with pytest.raises(DataError, match=r"fog/1 must hold CLASS/\*.JPEG; there is no image"):
        imagenet_c(tmp_path)
    imagenet(tmp_path)
    shutil.rmtree(tmp_path / "snow" / "2")
    next((tmp_path / "snow" / "3").rglob("*_00000004.JPEG")).unlink()
    data, zero = imagenet_c(tmp_path, size=16), torch.tensor([0])
    assert data.images("snow", 1, zero, zero).shape == (1, 3, 16, 16)
    with pytest.raises(DataError, match=r"there is no folder .*snow/2. Unpack it, or leave out this severity"):
        data.images("snow", 2, zero, zero)
    with pytest.raises(DataError, match=r"snow/3 .* differ in 1, such as n02/ILSVRC2012_val_00000004.JPEG"):
        data.images("snow", 3, zero, zero)
    shutil.copytree(tmp_path / "fog", tmp_path / "weather" / "fog")
    with pytest.raises(DataError, match="fog must be there once; got"):
        imagenet_c(tmp_path)


def test_a_spec_names_the_kind_and_the_folder(tmp_path: Path) -> None:
    assert corrupted(f"cifar-c:{cifar(tmp_path)}").corruptions == ("fog", "snow")
    folder = imagenet(tmp_path / "c", "fog")
    assert corrupted(f"imagenet-c:{folder}").images("fog", 1, ROWS[:1], torch.tensor([2])).shape == (1, 3, 224, 224)
    assert corrupted(f"imagenet-c:{folder}", size=9).images("fog", 1, ROWS[:1], torch.tensor([2])).shape[2:] == (9, 9)
    with pytest.raises(DataError, match=r"no such kind of corrupted images 'cifar_c'; did you mean 'cifar-c'"):
        corrupted(f"cifar_c:{tmp_path}")
    with pytest.raises(DataError, match=r"the folder must be given. Write imagenet-c:DIR"):
        corrupted("imagenet-c")
    with pytest.raises(ParameterError, match="size must be at least 1; got 0"):
        corrupted(f"imagenet-c:{folder}", size=0)
