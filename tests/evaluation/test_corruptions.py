"""The axis of corruptions: every accuracy against a prediction by hand, every mean against its definition."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hardy import seeding
from hardy.corruptions import ALEXNET_ERRORS, CORRUPTIONS, corrupt
from hardy.data.corrupted import cifar_c
from hardy.errors import DataError, ParameterError, ShapeError
from hardy.evaluation import corruptions
from hardy.evaluation.budget import Budget
from hardy.evaluation.context import Context, Measured, NotMeasured
from hardy.evaluation.corruptions import check_copies, check_reference, measure
from hardy.evaluation.material import Material
from hardy.results import Score
from hardy.threats import Threat

FEW = 45  # images, in parts of 28 and 17
SEED = 3
COMMON = [name for name, each in CORRUPTIONS.items() if each.common]
CHEAP = ("brightness", "gaussian_noise", "contrast", "speckle_noise")


@pytest.fixture(scope="module")
def make(net: nn.Module, x: Tensor, y: Tensor) -> Callable[..., Context]:
    def context(budget: Budget | None = None, material: Material | None = None, **facts: object) -> Context:
        given = {"model": net, "x": x[:FEW], "y": y[:FEW], "rows": torch.arange(FEW) + 5, **facts}
        plain = Context(
            predictions=given["y"],  # type: ignore[arg-type]
            num_classes=10,
            threat=Threat("linf", 0.1),
            budget=budget or Budget(),
            material=material or Material(),
            seed=SEED,
            batch_size=7,
            **given,  # type: ignore[arg-type]
        )
        return dataclasses.replace(plain, predictions=plain.predict(plain.x))

    return context


@pytest.fixture(scope="module")
def whole(make: Callable[..., Context]) -> Measured:
    measured = measure(make())
    assert isinstance(measured, Measured)
    return measured


def scores(measured: Measured | NotMeasured) -> dict[str, Score]:
    assert isinstance(measured, Measured), measured
    return {score.label: score for score in measured.axis.scores}


def by_name(measured: Measured | NotMeasured) -> dict[str, np.ndarray]:
    """Outcomes (severities, n) by corruption."""
    assert isinstance(measured, Measured), measured
    names = dict.fromkeys(point.series for point in measured.axis.points)
    return {
        name: np.stack([measured.outcomes[p.label].numpy() for p in measured.axis.points if p.series == name])
        for name in names
    }


def test_every_corruption_at_every_severity_is_a_point(whole: Measured) -> None:
    assert [(p.label, p.series, p.level) for p in whole.axis.points] == [
        (f"{name} {severity}", name, severity) for name in CORRUPTIONS for severity in (1, 2, 3, 4, 5)
    ]
    assert all(point.passes == {"forward": FEW} and point.n == FEW for point in whole.axis.points)
    assert {p.details["family"] for p in whole.axis.points} == {"noise", "blur", "weather", "digital"}
    assert list(whole.outcomes) == [point.label for point in whole.axis.points]
    assert whole.axis.level_name == "severity"


@pytest.mark.parametrize("case", [("gaussian_noise", 5), ("contrast", 4), ("speckle_noise", 3)])
def test_outcomes_are_those_of_predictions_by_hand(
    whole: Measured, net: nn.Module, x: Tensor, y: Tensor, case: tuple[str, int]
) -> None:
    name, severity = case
    key = seeding.keys(seeding.root(SEED, f"corruptions:{name}:{severity}"), torch.arange(FEW) + 5)
    with torch.no_grad():
        right = net(corrupt(x[:FEW], name, severity=severity, key=key, scale="cifar")).argmax(1) == y[:FEW]
    assert torch.equal(whole.outcomes[f"{name} {severity}"], right)
    assert 0 < int(right.sum()) < FEW  # it could have failed


def test_means_are_those_of_the_outcomes(whole: Measured) -> None:
    right, got = by_name(whole), scores(whole)
    members = {"mean accuracy": COMMON, "extra": [name for name in CORRUPTIONS if name not in COMMON]}
    members |= {f: [n for n in COMMON if CORRUPTIONS[n].family == f] for f in ("noise", "blur", "weather", "digital")}
    assert list(got) == ["mean accuracy", "noise", "blur", "weather", "digital", "extra"]
    for label, names in members.items():
        per_image = np.concatenate([right[name] for name in names]).mean(0)
        assert got[label].value == pytest.approx(per_image.mean(), abs=1e-6)
        np.testing.assert_allclose(whole.arrays[label].numpy(), per_image, atol=1e-6)
        assert got[label].kind == "accuracy" and got[label].n == FEW and got[label].details["corruptions"] == len(names)
        assert got[label].low is not None and got[label].low < got[label].value < got[label].high  # type: ignore[operator]
        assert whole.arrays[label].dtype == torch.float32
    assert whole.axis.headline == "mean accuracy"
    facts = got["mean accuracy"].details
    assert facts["names"] == ", ".join(COMMON) and got["extra"].details["names"] == ", ".join(members["extra"])
    for facts in (score.details for score in whole.axis.scores):
        assert facts["severities"] == "1, 2, 3, 4, 5"
    for facts in (each.details for each in (*whole.axis.scores, *whole.axis.points)):
        assert facts["scale"] == "cifar" and facts["images_from"] == "generated"


def test_images_alone_and_in_other_order_have_the_same_outcomes(
    make: Callable[..., Context], x: Tensor, y: Tensor
) -> None:
    budget = Budget(corruptions=CHEAP, severities=(4,))
    base = measure(make(budget))
    order = torch.tensor([30, 2, 44, 17])
    some = measure(make(budget, x=x[:FEW][order], y=y[:FEW][order], rows=order + 5))
    assert isinstance(base, Measured) and isinstance(some, Measured)
    assert all(torch.equal(some.outcomes[label], right[order]) for label, right in base.outcomes.items())


def reference(names: list[str], seed: int = 0) -> dict[str, float]:
    values = np.random.default_rng(seed).uniform(0.5, 0.9, len(names))
    return dict(zip(names, values.tolist(), strict=True))


def test_mce_is_the_published_ratio_of_sums(make: Callable[..., Context]) -> None:
    names = [*CHEAP[:3], "pixelate"]
    errors = {**reference(names), "clean": 0.2, "speckle_noise": 0.5, "fog": 0.9}
    material = Material(reference_errors=errors, reference_name="AlexNet")
    context = make(Budget(corruptions=(*names, "speckle_noise", "jpeg_compression")), material)
    measured = measure(context)
    right, got = by_name(measured), scores(measured)
    clean = 1 - float(context.correct.float().mean())
    ce, relative = [], []
    for name in names:  # the sums over severities, as the paper writes them
        wrong = 1 - right[name].mean(1)
        ce.append(wrong.sum() / (5 * errors[name]))
        relative.append((wrong - clean).sum() / (5 * (errors[name] - errors["clean"])))
    four, relative_four = "mCE of 4 corruptions", "relative mCE of 4 corruptions"
    assert got[four].value == pytest.approx(100 * np.mean(ce), rel=1e-5)
    assert got[relative_four].value == pytest.approx(100 * np.mean(relative), rel=1e-5)
    for label in (four, relative_four):
        assert (got[label].kind, got[label].unit) == ("error", "%")
        assert got[label].details["reference"] == "AlexNet" and got[label].details["corruptions"] == 4
        assert isinstance(measured, Measured)
        assert float(measured.arrays[label].double().mean()) == pytest.approx(got[label].value, rel=1e-5)


def test_the_reference_itself_has_a_hundred(make: Callable[..., Context], whole: Measured) -> None:
    clean = 1 - make().correct.double().mean().item()
    errors = {name: 1 - float(right.mean()) for name, right in by_name(whole).items()}
    harmful = ("fog", "contrast", "pixelate", "speckle_noise")
    assert all(errors[name] > clean + 0.01 for name in harmful[:3])  # else nothing to be relative to
    got = scores(measure(make(Budget(corruptions=harmful), Material(reference_errors={**errors, "clean": clean}))))
    assert got["mCE of 3 corruptions"].value == pytest.approx(100, rel=1e-5)
    assert got["relative mCE of 3 corruptions"].value == pytest.approx(100, rel=1e-4)
    assert got["mCE of 3 corruptions"].details == {
        "reference": "not named",
        "reference_error": pytest.approx(np.mean([errors[name] for name in harmful[:3]])),
        "corruptions": 3,
        "names": "fog, contrast, pixelate",
        "severities": "1, 2, 3, 4, 5",
        "images_from": "generated",
        "scale": "cifar",
    }
    all_of_them = measure(make(material=Material(reference_errors={**dict.fromkeys(COMMON, 0.9), "clean": 0.0})))
    assert {"mCE", "relative mCE"} <= set(scores(all_of_them))  # a reference that is always right on clean images


def test_mce_needs_a_reference_and_all_severities(make: Callable[..., Context], whole: Measured) -> None:
    assert not {"mCE", "relative mCE"} & set(scores(whole))
    errors = reference(list(CHEAP))
    got = scores(measure(make(Budget(corruptions=CHEAP[:2]), Material(reference_errors=errors))))
    # the relative one needs the clean error
    assert "mCE of 2 corruptions" in got and not any(label.startswith("relative") for label in got)
    few = Budget(corruptions=CHEAP[:2], severities=(1, 3))
    got = scores(measure(make(few, Material(reference_errors={**errors, "clean": 0.1}))))
    assert set(got) == {"mean accuracy", "noise", "weather"}
    assert got["mean accuracy"].details["no_mCE"] == "it needs all five severities"
    high = Material(reference_errors={**errors, "clean": 0.95})  # no corruption costs this reference anything
    got = scores(measure(make(Budget(corruptions=CHEAP[:1]), high)))
    assert "mCE of 1 corruption" in got and "relative mCE of 1 corruption" not in got


@pytest.mark.parametrize(
    ("errors", "message"),
    [
        ({"fogg": 0.5}, "unknown name 'fogg' in reference_errors; did you mean 'fog'"),
        ({"fog": 0.0}, r"reference_errors must be in \(0, 1\]; got 0.0 for fog"),
        ({"clean": -0.1}, r"must be in \[0, 1\]; got -0.1 for clean"),
        (dict(ALEXNET_ERRORS), "ALEXNET_ERRORS are errors on ImageNet-C; images of 8 pixels"),
        ({"fog": 80.0}, r"got 80.0 for fog"),
        ({"fog": float("nan")}, r"got nan for fog"),
    ],
)
def test_reference_errors_are_checked_before_anything_is_computed(
    make: Callable[..., Context], errors: dict[str, float], message: str
) -> None:
    context = make(material=Material(reference_errors=errors))
    with pytest.raises(ParameterError, match=message):
        measure(dataclasses.replace(context, model=Untouchable()))


def test_the_published_errors_are_for_large_images() -> None:
    check_reference(ALEXNET_ERRORS)
    check_reference(ALEXNET_ERRORS, 224)
    check_reference(None, 8)


class Untouchable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("the model was called")


def test_the_budget_chooses_and_further_ones_alone_are_the_headline(make: Callable[..., Context]) -> None:
    measured = measure(make(Budget(corruptions=("spatter", "speckle_noise"), severities=(5, 1))))
    assert isinstance(measured, Measured)
    want = ["speckle_noise 5", "speckle_noise 1", "spatter 5", "spatter 1"]  # in the order of the table
    assert [point.label for point in measured.axis.points] == want
    got = scores(measured)
    assert set(got) == {"mean accuracy", "extra"} and got["mean accuracy"].value == got["extra"].value
    with pytest.raises(ParameterError, match=r"corruptions must be some of .*'fog'.*; got \('fogg',\)"):
        Budget(corruptions=("fogg",))


def test_what_cannot_be_made_is_left_out_and_named(
    make: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    def picky(x: Tensor, name: str, **facts: object) -> Tensor:
        if name == "contrast" and facts["severity"] == 5:
            raise ShapeError("contrast: too small")
        return x

    monkeypatch.setattr(corruptions, "corrupt", picky)
    measured = measure(make(Budget(corruptions=CHEAP)))
    assert list(by_name(measured)) == ["gaussian_noise", "brightness", "speckle_noise"]
    assert scores(measured)["mean accuracy"].details["left_out"] == "contrast (contrast: too small)"
    got = measure(make(Budget(corruptions=("contrast",))))
    assert isinstance(got, NotMeasured) and "contrast: too small" in got.reason
    two = measure(make(x=torch.rand(FEW, 2, 8, 8), model=Two()))
    assert isinstance(two, NotMeasured) and two.reason == "images have 2 channels"


class Two(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :10]


@dataclass
class Copies:
    """Published copies that are recognisable: severity and row are written into the pixels."""

    size: int = 8
    corruptions: tuple[str, ...] = ("fog", "style", "brightness")
    name: str = "copies"
    asked: int = 0

    def images(self, corruption: str, severity: int, rows: Tensor, y: Tensor) -> Tensor:
        self.asked = max(self.asked, len(rows))
        x = torch.zeros(len(rows), 1, self.size, self.size)
        x[:, 0, 0, 0], x[:, 0, 0, 1] = severity / 5, rows / 100
        x[:, 0, 0, 2] = y.float() / 10 if corruption == "fog" else 0.0
        return x


class Reader(nn.Module):
    """Right where the copy is fog, of severity 3 or less, or of an even row."""

    def forward(self, x: Tensor) -> Tensor:
        marks = x[:, 0, 0]
        severity, row, label = (marks[:, i] * scale for i, scale in ((0, 5), (1, 100), (2, 10)))
        right = (severity.round() <= 3) | (row.round() % 2 == 0)
        return nn.functional.one_hot((label.round().long() + ~right) % 10, 10).float()


def test_published_copies_are_read_instead_of_generated(make: Callable[..., Context]) -> None:
    copies = Copies()
    context = make(Budget(), Material(corrupted=copies), model=Reader())
    measured = measure(context)
    assert isinstance(measured, Measured)
    assert list(by_name(measured)) == ["fog", "brightness"]  # "style" is none of the nineteen
    for severity in (1, 2, 3, 4, 5):
        right = measured.outcomes[f"fog {severity}"]
        want = torch.ones(FEW, dtype=torch.bool) if severity <= 3 else context.rows % 2 == 0
        assert torch.equal(right, want)
    facts = scores(measured)["mean accuracy"].details
    assert facts["images_from"] == "copies" and "scale" not in facts and facts["corruptions"] == 2
    assert copies.asked == 7  # never more than a batch at a time
    got = measure(make(Budget(corruptions=("snow",)), Material(corrupted=copies), model=Reader()))
    assert isinstance(got, NotMeasured) and "fog, style, brightness" in got.reason


def test_copies_of_another_size_or_other_images_fail_before_the_model_is_called(
    make: Callable[..., Context], tmp_path: Path
) -> None:
    context = dataclasses.replace(make(material=Material(corrupted=Copies(size=9))), model=Untouchable())
    with pytest.raises(DataError, match=r"must have the size of the images, \(1, 8, 8\); got \(1, 9, 9\) for fog"):
        measure(context)
    with pytest.raises(DataError, match="must have the size"):
        check_copies(context)
    check_copies(dataclasses.replace(context, material=Material(corrupted=Copies())))
    check_copies(dataclasses.replace(context, material=Material()))
    np.save(tmp_path / "labels.npy", np.tile((context.y.numpy() + 1) % 10, 5))
    np.save(tmp_path / "fog.npy", np.zeros((5 * FEW, 8, 8, 1), np.uint8))
    other = dataclasses.replace(context, rows=torch.arange(FEW), material=Material(corrupted=cifar_c(tmp_path)))
    for check in (check_copies, measure):
        with pytest.raises(DataError, match="are of another class"):
            check(other)
    short = dataclasses.replace(other, rows=torch.arange(FEW) + 1)  # the last one is missing
    with pytest.raises(DataError, match="Evaluate the test part"):
        check_copies(short)


def test_a_cifar_c_folder_of_the_generated_images_gives_the_same_outcomes(
    make: Callable[..., Context], tmp_path: Path
) -> None:
    budget, rows = Budget(corruptions=("brightness", "gaussian_noise")), torch.arange(FEW)
    context = make(budget, rows=rows)
    for name in budget.corruptions:
        stored = [
            corrupt(context.x, name, severity=s, key=context.keys(f"corruptions:{name}:{s}")) for s in range(1, 6)
        ]
        pixels = (torch.cat(stored) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        np.save(tmp_path / f"{name}.npy", pixels.numpy())
    np.save(tmp_path / "labels.npy", np.tile(context.y.numpy(), 5))
    read = measure(make(budget, Material(corrupted=cifar_c(tmp_path)), rows=rows))
    made = measure(context)
    assert isinstance(read, Measured) and isinstance(made, Measured)
    assert all(torch.equal(read.outcomes[label], right) for label, right in made.outcomes.items())
    assert scores(read)["mean accuracy"].details["images_from"] == f"cifar-c:{tmp_path}"
