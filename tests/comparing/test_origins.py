"""Digests change with what they are of, and with nothing else; names of sources tell them apart."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hardy.comparing.origins import data_digest, file_digest, net_files, source_names
from hardy.data import ArrayData, load_data, open_data
from hardy.errors import ConfigError, DataError
from hardy.training.recipe import DataRecipe, ModelRecipe, Recipe


def test_images_are_told_apart_by_pixels_labels_and_order() -> None:
    data = load_data("digits", split="test", limit=20)
    other = data.x.clone()
    other[7, 0, 3, 3] ^= 1
    names = [*data.class_names[:-1], "x"]
    changed = [replace(data, x=other), replace(data, y=data.y.flip(0)), data.subset(torch.arange(20).flip(0))]
    changed += [data.subset(torch.arange(19)), replace(data, class_names=tuple(names))]
    assert len({data_digest(each) for each in (data, *changed)}) == 6
    assert data_digest(replace(data, name="elsewhere")) == data_digest(data)
    assert data_digest(replace(data, x=other), pixels=False) == data_digest(data, pixels=False)


def test_on_the_disk_and_in_memory_are_the_same_images(tmp_path: Path) -> None:
    data = load_data("digits", split="test", limit=40)
    x, y = data.x.numpy(), data.y.numpy()
    np.savez(tmp_path / "few.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    spec = f"npz:{tmp_path}/few.npz"
    streamed, resident = (open_data(spec, split="test", stream=s, workers=0) for s in (True, False))
    assert isinstance(resident, ArrayData) and not isinstance(streamed, ArrayData)
    assert data_digest(streamed) == data_digest(resident)


def test_files_of_a_net_are_its_factory_and_its_weights(tmp_path: Path) -> None:
    factory, weights = tmp_path / "net.py", tmp_path / "w.safetensors"
    factory.write_text("one")
    weights.write_bytes(b"two")
    model = ModelRecipe(name=f"{factory}:make", pretrained=str(weights))
    data = DataRecipe(name="digits")
    found = net_files(Recipe(model=model, data=data))
    assert found == {str(factory): file_digest(factory), str(weights): file_digest(weights)}
    factory.write_text("three")
    assert file_digest(factory) != found[str(factory)]
    assert net_files(Recipe(model=ModelRecipe(name="cifar_resnet8", pretrained=True), data=data)) == {}
    with pytest.raises(DataError, match="cannot be read"):
        file_digest(tmp_path / "nowhere")


def test_sources_are_named_by_as_much_of_their_path_as_tells_them_apart() -> None:
    assert source_names(["runs/plain"]) == ("plain",)
    assert source_names(["runs/wrn_0.3", "runs/wrn_0.4"]) == ("wrn_0.3", "wrn_0.4")
    assert source_names(["a/seed0/model.safetensors", "b/seed0/model.safetensors"]) == (
        "a/seed0/model",
        "b/seed0/model",
    )
    assert source_names([]) == ()
    with pytest.raises(ConfigError, match="once"):
        source_names(["a/b", "a/x/../b"])
