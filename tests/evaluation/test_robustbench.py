"""The record says what was measured, in RobustBench's fields, and nothing else."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import hardy
from hardy.errors import ParameterError
from hardy.evaluation.robustbench import robustbench_record
from hardy.results import Axis, Check, Point, Result, point
from hardy.safefile import write_json
from hardy.threats import Threat

N = 1600
STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
# the fields of RobustBench's model_info files (version 1.1.1), those of corruptions aside
FIELDS = {
    *("link", "name", "authors", "additional_data", "number_forward_passes", "dataset", "venue", "architecture"),
    *("eps", "clean_acc", "reported", "autoattack_acc", "external", "footnote", "unreliable"),
}


def right(count: int, label: str, **facts: object) -> Point:
    return point(label, np.arange(N) < count, **facts)


def axis(name: str, headline: str, *points: Point) -> Axis:
    return Axis(name=name, question="?", headline=headline, points=points)


@pytest.fixture
def make() -> Callable[..., Result]:
    def result(
        suite: str = "standard",
        more: tuple[Point, ...] = (),
        worst: int | None = None,
        checks: tuple[Check, ...] = (),
        details: dict[str, object] | None = None,
        **facts: object,
    ) -> Result:
        falling = zip(STANDARD, (900, 805, 802, 801), strict=True)
        points = [right(count, label, details=details or {}) for label, count in falling] + list(more)
        last = round(points[-1].accuracy * N)
        axes = [axis("clean", "clean", right(1433, "clean"))]
        axes.append(axis("white_box", suite, *points, right(last, suite), right(1400, "noise")))
        if worst is not None:
            whole = right(worst, "worst case", details={"axes": "white_box, transfer"})
            axes.append(axis("worst_case", "worst case", whole, right(last, "white_box")))
        given = Result(
            model="net",
            num_classes=10,
            class_names=tuple("abcdefghij"),
            data="cifar10 test",
            n=N,
            threat=Threat("linf", 8 / 255),
            seed=0,
            axes=tuple(axes),
            checks=checks,
        )
        return dataclasses.replace(given, **facts)  # type: ignore[arg-type]

    return result


def test_accuracies_are_percent_as_text_and_facts_are_kept(make: Callable[..., Result]) -> None:
    record = robustbench_record(
        make(),
        link="https://arxiv.org/abs/1234.56789",
        name="A paper",
        authors="A, B",
        additional_data=False,
        number_forward_passes=1,
        venue="ICLR 2030",
        architecture="WideResNet-28-10",
        reported="51.2",
    )
    assert record == {
        "link": "https://arxiv.org/abs/1234.56789",
        "name": "A paper",
        "authors": "A, B",
        "additional_data": False,
        "number_forward_passes": 1,
        "dataset": "cifar10",
        "venue": "ICLR 2030",
        "architecture": "WideResNet-28-10",
        "eps": "8/255",
        "clean_acc": "89.56",  # 1433 of 1600
        "reported": "51.2",
        "autoattack_acc": "50.06",  # 801 of 1600
        "footnote": "Measured by Hardy on 1600 images of cifar10 test.",
        "unreliable": False,
    }
    assert set(record) <= FIELDS


def test_what_nobody_said_is_null_and_what_was_not_measured_is_absent(make: Callable[..., Result]) -> None:
    record = robustbench_record(make(data="my photos"))
    assert {k for k, v in record.items() if v is None} == {
        *("link", "name", "authors", "additional_data", "number_forward_passes", "dataset", "venue", "architecture"),
        "reported",
    }
    assert "external" not in record and not any("corruptions" in field for field in record)
    assert robustbench_record(make(data="my photos"), dataset="cifar100")["dataset"] == "cifar100"


@pytest.mark.parametrize(
    ("threat", "eps"),
    [
        (Threat("l2", 0.5), "0.5"),
        (Threat("l2", 128 / 255), "0.5019607843137255"),
        (Threat("linf", 4 / 255), "4/255"),
        (Threat("linf", 0.3), "0.3"),
    ],
)
def test_the_budget_is_written_as_robustbench_does_and_to_the_bit(
    make: Callable[..., Result], threat: Threat, eps: str
) -> None:
    record = robustbench_record(make(threat=threat))
    assert record["eps"] == eps and hardy.threats.parse_budget(eps) == pytest.approx(threat.eps, rel=1e-15)


def test_external_is_the_worst_case_where_it_is_lower(make: Callable[..., Result]) -> None:
    record = robustbench_record(make(worst=640))
    assert record["external"] == "40.00" and record["autoattack_acc"] == "50.06"
    assert str(record["footnote"]).endswith("External: per-image worst case over white_box, transfer.")
    assert "external" not in robustbench_record(make(worst=801))


def test_what_more_attacks_break_is_external_and_not_autoattack(make: Callable[..., Result]) -> None:
    more = (right(790, "apgd-ce again"), right(780, "hop-skip-jump"))
    record = robustbench_record(make(suite="full", more=more))
    assert record["autoattack_acc"] == "50.06" and record["external"] == "48.75"
    assert str(record["footnote"]).endswith("External: all attacks of white_box, suite full.")
    twin = robustbench_record(make(more=(right(400, "apgd-ce, twin"),), worst=160))
    assert twin["autoattack_acc"] == "50.06" and twin["external"] == "10.00"


def test_failed_checks_make_it_unreliable_and_are_named(make: Callable[..., Result]) -> None:
    checks = [Check(code=f"c{i}", status=s, evidence="") for i, s in enumerate(("pass", "warn", "fail", "not_run"))]  # type: ignore[arg-type]
    fine = robustbench_record(make(checks=(checks[0], checks[1], checks[3])))
    assert fine["unreliable"] is False and "c1" not in str(fine["footnote"])
    bad = robustbench_record(make(checks=tuple(checks)), footnote="A remark.")
    assert bad["unreliable"] is True
    assert bad["footnote"] == "A remark. Measured by Hardy on 1600 images of cifar10 test. Checks that failed: c2."


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"suite": "quick"}, r"got the suite 'quick'. Use suite=\"standard\""),
        ({"suite": "pgd"}, "must hold AutoAttack-standard"),
        ({"threat": Threat("l1", 12.0)}, "the norm must be one of linf, l2; got 'l1'"),
        ({"details": {"draws_per_gradient": 20}}, "random at test time"),
        ({"axes": ()}, "axis 'clean' was not measured"),
    ],
)
def test_other_protocols_are_refused(make: Callable[..., Result], facts: dict[str, object], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        robustbench_record(make(**facts))


@pytest.mark.parametrize("label", STANDARD)
def test_a_suite_that_lacks_an_attack_of_the_standard_is_refused_whatever_its_name(
    make: Callable[..., Result], label: str
) -> None:
    given = make()
    clean, white_box = given.axes
    cut = dataclasses.replace(white_box, points=tuple(p for p in white_box.points if p.label != label))
    with pytest.raises(ParameterError, match=f"white_box has no point {label!r}"):
        robustbench_record(dataclasses.replace(given, axes=(clean, cut)))


@pytest.mark.parametrize(
    "wrong", [{"reported": "half"}, {"reported": "101"}, {"reported": "nan"}, {"number_forward_passes": 0}]
)
def test_facts_out_of_range_are_refused(make: Callable[..., Result], wrong: dict[str, object]) -> None:
    with pytest.raises(ParameterError, match=f"robustbench: {next(iter(wrong))} must be"):
        robustbench_record(make(), **wrong)  # type: ignore[arg-type]


def test_the_record_of_a_real_evaluation_is_json_with_its_numbers(tmp_path: Path) -> None:
    x = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 5)).eval()
    for i, weights in enumerate(net[1].parameters()):
        nn.init.normal_(weights, generator=torch.Generator().manual_seed(i))
    y = net(x).argmax(dim=1)
    y[0] = (y[0] + 1) % 5
    axes = ["clean", "white_box", "worst_case"]
    result = hardy.evaluate(net, x, y, threat=Threat("linf", 0.9), axes=axes, data_name="noise test")
    write_json(tmp_path / "net.json", robustbench_record(result, name="A small net"))
    record = json.loads((tmp_path / "net.json").read_text())
    assert record["name"] == "A small net" and record["dataset"] is None and record["eps"] == "0.9"
    assert (
        record["clean_acc"] == "75.00" and record["autoattack_acc"] == "0.00" == f"{result.accuracy('white_box'):.2f}"
    )
    failed = [check.code for check in result.checks if check.status == "fail"]
    assert record["unreliable"] == bool(failed) and all(code in record["footnote"] for code in failed)
