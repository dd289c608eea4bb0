"""Cue-conflict images: both formats, which outputs stand for which class, and errors that say so."""

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hardy.data import CueConflict, cue_conflict
from hardy.data.cue_classes import CLASSES, IMAGENET, outputs_of
from hardy.errors import DataError

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NAMES = ("bear", "boat", "car", "cat", "dog")  # of the file made here
PAIRS = [(s, t) for s in range(5) for t in range(5)]  # shape, texture; five without a conflict


def file(folder: Path, **changes: Any) -> Path:
    x = np.zeros((25, 16, 16, 3), np.uint8)
    x[..., 0] = np.arange(25)[:, None, None]
    labels = np.array(PAIRS, np.uint8)
    arrays = {"x16": x, "x8": x[:, ::2, ::2] + 100, "shape": labels[:, 0], "texture": labels[:, 1]}
    arrays |= {"class_names": np.array(NAMES)} | changes
    np.savez(folder / "cue.npz", **{key: value for key, value in arrays.items() if value is not None})
    return folder / "cue.npz"


def folder(root: Path, names: tuple[str, ...] = ("cat1-dog2", "cat3-cat1", "dog2-car10", "boat4-cat1")) -> Path:
    for i, name in enumerate(names):
        place = root / name.rstrip("0123456789").split("-")[0].split("_")[-1].rstrip("0123456789") / f"{name}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 12), (10 * i, 0, 200)).save(place)
    return root


def test_a_file_gives_the_images_whose_shape_and_texture_are_two_classes_of_the_model(tmp_path: Path) -> None:
    cue = cue_conflict(file(tmp_path), class_names=CIFAR10, size=8)
    want = [i for i, (s, t) in enumerate(PAIRS) if s != t and s and t]  # no bear in CIFAR-10
    assert (cue.x[:, 0, 0, 0] * 255).round().int().tolist() == [100 + i for i in want]
    assert cue.class_names == ("boat", "car", "cat", "dog") and cue.groups == ((8,), (1,), (3,), (5,))
    assert [(s + 1, t + 1) for s, t in zip(cue.shape.tolist(), cue.texture.tolist(), strict=True)] == [
        PAIRS[i] for i in want
    ]
    assert (
        cue.x.dtype == torch.float32 and cue.x.shape == (12, 3, 8, 8) and cue.name == "cue-conflict (12 of 25 images)"
    )
    assert cue.mapping == "boat: ship; car: automobile; cat: cat; dog: dog; left out: bear"


@pytest.mark.parametrize(("size", "side", "first"), [(None, 16, 7), (16, 16, 7), (12, 12, 7), (8, 8, 107), (24, 24, 7)])
def test_the_next_larger_images_are_taken_and_resized(tmp_path: Path, size: int | None, side: int, first: int) -> None:
    cue = cue_conflict(file(tmp_path), class_names=CIFAR10, size=size)
    assert cue.x.shape[2:] == (side, side)
    assert round(float(cue.x[0, 0, 0, 0]) * 255) == first  # row 7 is the first that is kept


def test_a_folder_is_read_by_its_names(tmp_path: Path) -> None:
    cue = cue_conflict(folder(tmp_path), class_names=CIFAR10)
    assert cue.class_names == ("boat", "car", "cat", "dog")
    assert cue.shape.tolist() == [0, 2, 3] and cue.texture.tolist() == [2, 3, 1]  # boat4-cat1, cat1-dog2, dog2-car10
    assert (cue.x[:, 0, 5, 5] * 255).round().int().tolist() == [30, 0, 20]
    small = cue_conflict(str(tmp_path), class_names=CIFAR10, size=8)
    assert small.x.shape == (3, 3, 8, 8) and small.name == "cue-conflict (3 of 4 images)"
    longer = folder(tmp_path / "more", ("0001_cl_dnn_0_cat_00_cat7-dog1", "dog1-cat1"))  # as behavioural data name them
    assert cue_conflict(longer, class_names=CIFAR10).x.shape[0] == 2


def test_outputs_of_imagenet_are_those_of_the_lists() -> None:
    found, how = outputs_of(CLASSES, [str(i) for i in range(1000)])
    assert found == IMAGENET and "Geirhos" in how
    from torchvision.models._meta import _IMAGENET_CATEGORIES as NAMED

    assert [NAMED[i] for i in IMAGENET["car"]] == ["beach wagon", "convertible", "sports car"]
    for name in ("bear", "boat", "bottle", "chair", "clock", "elephant", "keyboard"):
        told = [NAMED[i].lower() for i in IMAGENET[name]]
        rest = {"canoe", "yawl", "throne", "water jug", "whiskey jug"}
        assert all(name in each or each in rest for each in told), name
    flat = [i for group in IMAGENET.values() for i in group]
    assert len(flat) == len(set(flat)) == 207 and max(flat) < 1000
    assert (len(IMAGENET["bird"]), len(IMAGENET["dog"]), len(IMAGENET["truck"])) == (49, 109, 8)
    dogs = [NAMED[i] for i in (IMAGENET["dog"][0], IMAGENET["dog"][-1])]
    assert dogs == ["Japanese spaniel", "Mexican hairless"] and NAMED[IMAGENET["bird"][0]] == "hen"


def test_names_match_whatever_their_case_and_groups_replace_them(tmp_path: Path) -> None:
    found, _ = outputs_of(CLASSES, ["Car", "automobile ", "TRUCK", "boot"])
    assert found == {"car": (0, 1), "truck": (2,)}
    cifar, _ = outputs_of(CLASSES, CIFAR10)
    assert set(cifar) == {"airplane", "bird", "boat", "car", "cat", "dog", "truck"}
    own = cue_conflict(file(tmp_path), class_names=["tabby", "siamese", "poodle"], groups={"dog": [2], "cat": [1, 0]})
    assert own.groups == ((1, 0), (2,)) and own.class_names == ("cat", "dog") and len(own.x) == 2
    assert own.mapping == "cat: siamese, tabby; dog: poodle; left out: bear, boat, car"
    with pytest.raises(DataError, match=r"got \['cat'\], no output for bear, boat, car, dog. Say which .*groups="):
        cue_conflict(file(tmp_path), class_names=["cat", "cow"])
    with pytest.raises(DataError, match="groups name 'dgo'; did you mean 'dog'"):
        cue_conflict(file(tmp_path), class_names=CIFAR10, groups={"dgo": [1], "cat": [2]})
    with pytest.raises(DataError, match=r"groups\['cat'\] must be outputs in 0 .. 9; got \[10\]"):
        cue_conflict(file(tmp_path), class_names=CIFAR10, groups={"dog": [1], "cat": [10]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": None}, "not a readable .npz file"),
        ({"class_names": np.array(["a", "b"])}, r"labels of .* must be in 0 .. 1; got up to 4"),
        ({"shape": np.zeros(24, np.uint8)}, "must be equally many integers"),
        ({"shape": np.zeros(25)}, "must be equally many integers"),
        ({"x16": None, "x8": None}, "must hold images x, x32 or the like"),
        ({"x16": np.zeros((24, 8, 8, 3), np.uint8)}, r"x16 of .* must be 25 RGB images; got \(24, 3, 8, 8\)"),
        ({"x16": np.zeros((25, 8, 8), np.uint8)}, r"must be 25 RGB images; got \(25, 1, 8, 8\)"),
        ({"x16": np.zeros((25, 8, 8, 3))}, "must be uint8"),
        ({"texture": np.array(PAIRS, np.uint8)[:, 0]}, "no image whose shape and texture are two of boat, car"),
    ],
)
def test_a_file_that_is_not_in_the_format_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        cue_conflict(file(tmp_path, **changes), class_names=CIFAR10)


def test_a_folder_that_is_not_in_the_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must be a folder or a .npz file; there is none"):
        cue_conflict(tmp_path / "nowhere", class_names=CIFAR10)
    with pytest.raises(DataError, match="must hold one folder per shape class, with images"):
        cue_conflict(tmp_path, class_names=CIFAR10)
    root = folder(tmp_path / "a")
    (root / "cat" / "cat1-dog2.png").rename(root / "dog" / "cat1-dog2.png")
    with pytest.raises(DataError, match=r"named after its shape, its folder.*; got dog/cat1-dog2.png"):
        cue_conflict(root, class_names=CIFAR10)
    root = folder(tmp_path / "b")
    (root / "cat" / "cat1-dog2.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"every image must be readable; .*cat1-dog2.png is not"):
        cue_conflict(root, class_names=CIFAR10)
    root = folder(tmp_path / "c")
    Image.new("RGB", (9, 9)).save(root / "cat" / "cat1-dog2.png")
    with pytest.raises(DataError, match=r"differ in size. Give size"):
        cue_conflict(root, class_names=CIFAR10)
    assert cue_conflict(root, class_names=CIFAR10, size=6).x.shape == (3, 3, 6, 6)
    np.save(tmp_path / "single.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"must be a .npz file; got a single array"):
        cue_conflict(tmp_path / "single.npy", class_names=CIFAR10)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.floats(0, 1), at=st.floats(0, 0.999), value=st.integers(0, 255))
def test_a_damaged_file_is_an_error_or_read(tmp_path: Path, cut: float, at: float, value: int) -> None:
    whole = file(tmp_path).read_bytes()
    damaged = bytearray(whole[: int(cut * len(whole))] if cut < 0.7 else whole)
    if damaged:
        damaged[int(at * len(damaged))] = value
    path = tmp_path / "damaged.npz"
    path.write_bytes(damaged)
    with contextlib.suppress(DataError):
        assert cue_conflict(path, class_names=CIFAR10, size=8).x.shape[1:] == (3, 8, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"texture": torch.tensor([1, 2, 0, 1])}, r"shape and texture integers \(n,\), n >= 1; got .*\(4,\)"),
        ({"x": torch.zeros(3, 1, 4, 4, dtype=torch.uint8)}, "x must be float n c h w"),
        ({"x": torch.zeros(3, 4, 4)}, "x must be float n c h w"),
        ({"texture": torch.tensor([1, 1, 0])}, "shape and texture of an image must differ"),
        ({"groups": ((0,), (1,))}, r"every class must have outputs in groups; got classes 0 .. 2 .* \[1, 1\]"),
        ({"groups": ((0,), (1,), ())}, "every class must have outputs"),
        ({"groups": ((0,), (1,), (1, 2))}, "an output must stand for one class"),
        ({"groups": ((0,), (-1,), (2,))}, "an output must stand for one class, and be at least 0"),
    ],
)
def test_cue_conflict_images_are_valid_from_the_start(changes: dict[str, Any], message: str) -> None:
    given = {"x": torch.zeros(3, 1, 4, 4), "shape": torch.tensor([0, 1, 2]), "texture": torch.tensor([1, 2, 0])}
    assert CueConflict(**given).groups == ()
    with pytest.raises(DataError, match=message):
        CueConflict(**(given | changes))


@pytest.mark.data
def test_the_published_images_have_their_counts() -> None:
    path = Path(os.environ["HARDY_DATA"]) / "cue_conflict.npz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    every = cue_conflict(path, class_names=[str(i) for i in range(1000)])
    assert every.x.shape == (1200, 3, 64, 64) and len(every.groups) == 16  # 80 of 1,280 have no conflict
    some = cue_conflict(path, class_names=CIFAR10, size=32)
    assert some.x.shape == (210, 3, 32, 32) and len(some.groups) == 7
    raw = np.load(path)
    row = next(i for i, name in enumerate(raw["names"]) if name == "airplane10-cat2.png")
    kept = [i for i in range(1280) if raw["class_names"][raw["shape"][i]] in some.class_names]
    kept = [i for i in kept if raw["class_names"][raw["texture"][i]] in some.class_names]
    kept = [i for i in kept if raw["shape"][i] != raw["texture"][i]]
    at = kept.index(row)
    assert np.array_equal((some.x[at] * 255).round().byte().permute(1, 2, 0).numpy(), raw["x32"][row])
    assert (some.class_names[some.shape[at]], some.class_names[some.texture[at]]) == ("airplane", "cat")
