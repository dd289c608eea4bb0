"""``hardy diagnose``: files, words on stderr, one JSON document on stdout, errors before any work."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from hardy import io
from hardy.cli.main import app
from hardy.diagnosis import Diagnosis

NET = "cifar_resnet8"


def hardy(*args: str | Path) -> Any:
    result = CliRunner().invoke(app, [str(a) for a in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("net") / "small.safetensors"
    io.save(io.load_model(NET, num_classes=10, in_channels=1, args={"width": 4}).eval(), file)
    return file


def test_it_writes_numbers_maps_and_a_page_and_says_what_it_found(net: Path, tmp_path: Path) -> None:
    out = tmp_path / "d"
    done = hardy("diagnose", net, "--data", "digits", "--limit", "60", "--map-limit", "80", "--top", "3", "--out", out)
    assert done.exit_code == 0 and done.stdout == ""
    assert sorted(p.name for p in out.iterdir()) == ["diagnosis.json", "diagnosis.safetensors", "report.html"]
    found = Diagnosis.read(out)
    assert found.n == 60 and found.data == "digits test" and found.map_data == "digits train" and found.map_n == 80
    text = " ".join(done.stderr.split())
    for finding in found.findings:
        assert " ".join(finding.text.split()) in text
    assert f"digits test, 60 images, {len(found.layers)} layers" in text
    assert "<html" in (out / "report.html").read_text()[:200]


def test_json_is_the_whole_of_stdout_and_quiet_is_silent(net: Path, tmp_path: Path) -> None:
    args = ("diagnose", net, "--data", "digits", "--limit", "40", "--map-split", "same", "--out", tmp_path / "d")
    done = hardy(*args, "--json", "--quiet", "--parts", "predictions", "--layers", "net.layer1.*conv?")
    assert done.exit_code == 0 and done.stderr == ""
    document = json.loads(done.stdout)
    assert document == Diagnosis.read(tmp_path / "d").to_json()
    assert [part["name"] for part in document["parts"]] == ["predictions"] and "map_data" in document
    assert document["map_n"] == 0 and all(layer.startswith("net.layer1.") for layer in document["layers"])


def test_the_command_line_asks_what_the_function_is_asked(net: Path, tmp_path: Path) -> None:
    options = ("--draws", "1", "--joint", "--sigma", "0.5", "--sign", "positive", "--seed", "3", "--top", "4")
    args = ("diagnose", net, "--data", "digits", "--limit", "40", "--map-split", "same", "--parts", "channels")
    assert hardy(*args, *options, "--out", tmp_path / "a", "--quiet").exit_code == 0
    from hardy.data import load_data
    from hardy.diagnosis import diagnose

    data = load_data("digits", limit=40, seed=3)
    wanted = diagnose(
        io.load(net), data.images(), data.y, rows=data.index, parts=["channels"], draws=1, joint=True, sigma=0.5,
        sign="positive", seed=3, top=4,
    )  # fmt: skip
    found = Diagnosis.read(tmp_path / "a")
    assert found.options == wanted.options
    for layer in wanted.layers:
        assert torch.allclose(found.correlation(layer), wanted.correlation(layer), rtol=1e-4, equal_nan=True)


def test_masks_reach_the_part_that_needs_them(net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hardy.diagnosis import PARTS, Case, Part

    seen: list[torch.Tensor] = []

    def measure(case: Case) -> Part:
        assert case.masks is not None
        seen.append(case.masks)
        return Part(name="background", question="?")

    monkeypatch.setitem(PARTS, "background", measure)
    masks = np.zeros((1797, 8, 8), np.uint8)
    masks[:, 2:6] = 1
    np.savez(tmp_path / "m.npz", masks_test=masks)
    args = ("diagnose", net, "--data", "digits", "--limit", "20", "--map-split", "same", "--parts", "background")
    done = hardy(*args, "--masks", f"npz:{tmp_path / 'm.npz'}", "--out", tmp_path / "d", "--quiet")
    assert done.exit_code == 0 and seen[0].shape == (20, 8, 8) and int(seen[0][0].sum()) == 32
    refused = hardy(*args, "--out", tmp_path / "e", "--quiet")
    assert refused.exit_code == 2 and "needs masks" in refused.stderr and not (tmp_path / "e").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--parts", "chanels"), "did you mean 'channels'"),
        (("--map-split", "tests"), "--map-split"),
        (("--layers", "nothing"), "no layer 'nothing'"),
        (("--sign", "both"), "sign"),
        (("--top", "0"), "top"),
        (("--eps", "8"), "Did you mean 8/255"),
        (("--masks", "nowhere"), "masks"),
        (("--data", "digit"), "digit"),
    ],
)
def test_errors_are_one_line_and_write_nothing(net: Path, tmp_path: Path, args: tuple[str, ...], words: str) -> None:
    given = ("--data", "digits", "--limit", "20", "--map-limit", "20", "--out", tmp_path / "d")
    done = hardy("diagnose", net, *given, *args)
    assert done.exit_code == 2 and words in done.stderr and not (tmp_path / "d").exists()


def test_a_folder_that_cannot_be_written_is_said_first(net: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = hardy("diagnose", net, "--data", "nowhere", "--out", tmp_path / "file")
    assert done.exit_code == 2 and "cannot write here" in done.stderr
