"""Training from the disk gives the weights of training from memory, whatever reads the images."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hardy import io
from hardy.data import ArrayData, StreamData, open_data
from hardy.errors import ConfigError, DataError, ParameterError, TrainingError
from hardy.training import (
    DataRecipe,
    ModelRecipe,
    Progress,
    Recipe,
    TrainRecipe,
    load_recipe,
    load_training_data,
    train,
)

MODEL = ModelRecipe(name="cifar_resnet8", args={"width": 4})
WNIDS = ("n01440764", "n01443537", "n02102040")


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny folder laid out as ImageNet: many sizes, a gray, a CMYK and a transparent image. Classes are colours."""
    root = tmp_path_factory.mktemp("imagenet")
    rng = np.random.default_rng(0)
    for i in range(48):
        here = root / ("val" if i >= 42 else "train") / WNIDS[i % 3]
        here.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 120, (24 + i % 9, 20 + i % 13, 3), dtype=np.uint8)
        pixels[..., i % 3] += 120
        image, name = Image.fromarray(pixels), f"ILSVRC2012_{i:08}"
        match i:
            case 3:
                image.convert("L").save(here / f"{name}.JPEG")
            case 4:
                image.convert("CMYK").save(here / f"{name}.JPEG")
            case 5:
                image.convert("RGBA").save(here / f"{name}.png")
            case _:
                image.save(here / f"{name}.JPEG", quality=95)
    return root


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


def recipe(root: Path, *, epochs: int = 2, **data: Any) -> Recipe:
    options = {"name": f"imagenet:{root}", "size": 16, "val_fraction": 0.2, **data}
    return Recipe(model=MODEL, data=DataRecipe(**options), train=TrainRecipe(epochs=epochs, batch_size=8, lr=0.05))


def weights(folder: Path) -> dict[str, Tensor]:
    return io.read_tensors(folder / "model.safetensors")


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_training_from_the_disk_gives_the_weights_of_training_from_memory(imagenet: Path, tmp_path: Path) -> None:
    runs = {
        name: train(recipe(imagenet, **options), out=tmp_path / name)
        for name, options in {
            "memory": {"stream": False},
            "no worker": {"stream": True, "workers": 0},
            "two workers": {"stream": True, "workers": 2},
        }.items()
    }
    first = runs.pop("memory")
    assert first.history[-1]["val_accuracy"] >= 0
    for name, run in runs.items():
        assert same(weights(run.folder), weights(first.folder)), name
        for a, b in zip(run.history, first.history, strict=True):
            assert {k: v for k, v in a.items() if k != "seconds"} == {k: v for k, v in b.items() if k != "seconds"}


@pytest.mark.slow
def test_a_net_learns_from_resized_crops_of_files(imagenet: Path, tmp_path: Path) -> None:
    asked = recipe(imagenet, epochs=6, augment=("resized_crop", "flip"), workers=1)
    data, val = load_training_data(asked)
    assert isinstance(data, StreamData) and isinstance(val, ArrayData) and data.workers == 1
    assert (len(data), len(val), data.shape) == (34, 8, (3, 16, 16)) and data.class_names == WNIDS
    run = train(asked, out=tmp_path / "a")
    assert run.history[-1]["val_accuracy"] >= 0.75  # chance is a third
    resident = train(replace(asked, data=replace(asked.data, stream=False)), out=tmp_path / "b")
    assert resident.history[-1]["val_accuracy"] >= 0.75
    assert not same(weights(run.folder), weights(resident.folder))  # whole pictures against their centres


class StopError(Exception):
    """What the tests stop a training with."""


def stop_at(step: int) -> Callable[[Progress], None]:
    def on_progress(p: Progress) -> None:
        if p.step == step:
            raise StopError

    return on_progress


def test_a_stopped_run_resumes_to_the_same_weights_with_another_number_of_workers(
    imagenet: Path, tmp_path: Path
) -> None:
    asked = recipe(imagenet, stream=True, workers=1, augment=("resized_crop",))
    whole = train(asked, out=tmp_path / "whole")
    with pytest.raises(StopError):
        train(asked, out=tmp_path / "part", on_progress=stop_at(6))
    other = replace(asked, data=replace(asked.data, workers=0))
    assert same(weights(train(other, out=tmp_path / "part", resume=True).folder), weights(whole.folder))


def test_plain_objects_may_be_on_the_disk(imagenet: Path, tmp_path: Path) -> None:
    streamed, resident = (
        open_data(f"imagenet:{imagenet}", split="train", size=16, stream=stream, workers=0) for stream in (True, False)
    )
    runs = []
    for name, data in (("a", streamed), ("b", resident)):
        model = io.load_model("cifar_resnet8", num_classes=3, args={"width": 4}, seed=0)
        options = TrainRecipe(epochs=1, batch_size=8)
        runs.append(train(model, data, val_data=data, options=options, out=tmp_path / name))
    assert same(*(weights(run.folder) for run in runs))
    assert runs[0].history[0]["val_accuracy"] == runs[1].history[0]["val_accuracy"]
    assert load_recipe(runs[0].folder / "recipe.toml").data.name == f"imagenet:{imagenet}"


def test_a_worker_that_dies_stops_the_run_with_advice_and_it_resumes(imagenet: Path, tmp_path: Path) -> None:
    asked = recipe(imagenet, stream=True, workers=1)

    def kill(p: Progress) -> None:
        if p.step == 5:  # in the second epoch
            for child in multiprocessing.active_children():
                os.kill(child.pid or 0, signal.SIGKILL)
            time.sleep(0.5)

    with pytest.raises(TrainingError, match=r"worker processes must stay alive; one died"):
        train(asked, out=tmp_path / "part", on_progress=kill)
    resumed = train(asked, out=tmp_path / "part", resume=True)
    whole = train(replace(asked, data=replace(asked.data, stream=False)), out=tmp_path / "whole")
    assert same(weights(resumed.folder), weights(whole.folder))


def test_a_file_that_goes_bad_while_training_is_named(imagenet: Path, tmp_path: Path) -> None:
    for i in range(8):
        here = tmp_path / "data" / "train" / "ab"[i % 2]
        here.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16)).save(here / f"{i}.png")
    bad = tmp_path / "data" / "train" / "b" / "3.png"

    def spoil(p: Progress) -> None:
        if p.step == 1:
            bad.write_bytes(bad.read_bytes()[:40])

    asked = recipe(imagenet, name=f"folder:{tmp_path / 'data'}", stream=True, val_fraction=0.0, epochs=4, workers=0)
    with pytest.raises(DataError, match=r"b/3\.png cannot be read"):
        train(asked, out=tmp_path / "run", on_progress=spoil)
    with pytest.raises(DataError, match=r"b/3\.png cannot be read"):  # now it is found before training
        train(asked, out=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_fields_are_checked_and_written_down(tmp_path: Path) -> None:
    text = '[model]\nname = "cifar_resnet8"\n[data]\nname = "digits"\n'
    path = tmp_path / "a.toml"
    path.write_text(text)
    assert (load_recipe(path).data.stream, load_recipe(path).data.workers) == ("auto", "auto")
    path.write_text(text + 'stream = true\nworkers = 3\naugment = ["resized_crop", "flip"]\n')
    got = load_recipe(path)
    assert (got.data.stream, got.data.workers, got.data.augment) == (True, 3, ("resized_crop", "flip"))
    (tmp_path / "b.toml").write_text(got.to_toml())
    assert load_recipe(tmp_path / "b.toml") == got
    for wrong, message in (
        ('stream = "yes"', "data.stream"),
        ("workers = -1", "workers must be at least 0"),
        ("workers = true", "data.workers"),
        ('augment = ["crop", "resized_crop"]', "at most one of"),
        ('augment = ["rotate"]', "data.augment"),
    ):
        path.write_text(text + wrong)
        with pytest.raises(ConfigError, match=message):
            load_recipe(path)
    with pytest.raises(ParameterError, match="workers must be at least 0"):
        DataRecipe(name="digits", workers=-1)
