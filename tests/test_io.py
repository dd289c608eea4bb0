"""A model survives saving and loading bit for bit, and a hostile file is an error that executed nothing."""

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hardy import io, surgery
from hardy.errors import CheckpointError, DataError, HardyError
from hardy.methods import DefectiveConv, LocalFeatureMasking, SpatialDropout


@pytest.fixture
def x() -> Tensor:
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def make(name: str = "cifar_resnet8", seed: int = 0) -> nn.Module:
    return io.load_model(name, num_classes=4, seed=seed)


def shake(model: nn.Module, x: Tensor) -> None:
    """Give the batch norms statistics of their own."""
    model.train()
    with torch.no_grad():
        model(x)
    model.eval()


@pytest.mark.parametrize("name", ["cifar_resnet8", "timm:resnet10t", "torchvision:squeezenet1_1"])
def test_a_plain_model_comes_back_with_the_same_outputs(name: str, x: Tensor, tmp_path: Path) -> None:
    x = torch.nn.functional.interpolate(x, size=32)
    model = make(name)
    model.class_names = ("a", "b", "<c>", "ä")
    shake(model, x)
    io.save(model, tmp_path / "m.safetensors", metrics={"val_accuracy": 0.5}, provenance={"data": "none"})
    again = io.load(tmp_path / "m.safetensors")
    assert torch.equal(again(x), model(x)) and not again.training
    assert again.class_names == ("a", "b", "<c>", "ä")
    header = io.read(tmp_path / "m.safetensors")
    assert header.metrics == {"val_accuracy": 0.5} and header.provenance == {"data": "none"} and header.methods == ()


def test_masks_are_saved_and_train_only_methods_are_named(x: Tensor, tmp_path: Path) -> None:
    model = make()
    surgery.attach(
        model, [LocalFeatureMasking(p=1.0), DefectiveConv(keep=0.3), SpatialDropout()], example=x[:1], seed=5
    )
    shake(model, x)
    io.save(model, tmp_path / "m.safetensors")
    again = io.load(tmp_path / "m.safetensors")
    assert torch.equal(again(x), model(x))
    (mask,) = surgery.attachments(again)
    assert mask.name == "defective_conv" and mask.insert.spec == DefectiveConv(keep=0.3) and mask.insert.seed == 5
    own = dict(model.named_buffers())
    masks = {name: value for name, value in again.named_buffers() if name.endswith("mask")}
    assert len(masks) == 5 and all(torch.equal(value, own[name]) for name, value in masks.items())
    assert [text.partition("(")[0] for text in io.read(tmp_path / "m.safetensors").trained_with] == [
        "LocalFeatureMasking",
        "DefectiveConv",
        "SpatialDropout",
    ]
    assert len(surgery.attachments(model)) == 3  # saving took nothing off


def test_an_own_module_needs_the_module_to_load(x: Tensor, tmp_path: Path) -> None:
    def net() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 2))

    model = net()
    surgery.attach(model, [DefectiveConv()], example=x, seed=0)
    io.save(model, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=r"Pass the module: hardy.load\(path, model=...\)"):
        io.load(tmp_path / "m.safetensors")
    assert torch.equal(io.load(tmp_path / "m.safetensors", model=net())(x), model(x))
    with pytest.raises(CheckpointError, match=r"do not fit the net: 0.bias is not in the net"):
        io.load(tmp_path / "m.safetensors", model=nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), *list(net())[1:]))


def test_a_method_of_the_user_that_is_live_cannot_be_saved(x: Tensor, tmp_path: Path) -> None:
    model = make()
    surgery.insert(model, surgery.Insert(object(), seed=0, live=True), method="own")
    with pytest.raises(CheckpointError, match=r"object is live at test time and not one of Hardy's"):
        io.save(model, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=r"must end in .safetensors; got m.pt"):
        io.save(make(), tmp_path / "m.pt")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write here"):
        io.save(make(), tmp_path / "file" / "m.safetensors")


def test_a_failed_load_leaves_the_module_of_the_user_as_it_was(x: Tensor, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 2))
    surgery.attach(model, [DefectiveConv()], example=x, seed=0)
    io.save(model, tmp_path / "m.safetensors")
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 3))
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(CheckpointError):
        io.load(tmp_path / "m.safetensors", model=other)
    assert surgery.attachments(other) == [] and list(other.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_loading_never_runs_the_net(x: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, x)
    real = nn.Conv2d.forward

    def only_meta(self: nn.Conv2d, x: Tensor) -> Tensor:
        assert x.is_meta, "a header decides how big this pass is"
        return real(self, x)

    monkeypatch.setattr(nn.Conv2d, "forward", only_meta)
    assert len(surgery.attachments(io.load(path))) == 1


# ---------------------------------------------------------------------------------------------- hostile files


def saved(tmp_path: Path, x: Tensor) -> Path:
    model = make()
    surgery.attach(model, [DefectiveConv()], example=x, seed=0)
    return io.save(model, tmp_path / "m.safetensors")


def rewrite(path: Path, change: Any) -> None:
    """Change the JSON header of Hardy inside the safetensors file, keeping its tensors."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    outer = json.loads(data[8 : 8 + size])
    header = json.loads(outer["__metadata__"]["hardy"])
    outer["__metadata__"]["hardy"] = json.dumps(change(header) or header)
    text = json.dumps(outer).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


def lie(*keys: str, value: Any) -> Any:
    def change(header: dict[str, Any]) -> None:
        place = header
        for key in keys[:-1]:
            place = place[int(key)] if isinstance(place, list) else place[key]
        place[keys[-1]] = value

    return change


HUB = {
    "builder": "timm",
    "name": "hf_hub:evil/net",
    "num_classes": 4,
    "in_channels": 3,
    "mean": [0, 0, 0],
    "std": [1, 1, 1],
}
LIES = {
    "format": (lie("format", value=99), r"format 99 is not known"),
    "no format": (lie("format", value=None), r"format None"),
    "a list": (lambda header: [header], r"must be a JSON object"),
    "unknown key": (lie("extra", value=1), r"extra: unknown key"),
    "builder": (lie("source", "builder", value="pickle"), r"source.builder: expected one of"),
    "hub name": (lie("source", value=HUB), r"timm has no net"),
    "net": (lie("source", "name", value="os.system"), r"builtin has no net 'os.system'"),
    "other net": (lie("source", "name", value="cifar_resnet14"), r"do not fit the net"),
    "more classes": (lie("source", "num_classes", value=5), r"4 class names for 5 classes"),
    "huge": (lie("source", "args", value={"width": 10**7}), r"do not fit the net|cannot be built|width"),
    "pretrained": (lie("source", "args", value={"pretrained": True}), r"pretrained"),
    "argument": (lie("source", "args", value={"exec": "x"}), r"exec"),
    "nested argument": (lie("source", "args", value={"width": {"a": 1}}), r"width"),
    "method": (lie("methods", "0", "name", value="eval"), r"unknown method 'eval'"),
    "train-only method": (lie("methods", value=[{"name": "lfm", "seed": 0}]), r"lfm is for training only"),
    "many methods": (lie("methods", value=[{"name": "defective_conv", "seed": 0}] * 17), r"at most 16 methods"),
    "parameter": (lie("methods", "0", "params", value={"keep": 7}), r"keep must be in \[0, 1\]"),
    "site": (lie("methods", "0", "params", value={"sites": ["nowhere"]}), r"has no layer 'nowhere'"),
    "missing method": (lie("methods", value=[]), r"is not in the net"),
    "shape": (lie("input_shape", value=[3, 10**9, 10**9]), r"input_shape .* cannot be right"),
    "big shape": (lie("input_shape", value=[3, 9000, 9000]), r"do not fit the net"),
    "no shape": (lie("input_shape", value=None), r"input_shape None"),
    "negative shape": (lie("input_shape", value=[3, -1, 4]), r"input_shape"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lying_header_is_a_checkpoint_error(name: str, x: Tensor, tmp_path: Path) -> None:
    path = saved(tmp_path, x)
    change, message = LIES[name]
    rewrite(path, change)
    with pytest.raises(CheckpointError, match=message):
        io.load(path)


def test_truncated_files_are_checkpoint_errors(x: Tensor, tmp_path: Path) -> None:
    path = saved(tmp_path, x)
    data = path.read_bytes()
    for size in (0, 1, 7, 8, 9, 100, 1000, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError, match=r"m.safetensors"):
            io.load(path)


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (Path.touch, (Path("executed"),))  # type: ignore[return-value]


def test_a_pickle_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    evil = tmp_path / "m.safetensors"
    for data in (pickle.dumps(Evil()), b"PK\x03\x04" + bytes(100)):
        evil.write_bytes(data)
        with pytest.raises(CheckpointError):
            io.load(evil)
    torch.save({"weight": Evil()}, evil)
    with pytest.raises(CheckpointError):
        io.load(evil)
    with pytest.raises(HardyError):  # nor as foreign weights
        io.load_model("cifar_resnet8", num_classes=4, pretrained=str(evil))
    assert not (tmp_path / "executed").exists()


def test_missing_files_and_strangers_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no such file"):
        io.load(tmp_path / "nothing.safetensors")
    import safetensors.torch

    safetensors.torch.save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"not written by Hardy"):
        io.load(tmp_path / "other.safetensors")
