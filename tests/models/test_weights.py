"""Files of weights fit, or say why not; nothing in them is ever run."""

import logging
import os
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hardy.errors import CheckpointError
from hardy.models import build
from hardy.models.weights import fit_weights, read_weights

NAME = "cifar_resnet8"


def state(num_classes: int = 10, in_channels: int = 3) -> dict[str, Tensor]:
    return build(NAME, num_classes=num_classes, in_channels=in_channels, seed=9).net.state_dict()


def same(model: torch.nn.Module, want: dict[str, Tensor], but: tuple[str, ...] = ()) -> bool:
    return all(torch.equal(v, want[k]) for k, v in model.state_dict().items() if k not in but)


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "net.", "module.model.", "_orig_mod."])
@pytest.mark.parametrize("kind", ["safetensors", "plain", "nested", "training"])
def test_reads_the_usual_files_with_the_usual_prefixes(kind: str, prefix: str, tmp_path: Path) -> None:
    want = state()
    named = {prefix + k: v for k, v in want.items()}
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    content = {"nested": {"state_dict": named}, "training": {"model": {"state_dict": named}, "epoch": 3}}.get(
        kind, named
    )
    if kind == "safetensors":
        safetensors.torch.save_file(named, path)
    else:
        torch.save(content, path)
    assert same(build(NAME, pretrained=path).net, want)
    assert same(build(NAME, pretrained=str(path)).net, want)


def test_another_number_of_classes_is_an_error_or_a_new_head(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, want = tmp_path / "w.pth", state(num_classes=7)
    torch.save(want, path)
    with pytest.raises(CheckpointError, match=r"for 7 classes, the net has 10. Pass num_classes=7, or your own"):
        build(NAME, pretrained=path)
    assert same(build(NAME, pretrained=path, num_classes=7).net, want)
    with caplog.at_level(logging.WARNING):
        model = build(NAME, pretrained=path, num_classes=4, seed=2)
    assert "7 classes, the net has 4: new, untrained head fc.weight, fc.bias" in caplog.text
    assert same(model.net, want, but=("fc.weight", "fc.bias"))
    assert torch.equal(model.net.fc.weight, build(NAME, num_classes=4, seed=2).net.fc.weight)


def test_a_wrong_width_is_not_taken_for_a_head(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(build(NAME, args={"width": 8}).net.state_dict(), path)
    with pytest.raises(
        CheckpointError, match=r"shapes do not fit the net: conv1.weight \(8, 3, 3, 3\), net \(4, 3, 3, 3\)"
    ):
        build(NAME, num_classes=4, args={"width": 4}, pretrained=path)


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ((4, 9, 9, 3), r"0.weight \(9, 4\), net \(8, 4\), 0.bias"),  # another hidden width, the same classes
        ((4, 9, 9, 5), r"0.weight \(9, 4\), net \(8, 4\), 0.bias .*, 1.weight \(5, 9\)"),
        ((5, 8, 8, 5), r"0.weight \(8, 5\), net \(8, 4\)"),
    ],
)
def test_only_the_layer_of_logits_may_be_replaced(theirs: tuple[int, int, int, int], message: str) -> None:
    def net(a: int, b: int, c: int, d: int) -> nn.Module:
        return nn.Sequential(nn.Linear(a, b), nn.Linear(c, d))

    ours = net(4, 8, 8, 3)
    before = {k: v.clone() for k, v in ours.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        fit_weights(ours, net(*theirs).state_dict(), origin="w", num_classes=3, replace_head=True)
    assert same(ours, before)


def test_rgb_weights_fit_gray_and_more_channels_as_in_timm(tmp_path: Path) -> None:
    path, rgb = tmp_path / "w.pth", state()
    torch.save(rgb, path)
    gray = build(NAME, in_channels=1, pretrained=path).net
    torch.testing.assert_close(gray.conv1.weight, rgb["conv1.weight"].sum(1, keepdim=True))
    six = build(NAME, in_channels=6, pretrained=path).net
    torch.testing.assert_close(six.conv1.weight, torch.cat([rgb["conv1.weight"]] * 2, 1) / 2)
    assert same(six, rgb, but=("conv1.weight",))


def test_missing_and_left_over_names_are_errors(tmp_path: Path) -> None:
    path, want = tmp_path / "w.pth", state()
    torch.save({k: v for k, v in want.items() if k != "bn1.weight"} | {"extra": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match=r"missing bn1.weight; left over extra. Is it the same architecture"):
        build(NAME, pretrained=path)
    torch.save({k: v for k, v in want.items() if not k.endswith("num_batches_tracked")}, path)  # before torch 0.4.1
    assert build(NAME, pretrained=path)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("/tmp/hardy-bomb-went-off",)  # noqa: S108


def test_a_pickle_bomb_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"state_dict": Bomb()}, path)
    with pytest.raises(CheckpointError, match="not readable as plain tensors"):
        read_weights(path)
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError):
        read_weights(path)
    assert not Path("/tmp/hardy-bomb-went-off").exists()  # noqa: S108


def test_a_dict_inside_itself_ends(tmp_path: Path) -> None:
    content: dict[str, object] = {}
    content["model"] = content
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="no state dict"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.filterwarnings("ignore")  # about old formats
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_files_are_checkpoint_errors(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / data.draw(st.sampled_from(["w.pth", "w.safetensors", "old.pth"]))
    small = {"a": torch.arange(4.0)}
    if path.suffix == ".pth":
        torch.save(small, path, _use_new_zipfile_serialization=path.stem == "w")
    else:
        safetensors.torch.save_file(small, path)
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    cut = data.draw(st.booleans())
    path.write_bytes(
        whole[:at] if cut else whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    )
    try:
        tensors = read_weights(path)
    except CheckpointError:
        return
    assert all(isinstance(v, Tensor) for v in tensors.values())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere.pth: no such file"):
        build(NAME, pretrained=tmp_path / "nowhere.pth")
