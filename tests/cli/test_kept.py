"""Finished images of a stopped evaluation."""

import json
from pathlib import Path

import pytest

from hardy.cli.kept import kept
from hardy.errors import ConfigError


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """Make the folder of an evaluation with seed 1 that was stopped."""
    folder = tmp_path / "r.partial"
    folder.mkdir()
    (folder / "a.npz").write_bytes(b"")
    (folder / "question.json").write_text('{"seed": 1}')
    return folder


@pytest.mark.parametrize(
    ("resume", "overwrite", "seed", "left"),
    [
        (True, False, 1, True),
        (True, True, 1, True),  # --overwrite is for the file that is to be written
        (False, True, 1, False),
        (False, True, 2, False),
    ],
)
def test_what_is_kept_is_gone_on_with_or_removed(
    resume: bool, overwrite: bool, seed: int, left: bool, stopped: Path
) -> None:
    with kept(stopped, {"seed": seed}, resume=resume, overwrite=overwrite) as folder:
        assert (folder / "a.npz").exists() is left
        assert json.loads((folder / "question.json").read_text()) == {"seed": seed}


@pytest.mark.parametrize("overwrite", [True, False])
def test_another_question_does_not_go_on(overwrite: bool, stopped: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"had another seed \(1\)"),
        kept(stopped, {"seed": 2}, resume=True, overwrite=overwrite),
    ):
        pass
    assert (stopped / "a.npz").exists()
