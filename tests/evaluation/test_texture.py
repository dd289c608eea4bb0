"""The texture axis: the images that it names, and a shape bias that counts what it says."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardy.corruptions.frequency_filter import high_pass, low_pass
from hardy.corruptions.patch_shuffle import patch_shuffle
from hardy.data import CueConflict, load_data, shapes_conflict
from hardy.errors import DataError
from hardy.evaluation import texture
from hardy.evaluation.budget import Budget
from hardy.evaluation.context import Context, Measured, NotMeasured
from hardy.evaluation.material import Material
from hardy.seeding import keys, root
from hardy.stats import wilson
from hardy.threats import Threat

SHORT = Budget(grids=(2, 3, 4), cutoffs=(0.25, 0.6))


def context(net: nn.Module, x: Tensor, y: Tensor, *, classes: int = 10, **given: object) -> Context:
    facts = {"rows": torch.arange(len(x)), "predictions": y, "threat": Threat("linf", 0.1), "budget": SHORT}
    return Context(model=net, x=x, y=y, num_classes=classes, batch_size=50, **(facts | given))


def measured(question: Context) -> Measured:
    found = texture.measure(question)
    assert isinstance(found, Measured)
    return found


class Table(nn.Module):
    """Looks its logits up: the first pixel of an image is its row."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.table = logits

    def forward(self, x: Tensor) -> Tensor:
        return self.table[(x[:, 0, 0, 0] * 1000).round().long()]


def conflict(shape: Tensor, other: Tensor, **facts: object) -> CueConflict:
    x = torch.zeros(len(shape), 1, 8, 8)
    x[:, 0, 0, 0] = torch.arange(len(shape)) / 1000
    return CueConflict(x=x, shape=shape, texture=other, **facts)


def bias(logits: Tensor, cue: CueConflict, **given: object) -> Measured:
    classes = logits.shape[1]
    y = torch.zeros(4, dtype=torch.int64)
    question = context(Table(logits), torch.zeros(4, 1, 8, 8), y, classes=classes, **given)
    return measured(replace(question, material=Material(cue_conflict=cue)))


def test_every_point_is_the_image_that_it_names(net: nn.Module, x: Tensor, y: Tensor) -> None:
    found = measured(context(net, x, y))
    key = keys(root(0, "patch_shuffle"), torch.arange(120))
    made = {f"{grid}x{grid}": patch_shuffle(x, grid=grid, key=key) for grid in (2, 4)}
    made |= {f"low pass {c:g}": low_pass(x, cutoff=c) for c in SHORT.cutoffs}
    made |= {f"high pass {c:g}": high_pass(x, cutoff=c) for c in SHORT.cutoffs}
    assert [p.label for p in found.axis.points] == list(made) == list(found.outcomes)
    for label, images in made.items():
        assert torch.equal(found.outcomes[label], net(images).argmax(dim=1) == y), label
    series = {p.series: [q.level for q in found.axis.points if q.series == p.series] for p in found.axis.points}
    assert series == {"patch shuffle": [2.0, 4.0], "low pass": [0.25, 0.6], "high pass": [0.25, 0.6]}
    assert all(p.passes == {"forward": 120} for p in found.axis.points)


def test_the_headline_is_the_first_grid_and_what_lacks_is_named(net: nn.Module, x: Tensor, y: Tensor) -> None:
    found = measured(context(net, x[:9], y[:9]))
    first = found.axis.points[0]
    assert found.axis.headline == first.label == "2x2"
    assert first.details["skipped_grids"] == "3 (not dividing 8x8)"
    assert "Material(cue_conflict=...)" in str(first.details["shape_bias"])
    assert found.axis.scores == () and not found.arrays
    nothing = texture.measure(context(net, x[:9], y[:9], budget=Budget(grids=(3,))))
    assert nothing == NotMeasured("texture", "no grid of 3 divides 8x8 images", "Give Budget(grids=...) that do.")


def test_the_shape_bias_is_the_share_of_shape_decisions_among_those_for_either() -> None:
    k, n, draw = 5, 300, torch.Generator().manual_seed(1)
    shape = torch.randint(0, k, (n,), generator=draw)
    other = (shape + torch.randint(1, k, (n,), generator=draw)) % k
    logits = torch.randn(n, k, generator=draw)
    found = bias(logits, conflict(shape, other, name="made up"))
    answers = logits.argmax(dim=1).tolist()
    kinds = [
        1 if a == s else 0 if a == t else -1 for a, s, t in zip(answers, shape.tolist(), other.tolist(), strict=True)
    ]
    scores = {s.label: s for s in found.axis.scores}
    ones, zeros = kinds.count(1), kinds.count(0)
    head = scores["shape bias"]
    assert head.value == ones / (ones + zeros) and head.n == ones + zeros and head.kind == "description"
    assert (head.low, head.high) == wilson(ones, ones + zeros)
    assert (head.details["shape_decisions"], head.details["texture_decisions"]) == (ones, zeros)
    decided = scores["decided"]
    assert decided.value == (ones + zeros) / n and decided.n == n and decided.passes == {"forward": n}
    assert decided.details["by_chance"] == 2 / k
    assert found.arrays["cue decisions"].tolist() == kinds
    assert found.arrays["decided"].tolist() == [float(kind >= 0) for kind in kinds]
    for c in range(k):
        own = [kind for kind, s in zip(kinds, shape.tolist(), strict=True) if s == c and kind >= 0]
        assert scores[f"shape bias, class {c}"].value == pytest.approx(sum(own) / len(own))
    assert "shape_bias" not in found.axis.points[0].details


def test_answers_are_the_group_of_outputs_with_the_largest_mean_probability() -> None:
    n, draw = 200, torch.Generator().manual_seed(2)
    groups = ((3,), (0, 5, 6, 7), (1, 2))
    logits = 3 * torch.randn(n, 9, generator=draw)
    shape = torch.arange(n) % 3
    cue = conflict(shape, (shape + 1) % 3, groups=groups, class_names=("a", "b", "c"))
    found = bias(logits, cue)
    probability = torch.softmax(logits.double(), dim=1).numpy()
    answers = np.argmax([[row[list(group)].mean() for group in groups] for row in probability], axis=1)
    want = np.where(answers == shape.numpy(), 1, np.where(answers == cue.texture.numpy(), 0, -1))
    assert np.array_equal(found.arrays["cue decisions"].numpy(), want)
    assert {s.label for s in found.axis.scores} >= {"shape bias, a", "shape bias, b", "shape bias, c"}
    assert {s.series for s in found.axis.scores[2:]} == {"shape bias by class"}


def test_an_answer_is_told_apart_where_probabilities_underflow_and_nan_is_none() -> None:
    shape, other = torch.tensor([0, 0, 1]), torch.tensor([1, 1, 0])
    logits = torch.tensor([[0.0, 10.0, 500.0], [10.0, 0.0, 500.0], [1.0, 2.0, torch.nan]])
    for groups, want in ((((0,), (1,)), [0, 1, -1]), ((), [-1, -1, -1])):
        found = bias(logits, conflict(shape, other, groups=groups))
        assert found.arrays["cue decisions"].tolist() == want
    assert [s.label for s in found.axis.scores] == ["decided"]  # a bias of no decision is no number
    assert found.axis.scores[0].value == 0


def test_a_random_net_votes() -> None:
    class Coin(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            wrong = self.calls % 5 == 1  # such as the first of the ten that vote
            return F.one_hot(torch.full((len(x),), int(wrong)), 3).float()

    cue = conflict(torch.zeros(6, dtype=torch.int64), torch.ones(6, dtype=torch.int64))
    question = context(Coin(), torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64), classes=3, draws=10)
    found = measured(replace(question, material=Material(cue_conflict=cue)))
    assert found.axis.scores[0].label == "shape bias" and found.axis.scores[0].value == 1


def test_material_for_another_model_is_an_error() -> None:
    logits, shape = torch.zeros(3, 3), torch.tensor([0, 1, 2])
    with pytest.raises(DataError, match=r"shape of the evaluated ones, \(1, 8, 8\); got \(3, 8, 8\).* size="):
        bias(logits, CueConflict(x=torch.zeros(3, 3, 8, 8), shape=shape, texture=(shape + 1) % 3))
    with pytest.raises(DataError, match="model's 3 outputs; got output 3"):
        bias(logits, conflict(shape, torch.tensor([1, 2, 3])))
    with pytest.raises(DataError, match="model's 3 outputs; got output 7"):
        bias(logits, conflict(shape, (shape + 1) % 3, groups=((0,), (1,), (2, 7))))


@pytest.fixture(scope="module")
def trained_on() -> Callable[[float], nn.Module]:
    """Train a small net on three shapes of 16 pixels, with textures tied to them or not."""

    def train(correlation: float) -> nn.Module:
        spec = f"shapes:classes=3,n=1500,correlation={correlation}"
        data = load_data(spec, split="train", val_fraction=0.0, size=16)
        x, y = data.images() - 0.5, data.y
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = nn.Sequential(
                *(nn.Conv2d(3, 8, 5, stride=2, padding=2), nn.BatchNorm2d(8), nn.ReLU()),
                *(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
                *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
                *(nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(128, 3)),
            )
            optimizer = torch.optim.Adam(net.parameters(), 3e-3)
            for batch in torch.cat([torch.randperm(1500) for _ in range(7)]).split(50):
                optimizer.zero_grad()
                F.cross_entropy(net(x[batch]), y[batch]).backward()
                optimizer.step()
        return net.eval()

    return train


def test_a_net_that_texture_helped_relies_on_it_and_one_that_it_did_not_help_on_shape(
    trained_on: Callable[[float], nn.Module],
) -> None:
    cue = shapes_conflict("shapes:classes=3", n=300, size=16)
    cue = replace(cue, x=cue.x - 0.5)
    test = load_data("shapes:classes=3", limit=100, size=16)
    found = {}
    for correlation in (0.0, 1.0):
        question = context(trained_on(correlation), test.images() - 0.5, test.y, classes=3)
        made = measured(replace(question, material=Material(cue_conflict=cue)))
        found[correlation] = {s.label: s for s in made.axis.scores}
        assert found[correlation]["decided"].value > 0.7
    assert found[1.0]["shape bias"].high is not None and found[1.0]["shape bias"].high < 0.35
    assert found[0.0]["shape bias"].low is not None and found[0.0]["shape bias"].low > 0.6
