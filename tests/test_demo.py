"""The demo tells the whole story on embedded data, and goes on where it was stopped."""

from pathlib import Path

import pytest

from hardy.demo import ARMS, DemoProgress, demo, recipe
from hardy.results import Result
from hardy.training import build_methods


def test_the_arms_are_paired_and_valid() -> None:
    recipes = [recipe(arm, 0) for arm in ARMS]
    first = recipes[0]
    assert all(
        (r.seed, r.model, r.data, r.train) == (first.seed, first.model, first.data, first.train) for r in recipes
    )
    assert [len(build_methods(r.methods)) for r in recipes] == [0, 1, 1, 2]


@pytest.mark.slow
def test_the_demo_measures_every_axis_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[DemoProgress] = []
    page = demo(tmp_path / "demo", device="cpu", on_progress=seen.append)
    shares = [p.done / p.total for p in seen]
    assert shares == sorted(shares) and shares[-1] > 0.9
    first = {arm: Result.read(tmp_path / "demo" / arm / "result.json") for arm in ARMS}
    for result in first.values():
        assert {a.name for a in result.axes} == {"clean", "noise", "white_box", "eps_curve", "transfer", "texture"}
        assert result.accuracy("clean") > 0.9
        assert min(p.accuracy for p in result.axis("eps_curve").points) <= 0.1 + 0.05  # down to chance
        assert not [c for c in result.checks if c.status == "fail"]
    text = page.read_text(encoding="utf-8")
    assert all(arm in text for arm in ARMS) and "illustration" in text

    def no_training(*_: object) -> None:
        pytest.fail("a finished net was trained again")

    monkeypatch.setattr("hardy.training.loop._Job._epoch", no_training)
    again = demo(tmp_path / "demo", device="cpu")
    assert again == page
    for arm, result in first.items():
        assert (
            Result.read(tmp_path / "demo" / arm / "result.json").outcomes_by_point.keys()
            == result.outcomes_by_point.keys()
        )
