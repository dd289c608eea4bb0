"""The part ``predictions`` against counts by hand, on nets that answer what is written into the images."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hardy.diagnosis import Part, diagnose
from hardy.diagnosis.predictions import confused_pairs, confusion
from hardy.evaluation import evaluate


class Written(nn.Module):
    """The logits are in the first row of the image, ten times as large."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k, self.conv = k, nn.Conv2d(1, 1, 1, bias=False)
        nn.init.constant_(self.conv.weight, 10.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)[:, 0, 0, : self.k]


def part(logits: Tensor, y: Tensor, **facts: object) -> Part:
    """Diagnose a net that gives these logits, in [0, 10]."""
    x = torch.zeros(len(y), 1, 2, logits.shape[1])
    x[:, 0, 0] = logits / 10
    return diagnose(Written(logits.shape[1]).eval(), x, y, parts=["predictions"], **facts).part("predictions")


def answers(given: list[int], k: int, height: float = 8.0) -> Tensor:
    return height * torch.eye(k)[torch.tensor(given)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 3)), min_size=1, max_size=30))
def test_confusion_and_pairs_against_slow_counts(answers_: list[tuple[int, int]]) -> None:
    y, found = (torch.tensor(values) for values in zip(*answers_, strict=True))
    counts = confusion(y, found, 4)
    for a in range(4):
        for b in range(4):
            assert int(counts[a, b]) == answers_.count((a, b))
    pairs = confused_pairs(counts)
    wanted = {(a, b): answers_.count((a, b)) + answers_.count((b, a)) for a in range(4) for b in range(a + 1, 4)}
    assert {(a, b): n for a, b, n in pairs} == {pair: n for pair, n in wanted.items() if n}
    assert [n for *_, n in pairs] == sorted((n for *_, n in pairs), reverse=True)


def test_accuracies_and_calibration_are_those_of_an_evaluation() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.rand(120, 7, generator=generator)
    y = torch.where(torch.rand(120, generator=generator) < 0.6, logits.argmax(1), torch.arange(120) % 7)
    x = torch.zeros(120, 1, 2, 7)
    x[:, 0, 0] = logits / 10
    model = Written(7).eval()
    found = diagnose(model, x, y, parts=["predictions"], seed=3).part("predictions")
    result = evaluate(model, x, y, axes=["clean", "per_class", "calibration"], seed=3)
    assert found.score("clean").value == result.accuracy("clean")
    wanted = [s for axis in result.axes for s in axis.scores]
    assert len(wanted) > 10 and all(found.score(s.label) == s for s in wanted)


def test_confused_weak_and_never_predicted_classes_are_named() -> None:
    y = torch.arange(90) % 3
    told = [0 if c == 0 else 1 for c in y.tolist()]
    told[1] = 0
    found = part(answers(told, 3), y, class_names=("cat", "dog", "eel"))
    said = {f.code: f for f in found.findings}
    assert "eel is taken for dog: 30 of 30 images (100%, 95 % interval 89% to 100%)" in said["confused"].text
    assert said["confused"].severity == "problem"
    assert "1 classes" in said["never_predicted"].text and "eel" in said["never_predicted"].text
    assert "eel is the weakest class" in said["weak_class"].text and said["weak_class"].severity == "problem"
    assert found.tensors["confusion"].tolist() == [[30, 0, 0], [1, 29, 0], [0, 30, 0]]


@pytest.mark.parametrize(("height", "right", "word"), [(9.0, 0.5, "overconfident"), (0.6, 1.0, "underconfident")])
def test_too_sure_and_not_sure_enough_are_said(height: float, right: float, word: str) -> None:
    y = torch.arange(100) % 4
    told = [c if i % 10 < 10 * right else (c + 1) % 4 for i, c in enumerate(y.tolist())]
    found = part(answers(told, 4, height), y)
    said = {f.code: f for f in found.findings}
    assert said[word].severity == "problem" and "temperature" in said[word].remedy


def test_a_few_images_are_a_note_and_no_problem() -> None:
    y = torch.arange(90) % 3
    told = y.tolist()
    for i in range(2, 2 + 3 * 6, 3):
        told[i] = 1
    said = {f.code: f for f in part(answers(told, 3), y, class_names=("cat", "dog", "eel")).findings}
    assert "6 of 30 images (20%" in said["confused"].text and said["confused"].severity == "note"
    assert "never_predicted" not in said


def test_a_net_that_guesses_is_at_chance_and_one_that_knows_is_calibrated() -> None:
    y = torch.arange(100) % 4
    assert "at_chance" in {f.code for f in part(answers([0] * 100, 4), y).findings}
    known = {f.code for f in part(answers(y.tolist(), 4, 10.0), y).findings}
    assert "calibrated" in known and "at_chance" not in known and "confident_mistakes" not in known


def test_the_worst_images_are_chosen_by_confidence() -> None:
    y = torch.arange(60) % 3
    generator = torch.Generator().manual_seed(1)
    logits = 10 * torch.rand(60, 3, generator=generator)
    rows = torch.arange(60) + 1000
    found = part(logits, y, rows=rows)
    confidence, told = logits.softmax(1).max(1)
    wrong = sorted((i for i in range(60) if told[i] != y[i]), key=lambda i: -float(confidence[i]))[:12]
    unsure = sorted((i for i in range(60) if told[i] == y[i]), key=lambda i: float(confidence[i]))[:12]
    for name, wanted in (("wrong", wrong), ("unsure", unsure)):
        assert found.tensors[f"{name} places"].tolist() == wanted
        assert found.tensors[f"{name} rows"].tolist() == [1000 + i for i in wanted]
        assert found.tensors[f"{name} labels"].tolist() == y[wanted].tolist()
        assert found.tensors[f"{name} predictions"].tolist() == told[wanted].tolist()
        assert torch.allclose(found.tensors[f"{name} confidence"], confidence[wanted], atol=1e-5)
        assert found.tensors[f"{name} pictures"].shape == (len(wanted), 1, 2, 3)
    first = found.tensors["wrong pictures"][0, 0, 0].float() / 25.5
    assert torch.allclose(first, logits[wrong[0]], atol=0.03)
    sure = sum(float(confidence[i]) >= 0.9 for i in range(60) if told[i] != y[i])
    assert found.score("confident mistakes").value == pytest.approx(sure / 60)


def test_logits_that_are_not_finite_are_wrong_answers() -> None:
    logits = answers([0, 1, 0, 1] * 5, 2)
    y = torch.tensor([0, 1, 0, 1] * 5)
    model = Written(2).eval()
    x = torch.zeros(20, 1, 2, 2)
    x[:, 0, 0] = logits / 10
    model.register_forward_hook(lambda _m, a, z: torch.where(a[0][:, 0, 0, :1] > 0, torch.nan, z))
    found = diagnose(model, x, y, parts=["predictions"]).part("predictions")
    assert found.tensors["predictions"].tolist() == [-1, 1] * 10 and found.score("clean").value == 0.5
    assert any("not finite" in note for note in found.notes)
