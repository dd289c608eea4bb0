"""--skip-bad and --download: what is left out is listed, and without them nothing is written or fetched."""

from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from hardy.cli.main import app
from hardy.cli.material import material_of
from hardy.cli.targets import open_data
from hardy.data import load_data
from hardy.errors import DataError
from hardy.results import Result
from hardy.training import load_recipe
from hardy.training.folder import RunFolder

RECIPE = """
[model]
name = "cifar_resnet8"
args = { width = 4 }
[data]
name = "folder:photos"
augment = ["flip"]
val_fraction = 0.25
[train]
epochs = 1
batch_size = 8
[evaluate]
axes = ["clean"]
"""


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write images of two classes, one of which in each part is cut off, and a recipe; work there."""
    monkeypatch.chdir(tmp_path)
    Path("recipe.toml").write_text(RECIPE)
    for part, n in (("train", 16), ("test", 5)):
        for c, name in enumerate(("cat", "dog")):
            (tmp_path / "photos" / part / name).mkdir(parents=True)
            for i in range(n):
                Image.new("RGB", (8, 8), (10 * i, 200 * c, 9)).save(tmp_path / "photos" / part / name / f"{i:02}.png")
    for bad in ("train/cat/03.png", "test/dog/04.png"):
        file = tmp_path / "photos" / bad
        file.write_bytes(file.read_bytes()[:40])
    return tmp_path / "photos"


def run(*args: str, fails: bool = False) -> str:
    result = CliRunner().invoke(app, list(args))
    assert result.exit_code == (2 if fails else 0), result.output
    return result.output


def test_a_run_without_a_checkpoint_begins_anew_with_mended_images(photos: Path) -> None:
    folder = RunFolder("run")
    folder.path.mkdir()
    folder.note_skipped(["a.png cannot be read"], resume=False)
    folder.note_skipped([], resume=True)
    assert not (folder.path / "skipped.txt").exists()


def test_a_damaged_image_stops_a_training_before_anything_is_written(photos: Path) -> None:
    said = run("train", "recipe.toml", "--out", "run", fails=True)
    assert "photos/train/cat/03.png cannot be read" in said and not Path("run").exists()


@pytest.mark.parametrize("stream", ["true", "false"])
def test_what_is_left_out_is_listed_and_a_resumed_run_must_leave_out_the_same(photos: Path, stream: str) -> None:
    options = ("recipe.toml", "--out", "run", "--set", f"data.stream={stream}", "--set", "data.workers=0")
    run("train", *options, "--skip-bad", "--quiet")
    (line,) = Path("run/skipped.txt").read_text().splitlines()
    assert line.startswith("photos/train/cat/03.png cannot be read (")
    assert "WARNING left out 1 images that cannot be read: see skipped.txt" in Path("run/log.txt").read_text()
    assert load_recipe("run/recipe.toml").data.skip_bad

    run("train", *options, "--skip-bad", "--quiet", "--resume", "--download")  # fetching changes nothing
    said = run("train", *options, "--resume", fails=True)
    assert "photos/train/cat/03.png cannot be read" in said
    Image.new("RGB", (8, 8)).save(photos / "train" / "cat" / "03.png")
    said = run("train", *options, "--skip-bad", "--resume", fails=True)
    assert "must have the same images; 1 were left out then, 0 now" in said


def test_an_evaluation_leaves_out_what_its_training_would(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    run("train", "recipe.toml", "--out", "run", "--skip-bad", "--quiet")
    caplog.clear()
    run("evaluate", "run", "--quiet")  # as its recipe says
    assert Result.read(Path("run/result.json")).n == 9
    assert any("left out: photos/test/dog/04.png" in text for text in caplog.messages)
    assert "dog/04.png cannot be read" in run("attack", "run", "--data", f"folder:{photos}", fails=True)
    assert "9 images" in run("attack", "run", "--data", f"folder:{photos}", "--attack", "fgsm", "--skip-bad")


def test_the_validation_images_are_those_of_the_training(photos: Path) -> None:
    Path("recipe.toml").write_text(RECIPE.replace("augment", "skip_bad = true\naugment"))
    recipe = load_recipe("recipe.toml")
    want = load_data("folder:photos", split="val", val_fraction=0.25, skip_bad=True)
    got = open_data(None, recipe, split="val", limit=None, size=None, seed=5)
    assert torch.equal(got.index, want.index) and torch.equal(got.x, want.x)
    other = material_of(got, recipe, data=None, other=["folder:photos"], skip_bad=True).other["folder:photos"]
    assert torch.equal(other, load_data("folder:photos", limit=len(got), skip_bad=True).images())


def test_only_download_fetches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def no_network(url: str, **_: object) -> str:
        asked.append(url)
        raise URLError("no route")

    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", no_network)
    (tmp_path / "recipe.toml").write_text(RECIPE.replace("folder:photos", f"svhn:{tmp_path}"))
    train = ("train", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "run"))
    attack = ("attack", "cifar_resnet8", "--data", f"svhn:{tmp_path}")
    for verb in (train, attack, ("evaluate", *attack[1:])):
        assert "fetch and unpack it with --download" in run(*verb, fails=True) and not asked
        assert "must be fetched from http" in run(*verb, "--download", fails=True)
        assert asked.pop().endswith("train_32x32.mat") and not (tmp_path / "run").exists()
    images = load_data("digits", limit=10)
    with pytest.raises(DataError, match="must be fetched from http"):
        material_of(images, None, data=None, other=[f"svhn:{tmp_path}"], download=True)
