"""Image files: read in any process; what is damaged is found, named, and left out when asked for, and nothing else."""

import io
import logging
import multiprocessing
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from hardy.data import Rows, Split, load_data
from hardy.data.load import LOADERS, open_rows
from hardy.data.pictures import DAMAGED, TOLD, Bad, FolderReader, decode, leave_out, verify
from hardy.errors import DataError

N = 12  # images of a class


def tree(root: Path, *, n: int = N, size: tuple[int, int] = (9, 8)) -> str:
    """Write two classes below train and test, every image of one colour of its own."""
    for p, part in enumerate(("train", "test")):
        for c, name in enumerate(("cat", "dog")):
            (root / part / name).mkdir(parents=True)
            for i in range(n):
                colour = (100 * p + 50 * c + i, 7, 200)
                Image.new("RGB", size, colour).save(root / part / name / f"{i:02}.png")
    return f"folder:{root}"


def spoil(root: Path, *names: str) -> list[Path]:
    """Cut off files in the middle."""
    files = [root / name for name in names]
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return files


def read(rows: Rows) -> Tensor:
    return rows.read(torch.arange(len(rows.y)))


def reader(rows: Rows) -> FolderReader:
    assert isinstance(rows.read, FolderReader)
    return rows.read


@pytest.mark.parametrize("start", ["fork", "forkserver", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork")
@pytest.mark.slow
def test_readers_work_in_other_processes(start: str, tmp_path: Path) -> None:
    specs = [tree(tmp_path), "digits", "shapes:n=20,n_test=20", npz(tmp_path)]
    chosen = [open_rows(spec, split="train", limit=10) for spec in specs]
    with multiprocessing.get_context(start).Pool(1) as pool:
        for rows, x in zip(chosen, pool.map(read, chosen), strict=True):
            assert torch.equal(x, read(rows)) and len(x) == 10


def npz(root: Path) -> str:
    x = np.random.default_rng(0).integers(0, 256, (20, 4, 5, 3), np.uint8)
    np.savez(root / "a.npz", x_train=x, y_train=np.arange(20) % 2)
    return f"npz:{root / 'a.npz'}"


def test_every_reader_can_be_sent_to_a_worker(tmp_path: Path) -> None:
    for spec in (tree(tmp_path), "digits", "shapes:n=20,n_test=20", npz(tmp_path)):
        assert spec.partition(":")[0] in LOADERS
        rows = open_rows(spec, split="train", limit=10).take(torch.tensor([4, 2, 2]))
        again = pickle.loads(pickle.dumps(rows))  # noqa: S301  (our own)
        assert torch.equal(read(again), read(rows)) and torch.equal(again.index, rows.index)
        assert again.class_names == rows.class_names


def test_a_selection_of_a_folder_reads_its_own_pictures(tmp_path: Path) -> None:
    rows = open_rows(tree(tmp_path), split="train", val_fraction=0.25, seed=1).take(torch.tensor([5, 0]))
    got = read(rows)
    for i in range(2):
        picture = reader(rows).picture(i)
        assert picture.mode == "RGB" and picture.size == (9, 8)
        assert np.array_equal(np.asarray(picture).transpose(2, 0, 1), got[i].numpy())
        assert reader(rows).path(i).is_file()


def test_pictures_have_the_size_of_their_file_whatever_size_is_wanted(tmp_path: Path) -> None:
    spec = tree(tmp_path)
    Image.new("L", (30, 20), 77).save(tmp_path / "train" / "cat" / "00.png")
    rows = open_rows(spec, split="train", size=6, val_fraction=0.0)
    picture = reader(rows).picture(0)
    assert picture.size == (30, 20) and picture.mode == "RGB" and picture.getpixel((3, 3)) == (77, 77, 77)
    assert read(rows).shape == (24, 3, 6, 6)
    with pytest.raises(DataError, match=r"cat/01.png is 8x9, not 20x30: set size"):
        load_data(spec, split="train", val_fraction=0.0)


def test_names_that_are_no_text_are_read_and_shown(tmp_path: Path) -> None:
    spec = tree(tmp_path)
    try:
        odd = tmp_path / "test" / "cat" / b"b\xff\nd.png".decode("utf-8", "surrogateescape")
        odd.write_bytes((tmp_path / "test" / "cat" / "00.png").read_bytes())
    except OSError:
        pytest.skip("this file system has no such names")
    assert len(load_data(spec)) == 25
    odd.write_bytes(b"")
    with pytest.raises(DataError, match=r"b\\udcff\\nd.png' cannot be read"):
        load_data(spec)
    assert load_data(spec, skip_bad=True).skipped[0].isprintable()


def test_one_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    rows = open_rows(tree(tmp_path))
    (file,) = spoil(tmp_path, "test/dog/03.png")
    with pytest.raises(DataError, match=rf"every image must be readable; {file} cannot be read \("):
        reader(rows).picture(N + 3)
    file.unlink()
    with pytest.raises(DataError, match=rf"{file} cannot be read \(No such file"):
        reader(rows).picture(N + 3)


def test_a_link_that_leads_nowhere_is_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    spec = tree(tmp_path)
    link = tmp_path / "test" / "cat" / "link.png"
    link.symlink_to(tmp_path / "test" / "cat" / "00.png")
    assert len(load_data(spec)) == 25
    link.unlink()
    link.symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match=r"link.png cannot be read \(No such file"):
        load_data(spec)


KINDS = {
    "jpg": {},
    "progressive.jpg": {"progressive": True},
    "png": {},
    "bmp": {},
    "ppm": {},
    "webp": {},
    "tif": {"compression": "tiff_lzw"},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_verifying_finds_what_decoding_finds_and_nothing_else_is_raised(kind: str, seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)  # noqa: S311
    x = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), np.uint8)
    file = tmp_path / f"a.{kind}"
    Image.fromarray(x).resize((50, 60), Image.Resampling.BICUBIC).save(file, **KINDS[kind])
    raw = bytearray(file.read_bytes())
    if draw.random() < 0.3:
        del raw[draw.randrange(len(raw)) :]
    for _ in range(draw.choice((0, 1, 1, 9)) if raw else 0):
        raw[draw.randrange(len(raw)) if draw.random() < 0.5 else draw.randrange(min(len(raw), 300))] = draw.randrange(
            256
        )
    file.write_bytes(raw)
    rows = Rows(
        torch.zeros(1, dtype=torch.int64),
        torch.zeros(1, dtype=torch.int64),
        ("a",),
        "toy",
        FolderReader(tmp_path, np.array([file.name.encode()]), None, "toy"),
    )
    try:
        decode(file, None)
    except DAMAGED:
        assert [bad.file for bad in verify(rows)] == [file]
    else:
        assert verify(rows) == []


def test_verifying_names_files_in_order_and_has_nothing_to_say_of_arrays(tmp_path: Path) -> None:
    rows = open_rows(tree(tmp_path, n=50))
    assert verify(rows) == [] and verify(open_rows("digits")) == []
    files = spoil(tmp_path, "test/cat/03.png", "test/cat/31.png", "test/cat/32.png", "test/dog/49.png")
    found = verify(rows)
    assert [bad.position for bad in found] == [3, 31, 32, 99] and [bad.file for bad in found] == files
    assert all("cannot be read" in str(bad) for bad in found)
    assert [bad.position for bad in verify(rows.take(torch.tensor([99, 3, 5])))] == [0, 1]


@pytest.mark.parametrize("size", [None, 5])
def test_images_left_out_change_no_other(size: int | None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec = tree(tmp_path)
    whole = {
        s: load_data(spec, split=s, seed=2, val_fraction=0.25, limit=10, size=size) for s in ("train", "val", "test")
    }
    parts: tuple[Split, ...] = ("train", "test")
    chosen = {part: open_rows(spec, split=part, seed=2, val_fraction=0.25, limit=10) for part in parts}
    lost = [reader(rows).path(i) for rows, i in ((chosen["train"], 0), (chosen["train"], 7), (chosen["test"], 4))]
    spoil(tmp_path, *(str(file.relative_to(tmp_path)) for file in lost))
    with pytest.raises(DataError, match="every image must be readable"):
        load_data(spec, split="train", seed=2, val_fraction=0.25, limit=10, size=size)
    caplog.clear()
    for split, want in whole.items():
        got = load_data(spec, split=split, seed=2, val_fraction=0.25, limit=10, size=size, skip_bad=True)
        kept = torch.isin(want.index, got.index)
        assert torch.equal(got.index, want.index[kept]) and torch.equal(got.x, want.x[kept])
        assert torch.equal(got.y, want.y[kept]) and len(got.skipped) == int((~kept).sum())
        assert (split == "val") == (got.skipped == ()) and got.x.is_contiguous()
        again = load_data(spec, split=split, seed=2, val_fraction=0.25, limit=10, size=size, skip_bad=True)
        assert torch.equal(again.x, got.x) and again.skipped == got.skipped
        assert got.subset(got.y == 1).skipped == got.skipped
    assert [str(file) in line for file, line in zip(lost, caplog.messages[1:3], strict=False)] == [True, True]
    assert f"{spec}: left out 2 of 10 images that cannot be read" in caplog.messages[0]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_the_size_of_all_is_that_of_the_first_that_can_be_read(tmp_path: Path) -> None:
    spec = tree(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (30, 30, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "test" / "cat" / "00.png")
    spoil(tmp_path, "test/cat/00.png")
    with Image.open(tmp_path / "test" / "cat" / "00.png") as image:
        assert image.size == (30, 30)  # as its header still says
    assert load_data(spec, skip_bad=True).shape == (3, 8, 9)
    Image.new("RGB", (4, 4)).save(tmp_path / "test" / "dog" / "00.png")
    with pytest.raises(DataError, match=r"dog/00.png is 4x4, not 8x9: set size"):  # which is not damage
        load_data(spec, skip_bad=True)


def test_a_whole_folder_in_ruins_is_an_error_all_the_same(tmp_path: Path) -> None:
    spec = tree(tmp_path)
    cats = [f"test/cat/{i:02}.png" for i in range(N)]
    spoil(tmp_path, *cats[:-1])
    assert len(load_data(spec, skip_bad=True)) == N + 1
    dog = (tmp_path / "test" / "dog" / "00.png").read_bytes()
    spoil(tmp_path, "test/dog/00.png")
    assert len(load_data(spec, skip_bad=True)) == N  # half of them
    (tmp_path / "test" / "dog" / "00.png").write_bytes(dog)
    spoil(tmp_path, cats[-1])
    with pytest.raises(DataError, match=r"every class must keep an image; none of 'cat' can be read, such as .*cat/00"):
        load_data(spec, skip_bad=True)
    spoil(tmp_path, "test/dog/00.png")
    with pytest.raises(
        DataError, match=r"at most half of the images may be left out; 13 of 24 cannot be read, such as"
    ):
        load_data(spec, skip_bad=True)
    spoil(tmp_path, *(f"test/dog/{i:02}.png" for i in range(1, N)))
    with pytest.raises(DataError, match="24 of 24 cannot be read"):
        load_data(spec, skip_bad=True)


def test_many_are_counted_and_the_first_are_named(caplog: pytest.LogCaptureFixture) -> None:
    n = 4 * TOLD
    rows = Rows(
        torch.zeros(n).long(), torch.arange(n), ("a",), "toy", FolderReader(Path(), np.array([b"a"] * n), None, "")
    )
    bad = [Bad(2 * i, Path(f"{2 * i}.png"), "cannot be read (why)") for i in range(TOLD + 5)]
    kept, lines = leave_out(rows, bad)
    assert kept.index.tolist() == sorted({*range(n)} - {b.position for b in bad})
    assert lines[3] == "6.png cannot be read (why)" and len(lines) == TOLD + 5
    assert len(caplog.messages) == TOLD + 2 and caplog.messages[-1] == "left out: and 5 more"
    assert leave_out(rows, []) == (rows, ())


def test_huge_pictures_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    spec = tree(tmp_path)
    head = io.BytesIO()
    Image.new("L", (1, 1)).save(head, "PNG")
    raw = bytearray(head.getvalue())
    raw[16:24] = (60_000).to_bytes(4, "big") * 2
    (tmp_path / "test" / "cat" / "05.png").write_bytes(raw)
    with pytest.raises(DataError, match=r"cat/05.png cannot be read"):
        load_data(spec)
