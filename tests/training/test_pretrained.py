"""Other people's weights are the start of a training: read from a file or fetched, with a new head where it must be."""

import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from hardy import io, models
from hardy.training import DataRecipe, ModelRecipe, Recipe, TrainRecipe, train

SHAPES = DataRecipe(name="shapes", limit=64, val_fraction=0.0, augment=())


def published(name: str) -> nn.Module:
    """A net for 7 classes that somebody trained: with weights and statistics that no fresh net has."""
    torch.manual_seed(5)
    net: nn.Module = models.build(name, num_classes=7).net
    for value in net.state_dict().values():
        if value.is_floating_point():
            value.mul_(1 + 0.05 * torch.rand_like(value)).add_(0.001)
    return net


def fine_tune(name: str, pretrained: bool | str, out: Path, **how: Any) -> dict[str, Tensor]:
    options = TrainRecipe(epochs=1, batch_size=32, lr=0.05, weight_decay=0.1, **how)
    model = ModelRecipe(name=name, pretrained=pretrained)
    train(Recipe(model=model, data=SHAPES, train=options), out=out)
    return io.read_tensors(out / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "head"),
    [("timm:test_resnet", "fc"), ("torchvision:squeezenet1_1", "classifier.1"), ("cifar_resnet8", "fc")],
)
def test_weights_from_a_file_get_a_new_head_that_alone_learns(
    name: str, head: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = published(name).state_dict()
    file = tmp_path / "weights.pth"
    torch.save({"state_dict": {f"module.{key}": value for key, value in theirs.items()}, "epoch": 90}, file)
    with caplog.at_level(logging.INFO, logger="hardy"):
        ours = fine_tune(name, str(file), tmp_path / "run", freeze=("all_but_head",))
    said = "7 classes, the net has 8: new, untrained head"
    assert said in (tmp_path / "run" / "log.txt").read_text() and said in caplog.text
    assert (tmp_path / "run" / "log.txt").read_text().count(said) == 1
    assert {key.removeprefix("net.") for key in ours} == theirs.keys()
    for key, value in theirs.items():
        if key.startswith(head):
            assert ours[f"net.{key}"].shape == (8, *value.shape[1:])
        else:
            assert torch.equal(ours[f"net.{key}"], value), key


@pytest.mark.parametrize("classes", [7, 8])
def test_weights_that_timm_fetches(
    classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    net = published("timm:test_resnet")
    torch.save(net.state_dict(), tmp_path / "w.pth")
    overlay = {"file": str(tmp_path / "w.pth"), "num_classes": 7}  # instead of a download
    create = timm.create_model

    def fetch(name: str, *, pretrained: bool, **args: Any) -> nn.Module:
        made: nn.Module = create(name, pretrained=pretrained, pretrained_cfg_overlay=overlay, **args)
        return made

    monkeypatch.setattr(timm, "create_model", fetch)
    model = models.build("timm:test_resnet", num_classes=classes, pretrained=True)
    assert torch.equal(model.net.get_parameter("conv1.0.weight"), net.get_parameter("conv1.0.weight"))
    assert ("7 classes, the net has 8: new, untrained head" in caplog.text) is (classes == 8)
    kept = torch.equal(model.net.get_parameter("fc.weight")[:7], net.get_parameter("fc.weight"))
    assert kept is (classes == 7)


def test_weights_that_torchvision_fetches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = published("torchvision:squeezenet1_1").state_dict()
    monkeypatch.setattr(sys.modules["hardy.models.build"], "torchvision_state", lambda _name: theirs)
    how = {"layer_decay": 0.5, "lr_factors": {"head": 10.0}, "clip_norm": 1.0}
    ours = fine_tune("torchvision:squeezenet1_1", True, tmp_path / "run", **how)
    assert "new, untrained head classifier.1.weight" in (tmp_path / "run" / "log.txt").read_text()
    went = {key: float((ours[f"net.{key}"] - value).abs().max()) for key, value in theirs.items() if "features" in key}
    assert all(0 < step < 0.05 for step in went.values())  # everything learned, from where they were
    assert io.load(tmp_path / "run" / "model.safetensors").source.mean == pytest.approx((0.485, 0.456, 0.406))


def test_a_warning_before_the_run_is_shown_as_ever(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.save(published("cifar_resnet8").state_dict(), tmp_path / "w.pth")
    handlers = list(logging.root.handlers)
    logging.root.handlers.clear()  # pytest's own; users of a script have none
    try:
        fine_tune("cifar_resnet8", str(tmp_path / "w.pth"), tmp_path / "run")
    finally:
        logging.root.handlers[:] = handlers
    assert "7 classes, the net has 8: new, untrained head" in capfd.readouterr().err
