"""Published sets are read from the files that their authors gave out, written here in small; damage is a DataError."""

import fcntl
import gzip
import hashlib
import pickle
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision.datasets as tv
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from hardy.data import load_data
from hardy.data.sets import DIGITS, SETS
from hardy.errors import DataError

N = {"train": 30, "test": 11}
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CLASSES = {"cifar100": 100, "emnist": 47}  # the others have 10
Image = np.ndarray
Want = dict[str, tuple[Image, Image]]  # by part: images n h w c and labels


def md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes()).hexdigest()  # noqa: S324


def content(name: str) -> Want:
    """Make images that differ in every pixel's place, and labels of every class that fit."""
    rng = np.random.default_rng(len(name))
    side, channels = {"stl10": (96, 3), "cifar10": (32, 3), "cifar100": (32, 3), "svhn": (32, 3)}.get(name, (28, 1))
    classes = CLASSES.get(name, 10)
    return {
        part: (rng.integers(0, 256, (n, side, side, channels), np.uint8), np.arange(n) % classes)
        for part, n in N.items()
    }


def write_cifar(root: Path, want: Want, patch: pytest.MonkeyPatch, *, name: str = "cifar10") -> None:
    cls, files, key, names_key = (
        (tv.CIFAR10, ("data_batch_1", "test_batch", "batches.meta"), "labels", "label_names")
        if name == "cifar10"
        else (tv.CIFAR100, ("train", "test", "meta"), "fine_labels", "fine_label_names")
    )
    folder = root / cls.base_folder
    folder.mkdir(parents=True)
    names = list(CIFAR10) if name == "cifar10" else [f"fine {i}" for i in range(100)]
    for file, (x, y) in zip(files[:2], want.values(), strict=True):
        flat = np.ascontiguousarray(x.transpose(0, 3, 1, 2)).reshape(len(x), -1)  # red, green, blue planes
        (folder / file).write_bytes(pickle.dumps({"data": flat, key: y.tolist()}))
    (folder / files[2]).write_bytes(pickle.dumps({names_key: names}))
    sums = [md5(folder / file) for file in files]
    patch.setattr(cls, "train_list", [[files[0], sums[0]]])
    patch.setattr(cls, "test_list", [[files[1], sums[1]]])
    patch.setattr(cls, "meta", {"filename": files[2], "key": names_key, "md5": sums[2]})


def write_svhn(root: Path, want: Want, patch: pytest.MonkeyPatch) -> None:
    root.mkdir(parents=True, exist_ok=True)
    lists = {}
    for part, (x, y) in want.items():
        file = root / f"{part}_32x32.mat"
        savemat(file, {"X": x.transpose(1, 2, 3, 0), "y": np.where(y == 0, 10, y)[:, None].astype(np.uint8)})
        lists[part] = [f"http://localhost/{file.name}", file.name, md5(file)]
    patch.setattr(tv.SVHN, "split_list", lists)


def write_stl10(root: Path, want: Want, patch: pytest.MonkeyPatch) -> None:
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    lists: dict[str, list[list[str]]] = {}
    for part, (x, y) in want.items():
        (folder / f"{part}_X.bin").write_bytes(x.transpose(0, 3, 2, 1).tobytes())  # planes, column after column
        (folder / f"{part}_y.bin").write_bytes((y + 1).astype(np.uint8).tobytes())
        lists[part] = [[f"{part}_{kind}.bin", md5(folder / f"{part}_{kind}.bin")] for kind in "Xy"]
    patch.setattr(tv.STL10, "train_list", [*lists["train"], ["unlabeled_X.bin", "which is not there"]])
    patch.setattr(tv.STL10, "test_list", lists["test"])


def idx(x: Image) -> bytes:
    """Write the format of MNIST: two zeros, type, dimensions; sizes as big-endian 32-bit numbers; bytes."""
    return bytes([0, 0, 8, x.ndim]) + np.array(x.shape, ">u4").tobytes() + x.astype(np.uint8).tobytes()


def write_mnist(root: Path, want: Want, patch: pytest.MonkeyPatch, *, cls: str = "MNIST") -> None:
    folder = root / cls / "raw"
    folder.mkdir(parents=True)
    for part, (x, y) in want.items():
        stem = f"emnist-balanced-{part}" if cls == "EMNIST" else {"train": "train", "test": "t10k"}[part]
        pixels = x[..., 0].transpose(0, 2, 1) if cls == "EMNIST" else x[..., 0]
        (folder / f"{stem}-images-idx3-ubyte").write_bytes(idx(pixels))
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(idx(y))


Writer = Callable[[Path, Want, pytest.MonkeyPatch], None]
WRITERS: dict[str, Writer] = {
    "cifar10": write_cifar,
    "cifar100": partial(write_cifar, name="cifar100"),
    "svhn": write_svhn,
    "stl10": write_stl10,
    "mnist": write_mnist,
    "fashion_mnist": partial(write_mnist, cls="FashionMNIST"),
    "kmnist": partial(write_mnist, cls="KMNIST"),
    "emnist": partial(write_mnist, cls="EMNIST"),
}
SUMMED = ("cifar10", "cifar100", "svhn", "stl10")  # whose files torchvision compares with MD5 sums


@pytest.mark.parametrize("name", SETS)
def test_every_image_comes_out_where_it_was(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    want = content(name)
    WRITERS[name](tmp_path, want, monkeypatch)
    for part, (x, y) in want.items():
        if name == "cifar100" and part == "train":
            continue  # 30 images of 100 classes
        got = load_data(f"{name}:{tmp_path}", split="test" if part == "test" else "val", val_fraction=0.9)
        assert got.num_classes == CLASSES.get(name, 10) and got.name == f"{name}:{tmp_path}"
        assert np.array_equal(got.x.numpy(), np.moveaxis(x, 3, 1)[got.index]) and got.x.is_contiguous()
        assert got.y.tolist() == y[got.index].tolist()
        assert part == "train" or got.index.tolist() == list(range(11))


def test_classes_have_the_names_of_the_authors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {}
    for name, write in WRITERS.items():
        write(tmp_path / name, content(name), monkeypatch)
        names[name] = load_data(f"{name}:{tmp_path / name}").class_names
    assert names["mnist"] == names["svhn"] == DIGITS and names["cifar10"] == CIFAR10
    assert names["cifar100"][41] == "fine 41" and names["stl10"][2] == "car"
    assert names["fashion_mnist"][9] == "Ankle boot" and names["kmnist"][3] == "tsu"
    assert names["emnist"][:11] == (*DIGITS, "A") and names["emnist"][-1] == "t"


@pytest.mark.parametrize("name", SETS)
def test_an_npz_of_the_name_goes_first(name: str, tmp_path: Path) -> None:
    np.savez(tmp_path / f"{name}.npz", x_test=np.zeros((2, 4, 5), np.uint8), y_test=np.arange(2))
    assert load_data(f"{name}:{tmp_path}", download=True).shape == (1, 4, 5)
    assert not (tmp_path / ".download.lock").exists()


@pytest.mark.parametrize("name", SETS)
def test_what_is_not_there_says_where_it_belongs_and_how_to_get_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=f"data '{name}': the folder must be given. Write {name}:DIR"):
        load_data(name)
    with pytest.raises(DataError, match=rf"must hold {name}.npz or .*; there is no {tmp_path}/.*--download") as caught:
        load_data(f"{name}:{tmp_path}")
    assert "://" in str(caught.value)
    WRITERS[name](tmp_path, content(name), monkeypatch)
    file = sorted(p for p in tmp_path.rglob("*") if "test" in p.name or "t10k" in p.name)[0]
    file.unlink()
    with pytest.raises(DataError, match=f"there is no {file}"):
        load_data(f"{name}:{tmp_path}")
    assert not list(tmp_path.rglob("*.lock"))


@pytest.mark.parametrize("name", SUMMED)
def test_other_files_than_the_published_ones_are_not_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    WRITERS[name](tmp_path, content(name), monkeypatch)
    file = max(tmp_path.rglob("*train*") if name != "cifar10" else tmp_path.rglob("data_batch_1"), key=lambda p: p.name)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DataError, match=f"{file} must be the published file; its MD5 sum is another"):
        load_data(f"{name}:{tmp_path}")


class Bomb:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.mkdir, (self.file,)


def test_a_pickle_in_the_place_of_cifar_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, content("cifar10"), monkeypatch)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(Bomb(tmp_path / "went off")))
    with pytest.raises(DataError, match="MD5"):
        load_data(f"cifar10:{tmp_path}")
    assert not (tmp_path / "went off").exists()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("mnist", {"y": np.array([3, 10])}, r"mnist:.* test: labels must be in 0 .. 9 .* got 10 at row 1"),
        ("svhn", {"y": np.array([3, 11])}, r"svhn:.* test: labels must be in 0 .. 9 .* got 11 at row 1"),
        ("stl10", {"y": np.array([0, -1])}, "stl10:.* test: labels must be in 0 .. 9 .* got 255 at row 1"),
        ("emnist", {"y": np.array([0, 47])}, r"test: labels must be in 0 .. 46 .* got 47 at row 1"),
        ("mnist", {"y": np.array([3, 3, 3])}, "test: has 2 images and 3 labels"),
        ("cifar10", {"y": np.array([3])}, "test: has 2 images and 1 labels"),
    ],
)
def test_labels_that_do_not_fit_are_named(
    name: str, change: dict[str, Image], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = content(name)
    want["test"] = (want["test"][0][:2], change["y"])
    WRITERS[name](tmp_path, want, monkeypatch)
    with pytest.raises(DataError, match=message):
        load_data(f"{name}:{tmp_path}", split="train")  # whatever part is wanted


def test_damaged_idx_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path, content("mnist"), monkeypatch)
    file = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    whole = file.read_bytes()
    for damaged in (whole[:-1], b"", whole[:7], b"\0\0\x07\x03" + whole[4:], b"\0\0\x08\x04" + whole[4:]):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=r"a file cannot be read .* Delete torchvision's MNIST/raw, and unpack"):
            load_data(f"mnist:{tmp_path}")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SETS)
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=15, deadline=None
)
@given(data=st.data())
def test_damage_anywhere_is_a_data_error(
    name: str, data: st.DataObject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / name
    shutil.rmtree(root, ignore_errors=True)
    want = content(name)
    WRITERS[name](root, {part: (x[:2], y[:2]) for part, (x, y) in want.items()}, monkeypatch)
    if name == "stl10" and data.draw(st.booleans()):
        for lists in ("train_list", "test_list"):  # so that the reader itself meets the damage; never for pickles
            monkeypatch.setattr(tv.STL10, lists, [[file, None] for file, _ in getattr(tv.STL10, lists)])
    file = data.draw(st.sampled_from(sorted(p for p in root.rglob("*") if p.is_file())))
    whole = file.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1) | st.integers(0, min(200, len(whole) - 1)))
    flipped = bytes([whole[at] ^ data.draw(st.integers(1, 255))])
    file.write_bytes(whole[:at] if data.draw(st.booleans()) else whole[:at] + flipped + whole[at + 1 :])
    try:
        got = load_data(f"{name}:{root}")
    except DataError as error:
        assert str(root) in str(error)  # noqa: PT017
    else:
        assert got.x.dtype == torch.uint8 and name not in {"cifar10", "cifar100", "svhn"}


def no_network(*_: object, **__: object) -> str:
    raise URLError("no route to host")


@pytest.mark.parametrize("name", SETS)
def test_without_a_network_the_error_says_what_to_put_where(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", no_network)
    with pytest.raises(
        DataError,
        match=rf"must be fetched from http.*failed \(.*no route .*By hand: put what lies there into {tmp_path}",
    ):
        load_data(f"{name}:{tmp_path}", download=True)
    shutil.rmtree(tmp_path)
    WRITERS[name](tmp_path, content(name), monkeypatch)
    assert len(load_data(f"{name}:{tmp_path}", download=True)) == 11  # nothing to fetch


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """Serve a folder on this machine: the folder and its address."""
    monkeypatch.setenv("no_proxy", "*")
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def pack(name: str, folder: Path, base: Path, patch: pytest.MonkeyPatch, address: str) -> None:
    """Put into ``folder`` what the authors serve, made of the layout below ``base``."""
    if name == "svhn":
        for file in base.iterdir():
            shutil.copy(file, folder)
        lists = {part: [f"{address}/{file}", file, sum_] for part, (_, file, sum_) in tv.SVHN.split_list.items()}
        patch.setattr(tv.SVHN, "split_list", lists)
    elif name == "mnist":
        for file in (base / "MNIST" / "raw").iterdir():
            (folder / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        resources = [(file, md5(folder / file)) for file, _ in tv.MNIST.resources]
        patch.setattr(tv.MNIST, "resources", resources)
        patch.setattr(tv.MNIST, "mirrors", [f"{address}/"])
    else:
        cls = {"cifar10": tv.CIFAR10, "stl10": tv.STL10}[name]
        with tarfile.open(folder / cls.filename, "w:gz") as tar:
            tar.add(base / cls.base_folder, cls.base_folder)
        patch.setattr(cls, "url", f"{address}/{cls.filename}")
        patch.setattr(cls, "tgz_md5", md5(folder / cls.filename))


@pytest.mark.parametrize("name", ["cifar10", "svhn", "stl10", "mnist"])
def test_what_is_not_there_is_fetched_when_asked_for(
    name: str, served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = served
    want = content(name)
    WRITERS[name](tmp_path / "made", want, monkeypatch)
    pack(name, folder, tmp_path / "made", monkeypatch, address)
    with pytest.raises(DataError, match="there is no"):
        load_data(f"{name}:{tmp_path / 'new'}")
    assert not (tmp_path / "new").exists()
    got = load_data(f"{name}:{tmp_path / 'new'}", download=True)
    assert np.array_equal(got.x.numpy(), np.moveaxis(want["test"][0], 3, 1))
    assert torch.equal(load_data(f"{name}:{tmp_path / 'new'}").x, got.x)


@pytest.mark.parametrize("name", ["cifar10", "stl10", "mnist"])
def test_an_archive_that_is_there_is_unpacked_without_a_network(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    WRITERS[name](tmp_path / "made", content(name), monkeypatch)
    place = tmp_path / "new" / ("MNIST/raw" if name == "mnist" else "")
    place.mkdir(parents=True)
    pack(name, place, tmp_path / "made", monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", no_network)
    with pytest.raises(DataError, match="--download"):
        load_data(f"{name}:{tmp_path / 'new'}")
    assert len(load_data(f"{name}:{tmp_path / 'new'}", download=True)) == 11


def test_a_damaged_download_is_an_error(
    served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = served
    write_svhn(tmp_path / "made", content("svhn"), monkeypatch)
    pack("svhn", folder, tmp_path / "made", monkeypatch, address)
    file = folder / "test_32x32.mat"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"must be fetched from .*, which failed \(File not found or corrupted"):
        load_data(f"svhn:{tmp_path / 'new'}", download=True)


def test_two_processes_fetch_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path, content("mnist"), monkeypatch)
    seen = []

    def download(self: tv.MNIST) -> None:
        with Path(self.root, ".download.lock").open("w") as other, refused():
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        seen.append(self.train)

    @contextmanager
    def refused() -> Iterator[None]:
        with pytest.raises(BlockingIOError):
            yield

    monkeypatch.setattr(tv.MNIST, "download", download)
    load_data(f"mnist:{tmp_path}", download=True)
    assert seen == [True, False]
    with Path(tmp_path, ".download.lock").open("w") as lock:  # and it is free again
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    Path(tmp_path, ".download.lock").unlink()
    Path(tmp_path, ".download.lock").mkdir()
    monkeypatch.setattr(tv.MNIST, "download", lambda _: None)
    assert len(load_data(f"mnist:{tmp_path}", download=True)) == 11  # where none can be had, what is there is read
