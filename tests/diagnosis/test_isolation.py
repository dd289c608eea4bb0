"""The curve of adversarial isolation, and what is said of it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hardy
from hardy.attacks import PGD, attack
from hardy.diagnosis.attacked import attacked
from hardy.diagnosis.case import Case
from hardy.diagnosis.feature_noise import noisy_predictions
from hardy.diagnosis.isolation import BACK, NEAR_BACK, NEAR_SAME, NORMAL, SAME, STDS, _verdict, measure
from hardy.errors import LayerNotFoundError, ParameterError
from hardy.records import Score
from hardy.stats import wilson
from hardy.threats import Threat


def make_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(36, 3),
    ).eval()


def make_case(n: int = 60, **facts: Any) -> Case:
    net = make_net()
    x: Tensor = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    y = net(x).argmax(1)
    y[::5] = (y[::5] + 1) % 3
    known = {"layers": ("0", "2"), "threat": Threat("linf", 0.1), **facts}
    return Case(model=net, x=x, y=y, rows=torch.arange(n), class_names=("a", "b", "c"), num_classes=3, **known)


def test_the_curves_are_counts_of_noisy_answers() -> None:
    case, stds = make_case(), (0.0, 0.1, 0.5)
    part = measure(case, stds=stds)
    made, _ = attacked(case)
    near = attack(
        case.model, made.x[made.fooled], made.y[made.fooled], PGD(), threat=case.threat, rows=made.rows[made.fooled]
    ).x_adv

    def ask(x: Tensor, rows: Tensor) -> Tensor:
        return noisy_predictions(case.model, x, site="2", stds=stds, rows=rows, seed=0)

    y, rows = made.y[made.fooled], made.rows[made.fooled]
    far, close = ask(made.x_adv[made.fooled], rows), ask(near, rows)
    normal = ask(made.x[made.right], made.rows[made.right])
    wanted = {
        NORMAL: normal == made.y[made.right],
        BACK: far == y,
        SAME: far == case.model(made.x_adv[made.fooled]).argmax(1),
        NEAR_BACK: close == y,
        NEAR_SAME: close == case.model(near).argmax(1),
    }
    for series, answers in wanted.items():
        for std, answer in zip(stds, answers, strict=True):
            score = part.score(f"{series}, std {std:g}")
            assert score.value == pytest.approx(float(answer.double().mean()))
            assert (score.low, score.high) == wilson(int(answer.sum()), len(answer)) and score.level == std
    assert [part.score(f"{series}, std 0").value for series in (NORMAL, BACK, SAME)] == [1, 0, 1]
    asked = int(made.right.sum()) * 3 + int(made.fooled.sum()) * 2 * 4 + 60 + 2 * int(made.fooled.sum())
    assert part.passes["forward"] > asked and part.passes["backward"] >= 20 * int(made.right.sum())


def test_the_range_reaches_what_the_units_need() -> None:
    case = make_case()
    with torch.no_grad():
        case.model[2].weight.mul_(1000)
        case.model[5].weight.div_(1000)
    part = measure(case)
    own = part.score("standard deviation of the feature map").value
    levels = sorted({score.level for score in part.scores if score.level is not None})
    assert set(STDS) < set(levels) and levels[-1] == pytest.approx(4 * own, rel=0.01)
    small = measure(make_case())
    own = small.score("standard deviation of the feature map").value
    plain = sorted({score.level for score in small.scores if score.level is not None})
    assert plain[-1] == 1 and 4 * own < 1  # the paper's range is long enough, but too coarse
    assert plain[1] == pytest.approx(own / 4, rel=0.01) and own / 4 < 0.05


def test_the_layer_is_the_last_of_those_asked_for() -> None:
    assert measure(make_case(layers=("0",)), stds=(0.1,)).level_name.startswith("standard deviation of the noise on 0,")
    assert "noise on 2," in measure(make_case(), stds=(0.1,)).level_name
    assert "noise on 3," in measure(make_case(), stds=(0.1,), site="3").level_name
    with pytest.raises(LayerNotFoundError):
        measure(make_case(), site="nowhere")
    with pytest.raises(ParameterError, match="stds must be finite"):
        measure(make_case(), stds=[])


def test_too_few_adversarial_images_are_said_to_be() -> None:
    part = measure(make_case(threat=Threat("linf", 1e-5)), stds=(0.0, 0.1))
    assert [finding.code for finding in part.findings] == ["few_adversarial_images"]
    assert not any(score.series == BACK for score in part.scores)


def score(value: float, n: int = 100) -> Score:
    low, high = wilson(round(value * n), n)
    return Score(label="", value=value, kind="description", n=n, low=low, high=high, level=0.1)


@pytest.mark.parametrize(
    ("back", "every", "code"),
    [
        (0.8, False, "isolated_adversarials"),
        (0.8, True, "isolated_adversarials"),
        (0.55, False, "isolation_unclear"),
        (0.1, False, "adversarials_not_isolated"),
        (0.1, True, "isolation_unknown"),
    ],
)
def test_what_is_said(back: float, every: bool, code: str) -> None:
    found = _verdict(score(0.95), score(back), score(0.9), 0.5, every=every, classes=10)
    assert found.code == code and f"{back:.0%} of 100 adversarial images" in found.text and "0.2 of the" in found.text


def test_noise_that_normal_images_cannot_bear_says_nothing() -> None:
    part = measure(make_case(threat=Threat("linf", 0.3)), stds=(0.0, 1000.0))
    assert [finding.code for finding in part.findings] == ["isolation_unknown"]


def test_is_a_part_of_a_diagnosis() -> None:
    case = make_case()
    found = hardy.diagnose(case.model, case.x, case.y, parts=["isolation"], threat=Threat("linf", 0.1))
    assert found.part("isolation").score(f"{NORMAL}, std 0").value == 1
