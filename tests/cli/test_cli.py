"""The command line does what its help says: verbs, JSON on stdout, exit codes, errors in one line."""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from hardy import io
from hardy.cli import common
from hardy.cli.main import app
from hardy.errors import ConfigError
from hardy.results import Result

RECIPE = """
[model]
name = "cifar_resnet8"
args = { width = 4 }
[data]
name = "digits"
limit = 128
augment = ["crop"]
[[methods]]
name = "lfm"
[train]
epochs = 2
batch_size = 64
[evaluate]
eps = 0.1
limit = 40
suite = "quick"
axes = ["clean", "white_box"]
"""


def hardy(*args: str | Path) -> Any:
    result = CliRunner().invoke(app, [str(a) for a in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "recipe.toml").write_text(RECIPE)
    for name, seed in (("a", 0), ("b", 1)):
        done = hardy("train", folder / "recipe.toml", "--out", folder / name, "--seed", str(seed), "--quiet")
        assert done.exit_code == 0 and done.stdout == ""
    return folder


def test_train_prints_one_json_document_and_a_log_for_people(runs: Path) -> None:
    done = hardy("train", runs / "recipe.toml", "--out", runs / "c", "--set", "train.epochs=1", "--json")
    assert done.exit_code == 0
    document = json.loads(done.stdout)
    assert document["epoch"] == 1 and len(document["history"]) == 1
    assert "next: hardy evaluate" in done.stderr


def test_layers_takes_a_run_folder_and_its_channels(runs: Path) -> None:
    for target in (runs / "a", runs / "a" / "model.safetensors"):
        assert "conv1" in hardy("layers", target, "--size", "8").stdout


def test_an_evaluation_of_another_model_is_kept(runs: Path) -> None:
    out = runs / "mine.json"
    assert hardy("evaluate", runs / "a", "--axes", "clean", "--out", out, "--quiet").exit_code == 0
    done = hardy("evaluate", runs / "b", "--axes", "clean", "--out", out, "--quiet")
    assert done.exit_code == 2 and "holds an evaluation with the model a" in done.stderr


def test_evaluate_measures_the_run_on_its_own_recipe(runs: Path) -> None:
    done = hardy("evaluate", runs / "a", "--json", "--sibling", runs / "b", "--axes", "clean,white_box,transfer")
    assert done.exit_code == 0
    document = json.loads(done.stdout)
    assert document["n"] == 40 and document["threat"] == {"norm": "linf", "eps": 0.1}
    result = Result.read(runs / "a" / "result.json")
    assert result.to_json() == document
    assert [axis.name for axis in result.axes] == ["clean", "white_box", "transfer"]
    assert result.methods[0].startswith("LocalFeatureMasking(p=0.15")
    assert result.model == "a" and "digits" in result.data
    assert "accuracy" in done.stderr


def test_fail_under_sets_the_exit_code(runs: Path) -> None:
    args = ("evaluate", runs / "b", "--axes", "clean", "--out", runs / "x.json", "--quiet", "--overwrite")
    assert hardy(*args, "--fail-under", "clean=0").exit_code == 0
    failed = hardy(*args, "--fail-under", "clean=1")
    assert failed.exit_code == 1 and "is below --fail-under 1" in failed.stderr
    assert hardy(*args, "--fail-under", "clean").exit_code == 2
    wrong = hardy(*args, "--fail-under", "noise=0.5")
    assert wrong.exit_code == 2 and "noise" in wrong.stderr


def test_an_evaluation_that_says_more_is_not_lost(runs: Path) -> None:
    out = runs / "kept.json"
    args = ("evaluate", runs / "a", "--out", out, "--quiet", "--axes")
    assert hardy(*args, "clean,texture").exit_code == 0
    kept = out.read_bytes()
    for more, reason in (
        (["clean"], "the axes texture"),
        (["clean,texture", "--limit", "10"], "40 images of digits test"),
        (["clean,texture", "--eps", "0.2"], "the threat linf 0.1"),
    ):
        done = hardy(*args, *more)
        assert done.exit_code == 2 and reason in done.stderr and "--overwrite" in done.stderr
        assert out.read_bytes() == kept
    assert hardy(*args, "clean,texture,noise").exit_code == 0
    assert hardy(*args, "clean", "--overwrite").exit_code == 0 and out.read_bytes() != kept


def test_a_stopped_training_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "r.toml").write_text(RECIPE)

    def interrupt(self: Any, epoch: int, losses: Any, row: Any) -> None:
        if row is not None:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hardy.training.loop._Job._tell", interrupt)
        stopped = hardy("train", tmp_path / "r.toml", "--out", tmp_path / "run", "--quiet")
    assert stopped.exit_code == 130 and "add --resume" in stopped.stderr
    unfinished = hardy("evaluate", tmp_path / "run")
    assert unfinished.exit_code == 2 and "its training was stopped. Go on: hardy train" in unfinished.stderr
    assert hardy("train", tmp_path / "r.toml", "--out", tmp_path / "run", "--resume", "--quiet").exit_code == 0


def test_a_net_that_does_not_fit_the_images_is_an_error_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(RECIPE.replace("cifar_resnet8", "timm:vit_tiny_patch16_224").replace("args", "#"))
    done = hardy("train", tmp_path / "r.toml", "--out", tmp_path / "run")
    assert done.exit_code == 2 and "does not take 1x8x8 images" in done.stderr and not (tmp_path / "run").exists()


def test_attack_saves_images_inside_the_ball(runs: Path) -> None:
    out = runs / "adv.npz"
    done = hardy("attack", runs / "a", "--threat", "linf:0.1", "--limit", "20", "--out", out, "--json")
    assert done.exit_code == 0
    document = json.loads(done.stdout)
    with np.load(out, allow_pickle=False) as file:
        assert file["x_adv"].shape == (20, 1, 8, 8) and file["x_adv"].min() >= 0 and file["x_adv"].max() <= 1
        assert 1 - file["success"].mean() == pytest.approx(document["robust_accuracy"])


def test_report_writes_a_page(runs: Path) -> None:
    for name in ("a", "b"):
        assert hardy("evaluate", runs / name, "--axes", "clean", "--quiet", "--overwrite").exit_code == 0
    done = hardy("report", runs / "a", runs / "b", "--out", runs / "page.html", "--json")
    assert json.loads(done.stdout)["bytes"] == (runs / "page.html").stat().st_size
    assert "<html" in (runs / "page.html").read_text()


def test_a_stranger_hardens_a_timm_model_on_a_folder_of_images(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for i in range(48):
        name = ("cat", "dog & <co>")[i % 2]
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 128, (40, 50, 3)) + (100 if i % 2 else 0)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    recipe = f"""
[model]
name = "timm:resnet10t"
[data]
name = "folder:{tmp_path}/photos"
size = 32
val_fraction = 0.2
[[methods]]
name = "defective_conv"
[[methods]]
name = "random_erasing"
[train]
epochs = 1
batch_size = 8
lr = 0.01
"""
    (tmp_path / "photos.toml").write_text(recipe)
    assert hardy("train", tmp_path / "photos.toml", "--out", tmp_path / "run", "--quiet").exit_code == 0
    done = hardy(
        "evaluate", tmp_path / "run", "--axes", "clean,white_box", "--suite", "pgd", "--eps", "2/255", "--quiet"
    )
    assert done.exit_code == 0
    assert hardy("report", tmp_path / "run", "--out", tmp_path / "page.html", "--quiet").exit_code == 0
    page = (tmp_path / "page.html").read_text()
    assert "dog &amp; &lt;co&gt;" in page and "<co>" not in page


def test_a_factory_in_a_file_is_trained_and_evaluated(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def make(num_classes, in_channels):\n"
        "    return nn.Sequential(nn.Conv2d(in_channels, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),\n"
        "        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))\n"
    )
    (tmp_path / "r.toml").write_text(RECIPE.replace("cifar_resnet8", f"{tmp_path}/net.py:make").replace("args", "#"))
    assert hardy("train", tmp_path / "r.toml", "--out", tmp_path / "run", "--quiet").exit_code == 0
    assert hardy("evaluate", tmp_path / "run", "--axes", "clean", "--quiet").exit_code == 0


def test_a_stopped_evaluation_goes_on_only_when_told_to(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hardy.evaluation import AXES

    def press(context: object) -> None:
        raise KeyboardInterrupt

    asked = ["evaluate", runs / "a", "--axes", "clean,white_box,weights", "--suite", "pgd,square", "--limit", "20"]
    asked += ["--out", tmp_path / "r.json", "--quiet"]
    with monkeypatch.context() as patch:
        patch.setitem(AXES, "weights", press)
        stopped = hardy(*asked)
    kept = tmp_path / "r.partial"
    assert stopped.exit_code == 130 and "go on with --resume" in stopped.stderr and len(list(kept.iterdir())) >= 2
    again = hardy(*asked)
    assert again.exit_code == 2 and "an evaluation was stopped here" in again.stderr and kept.exists()
    other = hardy(*asked, "--resume", "--suite", "pgd")
    assert other.exit_code == 2 and "had another suite" in other.stderr and kept.exists()
    assert hardy(*asked, "--resume").exit_code == 0 and not kept.exists()
    whole = Result.read(tmp_path / "r.json")
    assert hardy(*asked, "--overwrite").exit_code == 0
    assert Result.read(tmp_path / "r.json").axes == whole.axes
    assert [p.label for p in whole.axis("white_box").points] == ["pgd", "square", "custom", "noise"]


def test_adversarial_images_are_saved_apart(runs: Path, tmp_path: Path) -> None:
    asked = ["evaluate", runs / "a", "--axes", "clean,white_box", "--suite", "quick", "--limit", "30", "--eps", "0.1"]
    done = hardy(*asked, "--out", tmp_path / "r.json", "--save-adversarial", tmp_path / "adv.npz", "--quiet")
    assert done.exit_code == 0
    result = Result.read(tmp_path / "r.json")
    assert "adversarial/x_adv" not in result.arrays
    with np.load(tmp_path / "adv.npz") as saved:
        assert saved["x_adv"].shape == (30, 1, 8, 8) and saved["x_adv"].dtype == np.float32
        assert np.array_equal(saved["broken_by"] == -1, result.outcomes_by_point["white_box/quick"])
        model = io.load(runs / "a" / "model.safetensors").eval()
        right = model(torch.from_numpy(saved["x_adv"])).argmax(dim=1).numpy() == saved["y"]
        assert np.array_equal(right, result.outcomes_by_point["white_box/quick"])
    assert (
        "--save-adversarial: needs the axis white_box"
        in hardy("evaluate", runs / "a", "--axes", "clean", "--save-adversarial", tmp_path / "x.npz").stderr
    )


def test_the_verdict_against_the_base_is_printed(runs: Path, tmp_path: Path) -> None:
    asked = ["evaluate", runs / "a", "--axes", "clean,white_box", "--suite", "pgd", "--limit", "20", "--eps", "0.1"]
    done = hardy(*asked, "--base", runs / "b", "--out", tmp_path / "r.json")
    assert done.exit_code == 0 and "white_box: " in done.stderr and "against base, p = " in done.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["evaluate", "cifar_resnet8", "--data", "digits", "--suite", "standrd"], "did you mean 'standard'?"),
        (["evaluate", "cifar_resnet8", "--data", "digits", "--suite", "pgd,cw"], "cw is defined for l2; got 'linf'"),
        (
            ["evaluate", "cifar_resnet8", "--data", "digits", "--suite", "quick,pgd"],
            "quick is a suite and stands alone",
        ),
        (["train", "none.toml", "--out", "x"], "none.toml: cannot read"),
        (["evaluate", "net.py:make"], "--data: must be given"),
        (["evaluate", "cifar_resnet8", "--data", "digits"], "a net without trained weights"),
        (["attack", "timm:resnet18", "--data", "digits"], "a net without trained weights"),
        (["evaluate", "runs/nothere"], "runs/nothere: no such run folder, file or net"),
        (["evaluate", "cifar_resnet8", "--data", "digits", "--eps", "8"], "Did you mean 8/255?"),
        (["attack", "cifar_resnet8", "--data", "digits", "--threat", "linf:8"], "Did you mean 8/255?"),
        (["models", "zzz*"], "nothing matches 'zzz*'"),
        (["evaluate", "cifar_resnt8", "--data", "digits"], "did you mean"),
        (["evaluate", "cifar_resnet8", "--data", "digts"], "did you mean 'digits'?"),
        (["evaluate", "cifar_resnet8", "--data", "digits", "--eps", "8/0"], "expected a number or a fraction"),
        (["evaluate", "RUN", "--axes", "cleen"], "did you mean 'clean'?"),
        (["evaluate", "RUN", "--checks", "ful"], "--checks: must be one of derived, full; got 'ful'"),
        (["evaluate", "RUN", "--axes", "clean", "--fail-under", "noise=0.5"], "noise is not measured"),
        (["evaluate", "cifar_resnet8", "--data", "digits", "--device", "gpu"], "--device: must be auto, cpu or cuda"),
        (["evaluate", "RUN", "--batch-size", "0"], "--batch-size: must be a positive"),
        (["evaluate", "cifar_resnet8", "--data", "digits", "--threat", "linf", "--eps", "1"], "--threat"),
        (["attack", "RUN", "--attack", "pdg"], "did you mean 'pgd'?"),
        (["methods", "lmf"], "did you mean 'lfm'?"),
        (["layers", "timm:resnet10t", "--size", "0"], "--size and --channels must be at least 1"),
        (["report", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    args: list[str], message: str, runs: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in (runs / "a").rglob("*")}
    done = hardy(*(str(runs / "a") if arg == "RUN" else arg for arg in args))
    assert before == {p: p.stat().st_mtime_ns for p in (runs / "a").rglob("*")}
    assert done.exit_code == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_lists_list_and_the_card_has_its_facts() -> None:
    methods = json.loads(hardy("methods", "--json").stdout)
    assert {"lfm", "defective_conv"} <= {row["name"] for row in methods}
    card = json.loads(hardy("methods", "defective_conv", "--json").stdout)
    assert card["defaults"].items() >= {"keep": 0.5, "sites": ["bottom"]}.items() and "patent" in card["notes"][0]
    assert card["presets"]["resnet50"] == {"sites": ["bn1", "layer[12].*.bn2"]}
    shown = hardy("methods", "defective_conv").stdout
    assert all(text in shown for text in ("patent", "preset 'resnet50'", "measured:", card["measured"][0][:60]))
    assert {"pgd", "fgsm"} <= {row["name"] for row in json.loads(hardy("attacks", "--json").stdout)}
    assert "AutoAttack-standard" in hardy("attacks").stdout
    assert "cifar_resnet20" in hardy("models").stdout.split()
    assert all(
        name.startswith("timm:resnet1") for name in json.loads(hardy("models", "timm:resnet1*", "--json").stdout)
    )
    stages = json.loads(hardy("layers", "cifar_resnet18", "--json").stdout)
    assert stages[1]["entry"] == "net.layer1@input" and stages[1]["convs"][0]["act"] == "net.layer1.0.relu#0"
    assert [s["name"] for s in stages] == ["stem", "stage1", "stage2", "stage3", "stage4"]
    assert "layer4.1.conv2" in hardy("layers", "cifar_resnet18").stdout


def test_version_and_debug() -> None:
    import hardy as package

    assert hardy("--version").stdout.strip() == f"hardy {package.__version__}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARDY_DEBUG", "1")
        with pytest.raises(ConfigError):
            hardy("methods", "lmf")


def verbs() -> dict[str, Any]:
    return {c.callback.__module__.rpartition(".")[2]: c.callback for c in app.registered_commands if c.callback}


@pytest.mark.parametrize("verb", verbs())
def test_the_examples_of_the_help_parse(verb: str) -> None:
    group = typer.main.get_command(app)
    text = verbs()[verb].__doc__ or ""
    examples = [line.strip() for line in text.partition("Examples:")[2].splitlines() if line.strip()]
    assert len(examples) >= 2
    for example in examples:
        program, name, *args = shlex.split(example)
        assert program == "hardy" and name == verb
        group.commands[verb].make_context(verb, args)  # type: ignore[attr-defined]
    assert hardy(verb, "--help").exit_code == 0


@pytest.mark.parametrize(("shape", "size"), [((1, 8, 8), 512), ((3, 32, 32), 256), ((3, 224, 224), 16)])
def test_automatic_batch_size_falls_with_the_image(shape: tuple[int, int, int], size: int) -> None:
    assert common.batch_size_of("auto", shape=shape) == size
    assert common.batch_size_of("7", shape=shape) == 7


def test_the_device_is_what_there_is() -> None:
    assert common.device_of("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="CUDA is not available"):
            common.device_of("cuda")


@pytest.mark.parametrize(
    "options", [["--out", "r.npz"], ["--out", "r.partial"], ["--out", "r.json", "--save-adversarial", "r.npz"]]
)
def test_files_that_would_replace_each_other_are_refused_before_the_work(options: list[str], runs: Path) -> None:
    result = hardy("evaluate", str(runs / "plain"), *options, "--axes", "clean,white_box")
    assert result.exit_code == 2 and "must be different files" in result.stderr
