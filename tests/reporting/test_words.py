"""The verdict says what the numbers say, and says plainly where nothing helps."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hardy.reporting.compare import scores, topics
from hardy.reporting.runs import Run, read_runs
from hardy.reporting.words import seeds_label, verdict
from hardy.results import Result, point
from hardy.threats import Threat

Make = Callable[..., Result]
MINUS = "\N{MINUS SIGN}"
WHO = "an attacker who knows the net (standard suite, worst case)"
ZERO = f"White-box accuracy is near zero. At Linf, eps 8/255, {WHO} breaks it: it keeps"


def say(*runs: Run) -> tuple[str, dict[str, str]]:
    lead, statements = verdict(scores(runs, topics(runs)))
    return lead.replace("\N{NO-BREAK SPACE}", " "), {
        s.label: s.text.replace("\N{NO-BREAK SPACE}", " ") for s in statements
    }


def as_run(name: str, result: Result, seconds: float | None = None, epochs: int = 1) -> Run:
    row = {} if seconds is None else {"seconds": seconds / epochs}
    return Run(name=name, path=Path(name), result=result, metrics=(row,) * epochs)


def test_gains_costs_and_nothing_are_told_apart(comparison: list[Path]) -> None:
    lead, rest = say(*read_runs(comparison, None))
    assert lead == (
        f"White-box accuracy is near zero. At Linf, eps 8/255, {WHO} breaks every one "
        "of them: the best, plain, keeps 0.3 % [0.0, 1.6]. "
        "Compared with plain on the same 360 images, lfm gains on noise (+4.2 points), transfer (+8.1 points), "
        "queries (+8.1 points) and corruptions (+2.7 points); defective gains on noise (+5.0 points), transfer (+18.1 "
        "points), queries (+14.2 points) and corruptions (+2.0 points). dropout_erasing shows no clear gain anywhere."
    )
    assert rest["Clean accuracy"] == (
        f"It falls for defective ({MINUS}3.9 points); it does not clearly change for lfm and dropout_erasing."
    )
    assert rest["Training time"].startswith("It took 1.04\N{MULTIPLICATION SIGN} (lfm), 1.22\N{MULTIPLICATION SIGN}")
    assert rest["No clear gain"] == "On gray-box and the worst case, for any run."
    assert "lfm gains at 1/255 (+8.1 points) and 2/255" in rest["Over eps"]
    assert rest["Gray-box"].endswith("What lfm and defective gained on transfer is not seen here.")
    assert rest["Control"] == "One random draw as large as the white-box attack leaves 91.9 to 96.1 %."


def test_one_run_claims_no_gain(make_result: Make) -> None:
    lead, rest = say(as_run("plain", make_result()))
    assert lead == (
        f"plain classifies 96.9 % of 360 untouched images as labelled. {ZERO} 0.3 % [0.0, 1.6]. Otherwise it is "
        "weakest on queries (36.9 %) and strongest on noise (78.9 %). Whether any of this is a gain, only a paired run "
        "without the method can tell."
    )
    assert rest["Gray-box"] == "Attacks made on the same method from another seed leave 45.0 %."


def test_the_same_net_twice_gains_nothing(make_result: Make) -> None:
    lead, rest = say(as_run("a", make_result()), as_run("b", make_result()))
    assert "b shows no clear gain anywhere" in lead and "Losses" not in rest
    assert rest["Over eps"] == "No clear difference at any eps."
    assert rest["Clean accuracy"] == "It does not clearly change for b."


def test_losses_are_named(make_result: Make) -> None:
    lead, rest = say(as_run("a", make_result()), as_run("b", make_result(-0.2)))
    losses = f"noise ({MINUS}10.0 points), transfer ({MINUS}20.0 points) and queries ({MINUS}20.0 points)"
    assert f"b gains nothing clearly, and loses on {losses}" in lead
    assert rest["Losses"].startswith(f"b loses on {losses}")
    assert rest["Queries (scores)"] == (
        f"b loses at 300 ({MINUS}20.0 points) and 1,000 ({MINUS}20.0 points). Elsewhere on the curve nothing is clear."
    )
    assert f"b loses at 1/255 ({MINUS}20.0 points)" in rest["Over eps"]


BOTH = ("white_box/standard", "worst_case/worst case")


@pytest.mark.parametrize(
    ("accuracy", "says"),
    [(0.0, f"{ZERO} 0.0 %"),
     (0.08, f"{ZERO} 8"),
     (0.1, "leaves nothing clearly better than guessing (10.0 %): it keeps 10.0 %"),
     (0.6, f"At Linf, eps 8/255, {WHO} leaves it 60.0 % [54.9, 64.9]. Read the checks before you believe it. Other")],
)  # fmt: skip
def test_white_box_is_said_plainly(
    make_result: Make, remeasured: Make, accuracy: float, says: str, outcomes: Callable[[float], object]
) -> None:
    lead, _ = say(as_run("a", remeasured(make_result(checks=()), dict.fromkeys(BOTH, outcomes(accuracy)))))
    assert says in lead


def test_the_worst_case_leads_where_it_is_worse_than_the_suite(
    make_result: Make, remeasured: Make, outcomes: Callable[[float], object]
) -> None:
    found = {key: outcomes(accuracy) for key, accuracy in zip(BOTH, (0.6, 0.02), strict=True)}
    lead, _ = say(as_run("a", remeasured(make_result(checks=()), found)))
    assert f"Accuracy in the worst case is near zero. At Linf, eps 8/255, {WHO} breaks it: it keeps 1.9 %" in lead


@pytest.mark.parametrize(
    ("label", "name"), [("quick", "quick suite"), ("pgd", "pgd alone"), ("custom", "custom suite")]
)
def test_other_suites_are_named_and_to_be_confirmed(
    make_result: Make, remeasured: Make, outcomes: Callable[[float], object], label: str, name: str
) -> None:
    result = remeasured(make_result(checks=()), {BOTH[0]: outcomes(0.6)})
    axis = result.axis("white_box")
    points = tuple(replace(p, label=label) if p.label == "standard" else p for p in axis.points)
    result = replace(result, axes=(result.axes[0], replace(axis, headline=label, points=points)))
    lead, _ = say(as_run("a", result))
    assert f"an attacker who knows the net ({name}) leaves it 60.0 %" in lead
    assert "before you believe it. Confirm it with the standard suite." in lead


def test_a_gain_that_survives_the_gray_box_is_said(make_result: Make, outcomes: Callable[[float], object]) -> None:
    result = make_result(0.2)
    axis, right = result.axis("transfer"), outcomes(0.7)
    twin = replace(axis.points[1], **{k: getattr(point("x", right), k) for k in ("accuracy", "low", "high")})  # type: ignore[arg-type]
    axes = tuple(replace(a, points=(a.points[0], twin)) if a is axis else a for a in result.axes)
    kept = {**result.outcomes_by_point, f"transfer/{twin.label}": right}
    _, rest = say(as_run("a", make_result()), as_run("b", replace(result, axes=axes, outcomes_by_point=kept)))  # type: ignore[arg-type]
    assert rest["Gray-box"].endswith("What b gained on transfer is seen here too.")


def test_runs_on_other_data_are_not_compared(make_result: Make) -> None:
    lead, rest = say(as_run("a", make_result()), as_run("b", make_result(data="cifar10:test")))
    assert "Nothing here can be compared with a image by image" in lead
    assert rest["Not comparable"] == "b (other data)."
    assert "Clean accuracy" not in rest and "No clear gain" not in rest


def test_axes_that_were_not_measured_are_not_talked_about(make_result: Make) -> None:
    bare = make_result(axes=(), outcomes_by_point={}, checks=())
    assert say(as_run("a", bare))[0] == "None of these results holds a measurement."
    only = make_result(axes=make_result().axes[:1])
    lead, rest = say(as_run("a", only), as_run("b", only))
    assert lead.endswith("What is left against an attacker who knows the net was not measured.")
    assert set(rest) == {"Clean accuracy"}
    assert say(as_run("a", bare), as_run("b", bare))[0].startswith("None of these results holds a measurement.")


def test_other_numbers_of_epochs_are_said_beside_the_time(make_result: Make) -> None:
    runs = as_run("a", make_result(), 80.0, 4), as_run("b", make_result(), 160.0, 8)
    assert say(*runs)[1]["Training time"].endswith("The numbers of epochs differ.")


def test_short_trainings_are_not_compared_in_time(make_result: Make) -> None:
    runs = as_run("a", make_result(), 59.0, 4), as_run("b", make_result(), 160.0, 8)
    assert say(*runs)[1]["Training time"].startswith("These trainings are too short to compare")


def test_gains_along_the_noise_curve_are_told_though_the_headline_is_unclear(make_result: Make) -> None:
    better = make_result()
    axis = better.axis("noise")
    far = max(axis.points, key=lambda p: p.level or 0)
    right = better.outcomes_by_point[f"noise/{far.label}"].copy()
    right[:] = True
    axes = tuple(
        replace(
            a, points=tuple(point(p.label, right, level=p.level, series=p.series) if p is far else p for p in a.points)
        )
        if a is axis
        else a
        for a in better.axes
    )
    better = replace(better, axes=axes, outcomes_by_point={**better.outcomes_by_point, f"noise/{far.label}": right})
    _, rest = say(as_run("a", make_result()), as_run("b", better))
    assert f"b gains at {far.level:g}" in rest["Over sigma"]
    assert "On noise at sigma" in rest["No clear gain"]


def test_other_threats_are_not_called_one(make_result: Make) -> None:
    lead, _ = say(as_run("a", make_result()), as_run("b", make_result(threat=Threat("l2", 0.5))))
    assert f"{WHO[0].upper()}{WHO[1:]} breaks every one of them" in lead


@pytest.mark.parametrize(
    ("seeds", "label"),
    [(1, "One pair of seeds: an illustration, not evidence"), (2, "2 seeds per arm: an illustration, not evidence"),
     (3, "3 seeds per arm: enough to look, not to claim"), (5, "5 seeds per arm")],
)  # fmt: skip
def test_the_page_says_how_far_the_seeds_carry(make_result: Make, seeds: int, label: str) -> None:
    arms = [make_result(), make_result(methods=("LFM()",))]
    runs = [Run(name=f"{i}", path=Path(f"{i}"), result=r, recipe=f"seed = {i}") for r in arms for i in range(seeds)]
    assert seeds_label(runs) == label
    assert seeds_label([*runs, Run(name="x", path=Path("x"), result=make_result(methods=("Other()",)))]) == (
        "One pair of seeds: an illustration, not evidence"
    )
    assert seeds_label(runs[:1]) == "One seed: an illustration, not evidence"


def test_the_same_seed_twice_is_one_seed(make_result: Make) -> None:
    runs = [Run(name=f"{i}", path=Path(f"{i}"), result=make_result(), recipe="seed = 0") for i in range(5)]
    assert seeds_label(runs) == "One pair of seeds: an illustration, not evidence"
