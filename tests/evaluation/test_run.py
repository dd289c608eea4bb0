"""A whole evaluation: every axis, every check, one record that repeats and can be read back."""

import copy
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hardy.attacks import PGD, Square, attack
from hardy.corruptions import gaussian_noise, patch_shuffle
from hardy.errors import DataError, HardyError, ParameterError, ShapeError
from hardy.evaluation import AXES, DERIVED, FULL, AxisProgress, Budget, Material, evaluate
from hardy.evaluation.fingerprint import weights_digest
from hardy.results import Result
from hardy.seeding import keys, root
from hardy.threats import Threat

QUICK = Budget(
    curve_steps=4, noise_draws=3, transfer_steps=4, queries=60, min_norm_steps=10, corruptions=("contrast", "fog"),
    severities=(1, 5), drop_shares=(0.5,), fills=("mean", "zero"), bands=2, band_steps=2, weight_radii=(0.01,),
    weight_steps=2, weight_restarts=2, bits=(8,), smoothing_draws=12,
)  # fmt: skip
SUITE = [PGD(steps=5), PGD(steps=10, restarts=2), Square(queries=20)]
THREAT = Threat("linf", 0.1)
Train = Callable[[int], nn.Module]


@pytest.fixture(scope="module")
def result(net: nn.Module, trained: Train, x: Tensor, y: Tensor) -> Result:
    return evaluate(
        net,
        x,
        y,
        threat=THREAT,
        suite=SUITE,
        sources=[("other", trained(1))],
        siblings=[trained(2)],
        base=trained(3),
        budget=QUICK,
        material=Material(train=(x[:40], y[:40]), other={"turned": x.rot90(dims=(2, 3))}),
        model_name="small",
        data_name="digits",
        methods=("LocalFeatureMasking()",),
        command="hardy evaluate",
    )


def test_every_axis_is_measured_on_every_image(result: Result) -> None:
    assert [axis.name for axis in result.axes] == list(AXES)
    for axis in result.axes:
        assert "?" in axis.question
        labels = [each.label for each in (*axis.points, *axis.scores)]
        assert axis.headline in labels and len(set(labels)) == len(labels)
        for s in axis.scores:
            values = result.arrays.get(f"{axis.name}/{s.label}")
            if values is not None:  # the numbers per image behind a mean
                assert values.shape == (s.n,) and s.value == pytest.approx(values.mean(), abs=1e-5), s.label
        for p in axis.points:
            outcomes = result.outcomes_by_point[f"{axis.name}/{p.label}"]
            assert outcomes.shape == (120,) and outcomes.dtype == np.bool_
            assert p.accuracy == outcomes.mean() and p.low <= p.accuracy <= p.high and p.n == 120


def test_the_record_is_complete_and_can_be_read_back(
    result: Result, net: nn.Module, tmp_path: Path, x: Tensor, y: Tensor
) -> None:
    result.save(tmp_path / "result.json")
    assert Result.read(tmp_path / "result.json") == result
    assert (result.model, result.data, result.n, result.num_classes) == ("small", "digits", 120, 10)
    assert result.methods == ("LocalFeatureMasking()",) and result.command == "hardy evaluate"
    assert result.class_names == tuple("0123456789") and result.seconds > 0
    assert {"hardy", "torch", "python", "device", "threads"} <= result.environment.keys()
    assert np.array_equal(result.arrays["labels"], y.numpy())
    assert result.arrays["images"].tobytes() == hashlib.blake2b(x.numpy().tobytes(), digest_size=16).digest()
    assert result.arrays["model_weights"].tobytes().hex() == weights_digest(net)
    sources = {p.details["source_weights"] for p in result.axis("transfer").points}
    assert len(sources) == 3 and all(isinstance(s, str) and len(s) == 16 for s in sources)
    right = result.arrays["predictions"] == y.numpy()
    assert np.array_equal(right, result.outcomes_by_point["clean/clean"])


def test_accuracies_are_in_the_order_that_knowledge_gives(result: Result) -> None:
    clean, noise = result.accuracy("clean"), result.accuracy("white_box", "noise")
    white, transfer = result.accuracy("white_box"), result.accuracy("transfer", "other")
    assert white < transfer <= clean and white < noise <= clean and clean > 0.9
    images = torch.stack([result.outcomes("eps_curve", p.label) for p in result.axis("eps_curve").points])
    assert (images[1:] <= images[:-1]).all()  # once broken, always broken
    levels = [p.level for p in result.axis("eps_curve").points]
    assert levels == sorted(levels, key=float) and levels[0] == 0 and THREAT.eps in levels
    assert (result.outcomes("eps_curve") <= result.outcomes("white_box")).all()
    assert result.axis("eps_curve").points[-1].accuracy <= 0.1


def test_white_box_runs_each_attack_on_what_the_ones_before_left(
    result: Result, net: nn.Module, x: Tensor, y: Tensor
) -> None:
    points = result.axis("white_box").points
    assert [p.label for p in points] == ["pgd", "pgd #2", "square", "custom", "noise"]
    standing = net(x).argmax(dim=1) == y
    for p, spec in zip(points[:3], SUITE, strict=True):
        found = attack(net, x[standing], y[standing], spec, threat=THREAT, rows=standing.nonzero()[:, 0])
        assert p.details["attacked"] == int(standing.sum()) and p.details["broke"] == int(found.success.sum())
        assert p.passes == found.passes and p.details["attack"] == repr(spec) and p.level == THREAT.eps
        standing = standing.index_put((standing.nonzero()[:, 0],), ~found.success)
        assert torch.equal(result.outcomes("white_box", p.label), standing)
    assert torch.equal(result.outcomes("white_box"), standing)
    by = result.arrays["white_box/broken_by"]
    assert [(by == i).sum() for i in range(3)] == [p.details["broke"] for p in points[:3]]
    assert np.array_equal(by == -1, standing.numpy())
    assert np.array_equal(by == -2, ~result.outcomes_by_point["clean/clean"])


def test_noise_and_texture_are_the_corruptions_they_name(result: Result, net: nn.Module, x: Tensor, y: Tensor) -> None:
    rows = torch.arange(120)
    for sigma in QUICK.sigmas:
        noisy = gaussian_noise(x, sigma=sigma, key=keys(root(0, "noise"), rows))
        assert torch.equal(result.outcomes("noise", f"sigma {sigma:g}"), net(noisy).argmax(dim=1) == y)
    for grid in (2, 4, 8):
        shuffled = patch_shuffle(x, grid=grid, key=keys(root(0, "patch_shuffle"), rows))
        assert torch.equal(result.outcomes("texture", f"{grid}x{grid}"), net(shuffled).argmax(dim=1) == y)
    assert result.point("noise").level == 0.1 and result.point("texture").level == 2


def test_pictures_are_those_broken_first(result: Result, net: nn.Module) -> None:
    a = result.arrays
    assert a["examples/x"].shape == a["examples/x_adv"].shape == (8, 1, 8, 8)
    assert a["examples/x"].dtype == a["examples/x_adv"].dtype == np.float32
    assert (np.diff(a["examples/eps"]) >= 0).all() and np.isfinite(a["examples/eps"]).all()
    change = np.abs(a["examples/x_adv"] - a["examples/x"]).reshape(8, -1).max(axis=1)
    assert (change > 0).all() and (change <= a["examples/eps"] + 1e-6).all()
    assert (a["examples/prediction"] == a["examples/label"]).all()
    assert (a["examples/prediction_adv"] != a["examples/label"]).all()
    with torch.no_grad():
        assert np.array_equal(net(torch.from_numpy(a["examples/x_adv"])).argmax(dim=1), a["examples/prediction_adv"])
    first = next(p for p in result.axis("eps_curve").points if p.accuracy < result.accuracy("clean"))
    assert a["examples/eps"][0] == pytest.approx(first.level)


def test_a_sound_net_trips_no_check(result: Result) -> None:
    status = {check.code: check.status for check in result.checks}
    assert {status.pop(code) for code in FULL} == {"not_run"}
    assert set(status.values()) == {"pass"}, result.checks
    assert set(DERIVED) <= status.keys()
    assert all(check.remedy == "" for check in result.checks if check.status == "pass")


def test_every_check_has_a_heading_in_the_docs(result: Result) -> None:
    page = Path(__file__).parents[2] / "docs" / "checks.md"
    headings = {line[4:] for line in page.read_text().splitlines() if line.startswith("### ")}
    codes = {check.code for check in result.checks} | {"not_measured", *FULL}
    assert headings == codes
    assert all(check.anchor == f"docs/checks.md#{check.code}" for check in result.checks)


def test_results_repeat_whatever_the_batch_size_and_the_input_form(
    result: Result, net: nn.Module, trained: Train, x: Tensor, y: Tensor
) -> None:
    loader = [(x[:50], y[:50]), (x[50:], y[50:])]
    nets = {"sources": [("other", trained(1))], "siblings": [trained(2)], "base": trained(3)}
    rng = torch.get_rng_state()
    again = evaluate(net, loader, threat=THREAT, suite=SUITE, **nets, budget=QUICK, batch_size=50)  # type: ignore[arg-type]
    assert torch.equal(rng, torch.get_rng_state())
    for name, outcomes in result.outcomes_by_point.items():
        assert np.array_equal(outcomes, again.outcomes_by_point[name]), name


def test_a_subset_gives_the_same_outcomes_when_its_rows_are_named(
    result: Result, net: nn.Module, x: Tensor, y: Tensor
) -> None:
    rows, axes = torch.tensor([7, 3, 90, 41]), ["noise", "white_box", "texture"]
    part = evaluate(net, x[rows], y[rows], rows=rows, threat=THREAT, axes=axes, suite=SUITE, budget=QUICK)
    for name, outcomes in part.outcomes_by_point.items():
        assert np.array_equal(outcomes, result.outcomes_by_point[name][rows]), name
    with pytest.raises(ShapeError, match=r"rows must be 120 integers; got torch.int64 \(4,\)"):
        evaluate(net, x, y, rows=rows, suite=SUITE)


def test_the_model_is_left_as_it_was(net: nn.Module, x: Tensor, y: Tensor) -> None:
    before, grads = copy.deepcopy(net.state_dict()), [p.grad for p in net.parameters()]
    evaluate(net, x[:20], y[:20], suite=[PGD(steps=3)], budget=QUICK, checks="full", base=net)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert [p.grad for p in net.parameters()] == grads and not net.training


def test_progress_names_axis_and_attack(net: nn.Module, x: Tensor, y: Tensor) -> None:
    seen: list[AxisProgress] = []
    evaluate(net, x[:20], y[:20], axes=["white_box", "clean"], suite=SUITE, budget=QUICK, on_progress=seen.append)
    assert list(dict.fromkeys(p.axis for p in seen)) == ["clean", "white_box", "checks"]
    assert {p.attack.attack for p in seen if p.attack is not None} >= {"pgd", "square"}
    assert all(p.attack.done <= p.attack.total for p in seen if p.attack is not None)
    so_far = [p.robust for p in seen if p.robust is not None]
    assert so_far == sorted(so_far, reverse=True) and so_far[0] > so_far[-1]
    assert seen[-1].done == seen[-1].total == 2


def test_an_axis_without_inputs_is_not_run_and_says_so(net: nn.Module, x: Tensor, y: Tensor) -> None:
    got = evaluate(net, x[:20], y[:20], axes=["clean", "transfer", "texture"], budget=Budget(grids=(3,)))
    assert [axis.name for axis in got.axes] == ["clean"]
    missing = {c.evidence for c in got.checks if c.code == "not_measured"}
    assert missing == {"transfer: no other net to make images on", "texture: no grid of 3 divides 8x8 images"}
    status = {c.code: c.status for c in got.checks if c.code in DERIVED}
    assert set(status.values()) == {"not_run"}
    assert "examples/x" not in got.arrays and got.versus == ()


def test_a_grid_that_does_not_divide_is_named(net: nn.Module, x: Tensor, y: Tensor) -> None:
    got = evaluate(net, x[:20], y[:20], axes=["texture"], budget=Budget(grids=(2, 3, 4)))
    assert [p.label for p in got.axis("texture").points if p.series == "patch shuffle"] == ["2x2", "4x4"]
    assert got.point("texture").details["skipped_grids"] == "3 (not dividing 8x8)"


def test_several_transfer_budgets_make_several_points(net: nn.Module, trained: Train, x: Tensor, y: Tensor) -> None:
    budget = Budget(transfer_steps=3, transfer_eps=(0.05, 0.2))
    got = evaluate(net, x, y, threat=THREAT, axes=["transfer"], sources=[trained(1)], budget=budget)
    accuracy = {p.label: p.accuracy for p in got.axis("transfer").points}
    assert list(accuracy) == ["source 0", "source 0, linf 0.05", "source 0, linf 0.2"]
    assert accuracy["source 0, linf 0.2"] < accuracy["source 0"] <= accuracy["source 0, linf 0.05"]


def test_l2_has_all_axes_too(net: nn.Module, x: Tensor, y: Tensor) -> None:
    got = evaluate(
        net, x, y, threat=Threat("l2", 0.8), axes=["clean", "white_box", "eps_curve"], suite=SUITE, budget=QUICK
    )
    curve = [p.accuracy for p in got.axis("eps_curve").points]
    assert curve == sorted(curve, reverse=True) and curve[-1] <= 0.1
    assert got.accuracy("white_box") < got.accuracy("white_box", "noise")


def test_a_net_that_is_always_wrong_is_no_special_case(net: nn.Module, x: Tensor, y: Tensor) -> None:
    got = evaluate(net, x, (net(x).argmax(dim=1) + 1) % 10, suite="quick", budget=QUICK, checks="full")
    zero = ("clean", "white_box", "eps_curve", "minimal_norm", "query", "worst_case")
    assert {p.accuracy for name in zero for p in got.axis(name).points} == {0.0}
    assert "examples/x" not in got.arrays


BAD: dict[str, tuple[type[HardyError], str, Callable[[nn.Module, Tensor, Tensor], object]]] = {
    "train": (
        ParameterError,
        r"evaluate: the model must be in eval mode; .* Call model.eval\(\)",
        lambda net, x, y: evaluate(copy.deepcopy(net).train(), x, y),
    ),
    "axis": (
        ParameterError,
        "unknown axis 'cleen'; did you mean 'clean'",
        lambda n, x, y: evaluate(n, x, y, axes=["cleen"]),
    ),
    "half": (
        DataError,
        "evaluate: weights must be float32, .* 0.weight is torch.float16",
        lambda net, x, y: evaluate(copy.deepcopy(net).half(), x, y),
    ),
    "suite": (
        ParameterError,
        "unknown suite 'standart'; did you mean 'standard'",
        lambda n, x, y: evaluate(n, x, y, suite="standart"),
    ),
    "attack": (
        ParameterError,
        "unknown attack 'pdg' in suite; did you mean 'pgd'",
        lambda n, x, y: evaluate(n, x, y, suite=["fgsm", "pdg"]),
    ),
    "norm": (
        ParameterError,
        "cw is defined for l2; got 'linf'",
        lambda n, x, y: evaluate(n, x, y, suite=["cw"]),
    ),
    "empty suite": (ParameterError, "at least one attack", lambda n, x, y: evaluate(n, x, y, suite=[])),
    "no axis": (ParameterError, "at least one axis", lambda n, x, y: evaluate(n, x, y, axes=[])),
    "uint8": (
        DataError,
        r"float pixels in \[0, 1\]; got torch.uint8",
        lambda n, x, y: evaluate(n, (x * 255).byte(), y),
    ),
    "255": (DataError, "0-255 pixels", lambda n, x, y: evaluate(n, x * 255, y)),
    "normalised": (DataError, "look normalised", lambda n, x, y: evaluate(n, (x - 0.5) / 0.2, y)),
    "labels": (
        DataError,
        r"labels must be in 0 .. 9, the model's outputs; got 0 .. 10",
        lambda n, x, y: evaluate(n, x, y + (y == 9)),
    ),
    "no y": (ParameterError, "got a tensor without y", lambda n, x, _: evaluate(n, x)),
    "y twice": (ParameterError, "got a loader and y", lambda n, x, y: evaluate(n, [(x, y)], y)),
    "empty": (DataError, "gave no batch", lambda n, _, __: evaluate(n, [])),
    "shapes": (ShapeError, r"y \(n,\); got \(120, 1, 8, 8\), \(119,\)", lambda n, x, y: evaluate(n, x, y[1:])),
    "names": (
        ParameterError,
        "must name all 10 outputs; got 2",
        lambda n, x, y: evaluate(n, x, y, class_names=["a", "b"]),
    ),
    "twins": (
        ParameterError,
        "got 'base' twice",
        lambda n, x, y: evaluate(n, x, y, sources=[("base", n)], base=n),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_stops_before_anything_is_measured(net: nn.Module, x: Tensor, y: Tensor, name: str) -> None:
    kind, message, call = BAD[name]
    with pytest.raises(kind, match=message):
        call(net, x, y)


@pytest.mark.parametrize(
    "wrong",
    [{"curve_steps": 0}, {"sigmas": ()}, {"sigmas": (0.1, 0.1)}, {"grids": (0,)}, {"transfer_attack": "fab?"}],
)
def test_a_budget_is_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(ParameterError):
        Budget(**wrong)  # type: ignore[arg-type]
