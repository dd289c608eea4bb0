"""What stays on the disk answers as what is in memory; batches are the same bit for bit, whoever reads them."""

import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional as tv

from hardy.data import ArrayData, Batches, StreamBatches, StreamData, load_data, make_batches, open_data, workers
from hardy.data.augment import draw, draw_boxes
from hardy.data.workers import auto_workers, named_worker_errors
from hardy.errors import DataError, ParameterError, TrainingError
from hardy.training.recipe import DataRecipe

N = 30
BOTH = ("crop", "flip")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images of many sizes, formats and modes."""
    root = tmp_path_factory.mktemp("mixed")
    rng = np.random.default_rng(0)
    for i in range(N):
        here = root / "train" / "abc"[i % 3]
        here.mkdir(parents=True, exist_ok=True)
        h, w = 16 + i % 5, 14 + i % 7
        image = Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8))
        if i == 4:
            image.convert("L").save(here / f"{i}.png")
        elif i == 5:
            image.convert("CMYK").save(here / f"{i}.jpg")
        elif i == 6:
            image.convert("RGBA").save(here / f"{i}.png")
        else:
            image.save(here / f"{i}.{('png', 'jpg')[i % 2]}")
    return root


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (N, 10, 12, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("npz") / "data.npz"
    np.savez(path, x_train=x, y_train=np.arange(N) % 3)
    return path


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


def pair(spec: str, count: int = 0, **options: object) -> tuple[ArrayData, StreamData]:
    """The same images in memory and on the disk."""
    resident = load_data(spec, split="train", **options)  # type: ignore[arg-type]
    streamed = open_data(spec, split="train", stream=True, workers=count, **options)  # type: ignore[arg-type]
    assert isinstance(streamed, StreamData)
    return resident, streamed


def same(a: Iterator[tuple[Tensor, ...]], b: Iterator[tuple[Tensor, ...]]) -> int:
    """Compare batches bit for bit; give their number."""
    count = 0
    for ours, theirs in zip(a, b, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.dtype == other.dtype and one.stride() == other.stride() and torch.equal(one, other)
        count += 1
    return count


@pytest.mark.parametrize("count", [0, 1, 2])
def test_batches_from_the_disk_are_those_from_memory_bit_for_bit(count: int, mixed: Path) -> None:
    resident, streamed = pair(f"folder:{mixed}", count, size=12, val_fraction=0.2)
    a = Batches(resident, batch_size=7, seed=3)
    b = StreamBatches(streamed, batch_size=7, seed=3)
    assert len(a) == len(b) == b.steps_per_epoch == 3
    for epoch in (0, 1):
        assert same(a.epoch(epoch), b.epoch(epoch)) == 3
    assert same(a.epoch(1, start=2), b.epoch(1, start=2)) == 1
    assert same(a.epoch(1, start=3), b.epoch(1, start=3)) == 0
    b.close()
    assert same(a.epoch(4), b.epoch(4)) == 3  # workers come back when they are needed
    b.close()


@pytest.mark.parametrize("augment", [(), ("flip",), ("crop",), ("resized_crop", "flip")])
def test_every_augmentation_layout_and_share_is_the_same_as_in_memory(augment: tuple[str, ...], npz: Path) -> None:
    resident, streamed = pair(f"npz:{npz}", val_fraction=0.0)
    for more in ({}, {"shuffle": False, "drop_last": False}, {"channels_last": True}, {"rank": 1, "ranks": 3}):
        make = partial(Batches, resident), partial(StreamBatches, streamed)
        a, b = (one(batch_size=8, seed=1, augment=augment, **more) for one in make)
        assert same(a.epoch(2), b.epoch(2)) == (4 if "drop_last" in more else 3)


def test_resized_crops_of_files_come_out_of_whole_pictures_as_torchvision_cuts_them(mixed: Path) -> None:
    _, data = pair(f"folder:{mixed}", size=9, val_fraction=0.0)
    files = sorted((mixed / "train").rglob("*.*"), key=lambda p: p.relative_to(mixed).parts)
    batches = StreamBatches(data, batch_size=N, seed=0, augment=("resized_crop", "flip"), shuffle=False)
    x, _, key = next(batches.epoch(0))
    _, _, flip = draw(key, pad=0, flip=True)
    for i, file in enumerate(files):
        with Image.open(file) as image:
            picture = image.convert("RGB")
        box = draw_boxes(key[i : i + 1], height=picture.height, width=picture.width)[0].tolist()
        want = tv.resized_crop(picture, *box, size=[9, 9])
        want = tv.horizontal_flip(want) if flip[i] else want
        assert torch.equal((x[i] * 255).round().byte(), tv.pil_to_tensor(want)), file
    assert 0 < int(flip.sum()) < N


def test_it_answers_as_data_in_memory(mixed: Path) -> None:
    resident, streamed = pair(f"folder:{mixed}", 1, size=12, val_fraction=0.1, limit=20)
    mask = resident.y == 1
    for a, b in (
        (resident, streamed),
        (resident.subset(mask), streamed.subset(mask)),
        (resident.subset(torch.tensor([5, 2])), streamed.subset(torch.tensor([5, 2]))),
        (resident.limit(7, seed=4), streamed.limit(7, seed=4)),
        (resident.limit(None), streamed.limit(None)),
    ):
        assert torch.equal(a.y, b.y) and torch.equal(a.index, b.index) and len(a) == len(b)
        assert (a.class_names, a.name, a.split, a.shape, a.num_classes) == (
            *(b.class_names, b.name, b.split),
            *(b.shape, b.num_classes),
        )
        assert torch.equal(a.images(), b.images())
        assert same(a.batches(6), b.batches(6)) == -(-len(a) // 6)
        assert same(iter(a), iter(b)) == 1
    assert streamed.check_classes() is streamed
    with pytest.raises(DataError, match="every class must have an image to train on; none for 'a', 'c'"):
        streamed.subset(mask).check_classes()
    for n in (0, -1):
        with pytest.raises(ParameterError, match="batch_size must be at least 1"):
            next(streamed.batches(n))
        with pytest.raises(ParameterError, match="limit must be at least 1"):
            streamed.limit(n)
    with pytest.raises(DataError, match="at least one image"):
        streamed.subset(resident.y == 7)


def test_the_kind_of_batches_follows_from_the_kind_of_data(npz: Path) -> None:
    resident, streamed = pair(f"npz:{npz}")
    made = [make_batches(data, batch_size=4, seed=0, augment=BOTH) for data in (resident, streamed)]
    assert [type(one) for one in made] == [Batches, StreamBatches]
    assert same(made[0].epoch(0), made[1].epoch(0)) == 6
    made[0].close()  # does nothing, for those who hold either


def test_an_epoch_may_be_abandoned_but_not_be_read_beside_another(npz: Path) -> None:
    resident, streamed = pair(f"npz:{npz}", 2)
    a, b = Batches(resident, batch_size=4, seed=0), StreamBatches(streamed, batch_size=4, seed=0)
    first = b.epoch(0)
    next(first)
    assert same(a.epoch(1), b.epoch(1)) == 6  # what the workers had ready of the first is not among it
    with pytest.raises(ParameterError, match="an epoch must end before another begins"):
        next(first)
    b.close()


def test_the_global_generator_is_left_alone(npz: Path) -> None:
    _, streamed = pair(f"npz:{npz}")
    before = torch.get_rng_state()
    list(StreamBatches(streamed, batch_size=4, seed=0).epoch(0))
    list(streamed.batches(4))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("count", [0, 1])
def test_a_file_that_goes_bad_while_training_is_named(count: int, tmp_path: Path) -> None:
    for i in range(8):
        (tmp_path / "train" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "train" / "ab"[i % 2] / f"{i}.png")
    _, data = pair(f"folder:{tmp_path}", count, size=8)
    bad = tmp_path / "train" / "b" / "3.png"
    bad.write_bytes(bad.read_bytes()[:40])
    for augment in (BOTH, ("resized_crop",)):
        batches = StreamBatches(data, batch_size=2, seed=0, augment=augment)
        with pytest.raises(DataError, match=r"every image must be readable.*b/3\.png cannot be read") as caught:
            list(batches.epoch(0))
        assert "Traceback" not in str(caught.value)
        batches.close()
    with pytest.raises(DataError, match=r"b/3\.png cannot be read"):
        list(data.batches(4))


@pytest.mark.parametrize("when", ["while waiting for a batch", "between two batches"])
def test_a_dead_worker_ends_the_epoch_with_advice(when: str, npz: Path) -> None:
    _, data = pair(f"npz:{npz}", 1)
    batches = StreamBatches(data.subset(torch.arange(27).repeat(20)), batch_size=4, seed=0)
    epoch = batches.epoch(0)
    next(epoch)
    (child,) = multiprocessing.active_children()

    def kill_and_go_on() -> None:
        with named_worker_errors():
            os.kill(child.pid or 0, signal.SIGKILL)
            for _ in epoch if when == "while waiting for a batch" else range(500):
                time.sleep(0.01)

    with pytest.raises(TrainingError, match=r"worker processes must stay alive; one died .*(signal|unexpectedly)"):
        kill_and_go_on()
    epoch.close()  # type: ignore[attr-defined]
    batches.close()


def test_other_errors_pass_and_other_exceptions_are_not_touched() -> None:
    for error in (RuntimeError("of another kind"), KeyError("DataLoader worker")):
        with pytest.raises(type(error)) as caught, named_worker_errors():
            raise error
        assert caught.value is error


def test_workers_leave_ctrl_c_to_the_main_process(npz: Path) -> None:
    resident, data = pair(f"npz:{npz}", 1)
    a, b = Batches(resident, batch_size=4, seed=0), StreamBatches(data, batch_size=4, seed=0)
    epoch = b.epoch(0)
    got = [next(epoch)]
    (child,) = multiprocessing.active_children()
    os.kill(child.pid or 0, signal.SIGINT)
    assert same(a.epoch(0), iter([*got, *epoch])) == 6 and child.is_alive()
    b.close()


def test_it_can_be_sent_to_a_process(mixed: Path, npz: Path) -> None:
    for spec, size in ((f"folder:{mixed}", 8), (f"npz:{npz}", None), ("digits", None), ("shapes:n=20", None)):
        _, data = pair(spec, size=size, limit=10)
        sent = pickle.dumps(data)
        assert len(sent) < 40_000 or spec == "digits"  # no images are sent, but those that are in memory
        rows = torch.tensor([3, 1])
        assert torch.equal(pickle.loads(sent).read(rows), data.read(rows))  # noqa: S301  (our own)


@pytest.mark.slow
def test_processes_that_start_afresh_read_the_same(npz: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "DataLoader", partial(DataLoader, multiprocessing_context="spawn"))
    resident, streamed = pair(f"npz:{npz}", 2)
    b = StreamBatches(streamed, batch_size=4, seed=0)
    assert same(Batches(resident, batch_size=4, seed=0).epoch(0), b.epoch(0)) == 6
    b.close()


@pytest.mark.parametrize(
    ("cores", "ranks", "count"), [(1, None, 0), (2, None, 1), (64, None, 8), (8, "2", 3), (4, "4", 0), (4, "junk", 3)]
)
def test_one_core_is_left_to_the_training(
    cores: int, ranks: str | None, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if ranks is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    assert auto_workers() == count


def test_numbers_of_workers_below_zero_are_refused(npz: Path) -> None:
    with pytest.raises(ParameterError, match="workers must be at least 0; got -1"):
        open_data(f"npz:{npz}", split="train", stream=True, workers=-1)
    with pytest.raises(ParameterError, match=r'workers must be at least 0, or "auto"; got -2'):
        DataRecipe(name="digits", workers=-2)


@pytest.mark.gpu
def test_a_gpu_gets_the_same_batches(mixed: Path) -> None:
    resident, streamed = pair(f"folder:{mixed}", 2, size=12)
    a = Batches(resident, batch_size=6, seed=0, device="cuda", channels_last=True)
    b = StreamBatches(streamed, batch_size=6, seed=0, device="cuda", channels_last=True)
    assert same(a.epoch(0), b.epoch(0)) == 4
    b.close()
