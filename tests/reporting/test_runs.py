"""Run folders are read as they are, or refused with the file and the way out."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hardy.errors import DataError, ParameterError
from hardy.reporting.runs import read_runs
from hardy.results import Result

Make = Callable[..., Result]
Write = Callable[..., Path]


@pytest.fixture
def one_run(tmp_path: Path, make_result: Make, write_run: Write) -> Path:
    return write_run(tmp_path / "a", make_result())


def test_a_folder_gives_result_recipe_environment_and_metrics(
    tmp_path: Path, make_result: Make, write_run: Write
) -> None:
    result = make_result(methods=("LFM(p=0.5)", "Erase()"))
    (run,) = read_runs([write_run(tmp_path / "a", result, seed=3, epochs=4, seconds=0.5)], None)
    assert (run.name, run.result, run.seed, run.methods) == ("a", result, "3", "LFM + Erase")
    assert run.environment["python"] == "3.11"
    assert run.train_seconds == 2.0 and [row["epoch"] for row in run.metrics] == [1, 2, 3, 4]


def test_a_result_alone_is_enough(tmp_path: Path, make_result: Make) -> None:
    make_result().save(tmp_path / "b" / "other.json")
    (run,) = read_runs([tmp_path / "b" / "other.json"], None)
    assert (run.name, run.recipe, run.environment, run.metrics, run.train_seconds) == ("other", "", {}, (), None)


def test_the_baseline_comes_first_by_path_by_name_or_from_outside(comparison: list[Path]) -> None:
    assert [run.name for run in read_runs(comparison[:3], comparison[2])] == ["defective", "plain", "lfm"]
    assert [run.name for run in read_runs(comparison[:3], "lfm")] == ["lfm", "plain", "defective"]
    assert [run.name for run in read_runs(comparison[:2], comparison[3])] == ["dropout_erasing", "plain", "lfm"]


def test_equal_folder_names_grow_until_they_differ(tmp_path: Path, make_result: Make, write_run: Write) -> None:
    folders = [write_run(tmp_path / part, make_result()) for part in ("a/seed0", "b/seed0", "b/seed1")]
    assert [run.name for run in read_runs(folders, None)] == ["a/seed0", "b/seed0", "seed1"]


def test_the_later_row_of_an_epoch_counts_and_half_a_line_at_the_end_does_not(
    tmp_path: Path, make_result: Make, write_run: Write
) -> None:
    folder = write_run(tmp_path / "a", make_result(), epochs=0)
    (folder / "metrics.jsonl").write_text(
        '{"epoch": 1, "seconds": 1}\n{"epoch": 2, "seconds": 9, "task": NaN, "big": 1' + "0" * 400 + "}\n"
        '{"epoch": 2, "seconds": 2}\n\n{"epoch": 3, "sec'
    )
    (run,) = read_runs([folder], None)
    assert run.metrics == ({"epoch": 1.0, "seconds": 1.0}, {"epoch": 2.0, "seconds": 2.0})


def test_training_time_is_unknown_when_an_epoch_lacks_it(tmp_path: Path, make_result: Make, write_run: Write) -> None:
    folder = write_run(tmp_path / "a", make_result(), epochs=2)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3}\n')
    assert read_runs([folder], None)[0].train_seconds is None


def test_arms_differ_by_recipe_and_methods_but_not_by_seed(comparison: list[Path]) -> None:
    plain, lfm, _, _ = read_runs(comparison, None)
    other = replace(plain, recipe=plain.recipe.replace("seed = 0", "seed = 1"))
    assert plain.arm == other.arm and plain.seed != other.seed
    assert plain.arm != lfm.arm and plain.arm != replace(plain, recipe=plain.recipe + "lr = 0.2\n").arm


def test_a_list_is_a_list_and_every_run_stands_in_it_once(comparison: list[Path]) -> None:
    with pytest.raises(ParameterError, match="runs must be a list of run folders; got"):
        read_runs(str(comparison[0]), None)
    with pytest.raises(ParameterError, match="at least one run is needed; got none"):
        read_runs([], None)
    with pytest.raises(ParameterError, match=r"must be given once; got .* twice"):
        read_runs([comparison[0], comparison[0] / "result.json"], None)


@pytest.mark.parametrize(
    ("name", "content", "message"),  # content in Latin-1, so that bytes which are not UTF-8 can stand here
    [
        ("metrics.jsonl", "{}\nnot json\n{}\n", r"metrics.jsonl:2: not JSON"),
        ("metrics.jsonl", "[1]\n", r"metrics.jsonl:1: a JSON object must stand here; got list"),
        ("env.json", "{", r"env.json: not JSON"),
        ("env.json", "\xff", r"env.json: not JSON"),
        ("result.json", "{", r"result.json: not a readable result"),
    ],
)
def test_a_damaged_file_is_named(one_run: Path, name: str, content: str, message: str) -> None:
    folder = one_run
    (folder / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=message):
        read_runs([folder], None)


def test_a_missing_run_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such run folder or result file"):
        read_runs([tmp_path / "none"], None)
    with pytest.raises(DataError, match=r"must hold a result.json; it does not. Run: hardy evaluate"):
        read_runs([tmp_path], None)
