"""What the documents show is what the code does: generated pages, README code, recipes, links."""

import dataclasses
import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import hardy
from hardy.cli.main import app
from hardy.comparing import CompareRecipe, load_grid
from hardy.evaluation import AXES
from hardy.methods import METHODS, DefectiveConv, LocalFeatureMasking
from hardy.training import load_recipe
from hardy.training.recipe import build_methods

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def generator(path: str = "docs/generate.py") -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["methods.md", "recipes.md"])
def test_generated_pages_are_up_to_date(name: str) -> None:
    committed = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert committed == generator().PAGES[name](), "run: python docs/generate.py"


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda p: p.name)
def test_recipes_are_valid(path: Path) -> None:
    (load_grid if path.name.startswith("compare_") else load_recipe)(path)


def test_the_figures_on_the_cards_are_those_of_the_results() -> None:
    assert generator("benchmarks/record.py").TARGET.read_text() == generator("benchmarks/record.py").figures()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_method_works_on_every_family_of_nets_as_the_page_says() -> None:
    committed = (ROOT / "docs" / "nets.md").read_text(encoding="utf-8")
    assert committed == generator("docs/nets.py").nets_page(), "run: python docs/nets.py"


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("family", generator("docs/nets.py").NETS)
def test_every_family_works_at_224_pixels(family: str) -> None:
    nets = generator("docs/nets.py")
    name, size = nets.NETS[family]
    model = nets.build(name).eval()
    small, large = hardy.stages(model, nets.images(size)), hardy.stages(model, nets.images(224))
    assert large[0].convs[0].name == small[0].convs[0].name
    assert [s.name for s in large] == ["stem", *(f"stage{i}" for i in range(1, len(large)))]
    strides = [s.stride for s in large[1:]]
    assert strides == sorted(set(strides)) and len(large) >= len(small) - 1
    x, methods = nets.images(224), [LocalFeatureMasking(), DefectiveConv()]
    with torch.no_grad():
        want = model(x)
        with hardy.attach(model, methods, example=x, seed=0) as attached:
            assert all(a.sites for a in attached) and model(x).isfinite().all()
        assert torch.equal(model(x), want)


def test_the_page_of_nets_has_every_family_and_method() -> None:
    nets, page = generator("docs/nets.py"), (ROOT / "docs" / "nets.md").read_text(encoding="utf-8")
    table = [line for line in page.splitlines() if line.startswith("| ")]
    assert page.startswith(nets.INTRO) and len(table) == 1 + len(nets.NETS)
    assert table[0].endswith(" | ".join(f"`{name}`" for name in nets.METHODS_INSIDE) + " |")
    assert all(f"| {family} | `{name}` | {size} |" in page for family, (name, size) in nets.NETS.items())


def test_every_method_and_axis_is_in_the_readme() -> None:
    for name in [*METHODS, *AXES]:
        assert f"| `{name}` |" in README


def test_links_lead_somewhere() -> None:
    for page in [README, *((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]:
        text, folder = (page, ROOT) if isinstance(page, str) else (page.read_text(encoding="utf-8"), page.parent)
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
            if not target.startswith("http"):
                assert (folder / target).exists(), target


def test_the_python_of_the_readme_runs_as_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = blocks("python")[0]
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 14
    scope: dict[str, Any] = {}
    exec(compile(code, "README", "exec"), scope)  # noqa: S102
    assert (tmp_path / "report.html").exists() and (tmp_path / "runs" / "mine" / "model.safetensors").exists()
    assert scope["result"].accuracy("clean") > 0.7
    assert "tensor(" in capsys.readouterr().out


def test_the_loop_of_the_readme_runs_as_pasted() -> None:
    data = hardy.load_data("digits", split="train").limit(64)
    model = hardy.load_model("cifar_resnet8", num_classes=10, in_channels=1)
    batches = hardy.Batches(data, batch_size=32, seed=0, augment=()).epoch(0)
    scope = {
        "hardy": hardy,
        "LocalFeatureMasking": LocalFeatureMasking,
        "DefectiveConv": DefectiveConv,
        "model": model,
        "x": data.images(),
        "batches": batches,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
    }
    before = {name: value.clone() for name, value in model.state_dict().items()}
    exec(compile(blocks("python")[1], "README", "exec"), scope)  # noqa: S102
    scope["attached"].detach()
    assert list(model.state_dict()) == list(before)
    assert len(hardy.attachments(scope["plain"])) == 1


def test_the_page_about_comparisons_has_every_key_and_its_recipe_is_valid(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
    file = tmp_path / "grid.toml"
    file.write_text(re.findall(r"```toml\n(.*?)```", page, re.DOTALL)[0])
    assert list(load_grid(file).compare.arms) == ["plain", "lfm"]
    for field in dataclasses.fields(CompareRecipe):
        assert f"| `{'arms.NAME.methods' if field.name == 'arms' else field.name}` |" in page


def test_the_recipe_of_the_readme_is_valid(tmp_path: Path) -> None:
    (tmp_path / "photos.toml").write_text(blocks("toml")[0])
    recipe = load_recipe(tmp_path / "photos.toml", ["methods=[]"])
    assert recipe.methods == () and recipe.data.size == 128
    text = '[model]\nname = "lenet5"\n[data]\nname = "digits"\n' + blocks("toml")[1]
    (tmp_path / "shares.toml").write_text(text)
    assert [m.sites for m in build_methods(load_recipe(tmp_path / "shares.toml").methods)] == [("bottom",), ("top",)]


@pytest.mark.slow
def test_the_commands_of_the_readme_run_as_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    for line in blocks("bash")[0].splitlines():
        program, *args = shlex.split(line, comments=True)
        done = CliRunner().invoke(app, args)
        assert program == "hardy" and done.exit_code == 0, (line, done.stderr)
    assert (tmp_path / "report.html").exists()
