"""Out-of-distribution scores: the area against scikit-learn and a loop, and images that are plainly other."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from hardy.errors import DataError, ShapeError
from hardy.evaluation import Context, Material, Measured, NotMeasured
from hardy.evaluation.features import feature_sites
from hardy.evaluation.fingerprint import images_digest
from hardy.evaluation.ood import HEADLINE, _seen, auroc, measure
from hardy.stats import wilson
from hardy.threats import Threat


def question(net: nn.Module, x: Tensor, y: Tensor, **material: object) -> Context:
    made = Material(**material)  # type: ignore[arg-type]  # fields of the callers
    plain = Context(model=net, x=x, y=y, rows=torch.arange(len(y)), predictions=y, num_classes=10,
                    threat=Threat("linf", 0.1), material=made, batch_size=50)  # fmt: skip
    return plain.answered()


def found(context: Context) -> Measured:
    made = measure(context)
    assert isinstance(made, Measured)
    return made


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.lists(st.integers(0, 5), min_size=1, max_size=20))
def test_the_area_is_the_share_of_pairs(inside: list[int], outside: list[int]) -> None:
    a, b = (np.array(v, dtype=np.float64) for v in (inside, outside))
    pairs = np.mean([[(o > i) + 0.5 * (o == i) for o in b] for i in a])
    own, theirs = auroc(a, b)
    assert own.mean() == pytest.approx(pairs) and theirs.mean() == pytest.approx(pairs)
    truth = [0] * len(a) + [1] * len(b)
    assert own.mean() == pytest.approx(roc_auc_score(truth, np.concatenate([a, b])))


def test_every_score_is_that_of_its_definition(net: nn.Module, x: Tensor, y: Tensor) -> None:
    other = torch.rand(70, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    made = found(question(net, x, y, other={"noise": other}))
    with torch.no_grad():
        z, w = net(x), net(other)
    truth = np.repeat([0, 1], [len(x), len(other)])
    want = {
        "max logit on noise": np.concatenate([-z.max(1).values, -w.max(1).values]),
        "energy on noise": np.concatenate([-z.logsumexp(1), -w.logsumexp(1)]),
    }
    scores = {s.label: s for s in made.axis.scores}
    for label, values in want.items():
        assert scores[label].value == pytest.approx(roc_auc_score(truth, values), abs=1e-6)
    assert set(scores) == {HEADLINE, *want} and "need training images" in made.axis.question
    threshold = np.quantile(want["energy on noise"][:120], 0.95)
    assert scores["energy on noise"].details["fpr_at_95_tpr"] == np.mean(want["energy on noise"][120:] <= threshold)


def test_features_see_what_is_far_from_the_training_images(
    net: nn.Module, digits: tuple[Tensor, Tensor], x: Tensor, y: Tensor
) -> None:
    train = digits[0][:600], digits[1][:600]
    far = torch.rand(80, 1, 8, 8, generator=torch.Generator().manual_seed(0)).round()
    made = found(question(net, x, y, other={"black and white": far, "itself": x.clone()}, train=train))
    scores = {s.label: s for s in made.axis.scores}
    for kind in ("Mahalanobis", "kNN"):
        assert scores[f"{kind} on black and white"].value > 0.95
        itself = scores[f"{kind} on itself"]
        assert itself.value == pytest.approx(0.5, abs=1e-6)
        assert itself.low is not None and itself.high is not None and itself.low < 0.5 < itself.high
    energies = [scores[f"energy on {name}"].value for name in ("black and white", "itself")]
    assert scores[HEADLINE].value == pytest.approx(np.mean(energies))


def test_the_interval_is_delong_s_over_repeated_draws() -> None:
    rng, held = np.random.default_rng(0), 0
    from hardy.evaluation.ood import _score

    for _ in range(300):
        score, _ = _score("x", rng.normal(0, 1, 60), rng.normal(1, 1, 50), series="")
        assert score.low is not None and score.high is not None
        held += score.low <= 0.7602 <= score.high  # Phi(1 / sqrt(2))
    assert 0.90 < held / 300 < 0.99


def test_batches_do_not_matter(net: nn.Module, x: Tensor, y: Tensor) -> None:
    context = question(net, x, y, other={"noise": torch.rand(33, 1, 8, 8)})
    again = found(dataclasses.replace(context, batch_size=7))
    for one, other in zip(found(context).axis.scores, again.axis.scores, strict=True):
        assert one.value == pytest.approx(other.value, abs=0.02), one.label


def test_the_headline_tells_other_sets_apart_and_keeps_nothing_per_image(net: nn.Module, x: Tensor, y: Tensor) -> None:
    g = torch.Generator().manual_seed(0)
    others = {"a": torch.rand(20, 1, 8, 8, generator=g), "b": torch.rand(9, 1, 8, 8, generator=g)}
    context = question(net, x, y, other=others, train=(x, y))
    made = found(dataclasses.replace(context, draws=3))
    assert not made.arrays
    head = made.axis.scores[0].details
    assert head["others"] == "a, b" and head["draws"] == 1
    assert head["train_digest"] == images_digest(x).hex()[:12]
    again = found(question(net, x, y, other=others | {"b": others["b"].flip(0)})).axis.scores[0].details
    assert again["others_digest"] != head["others_digest"] and "train_digest" not in again


def test_an_area_without_spread_has_the_interval_of_the_smaller_set() -> None:
    from hardy.evaluation.ood import _score

    score, _ = _score("x", np.arange(8.0), 100 + np.arange(5.0), series="")
    assert (score.value, score.low, score.high) == (1.0, *wilson(5, 5))


def test_features_and_logits_are_of_one_pass(net: nn.Module, x: Tensor) -> None:
    class Shaken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.net(x + torch.rand(1))
            return out

    context = question(Shaken().eval(), x, torch.zeros(len(x), dtype=torch.int64))
    sites = feature_sites(context.model, x[:1])
    z, logits = _seen(context, sites, x)
    assert sites and torch.allclose(net[-1](z), logits, atol=1e-5)  # type: ignore[index]  # Sequential


def test_answers_that_are_not_finite_are_not_measured(net: nn.Module, x: Tensor, y: Tensor) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z: Tensor = net(x)
            return z / (x.amax(dim=(1, 2, 3))[:, None] > 0)

    made = measure(question(Broken().eval(), x, y, other={"black": torch.zeros(4, 1, 8, 8)}))
    assert isinstance(made, NotMeasured) and "answers to black are not finite" in made.reason


def test_other_data_are_needed_in_the_size_of_the_images(net: nn.Module, x: Tensor, y: Tensor) -> None:
    nothing = measure(question(net, x, y))
    assert isinstance(nothing, NotMeasured) and nothing.name == "ood"
    with pytest.raises(ShapeError, match=r"ood: big must be n > 0 images of \(1, 8, 8\); got \(5, 1, 9, 9\)"):
        measure(question(net, x, y, other={"big": torch.rand(5, 1, 9, 9)}))
    for material in ({"other": {"a": 255 * x}}, {"other": {"a": x}, "train": (255 * x, y)}):
        with pytest.raises(DataError, match=r"floats in \[0, 1\].*Divide bytes by 255"):
            measure(question(net, x, y, **material))
    short = question(net, x, y, other={"a": x}, train=(x, y))
    object.__setattr__(short.material, "train", (x, y[1:]))  # which only tests would refuse at once
    with pytest.raises(DataError, match="120 images and 119 classes"):
        measure(short)
