"""The margin bound as a penalty: a hinge of the norm form, for the net as it is at test time."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardy.certificates import margin_bound
from hardy.errors import AttachError, ParameterError
from hardy.methods import DefectiveConv, LocalFeatureMasking
from hardy.methods.margin_bound import CARD, MarginBound, margin_penalty
from hardy.objective import Objective
from hardy.surgery import attachments, strip

SPEC = MarginBound(weight=0.5, eps=0.05, weight_eps=0.002)


def make() -> nn.Sequential:
    torch.manual_seed(0)
    conv = (nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2))
    return nn.Sequential(*conv, nn.Flatten(), nn.Linear(16, 3))


@pytest.fixture
def x() -> Tensor:
    return torch.rand(7, 1, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def y() -> Tensor:
    return torch.arange(7) % 3


def test_the_penalty_is_what_the_margin_lacks_on_a_logarithmic_scale() -> None:
    bound = torch.tensor([2.0, 0.0, math.inf, -0.001, -1e8], requires_grad=True)
    penalty = margin_penalty(bound)
    assert penalty.tolist() == pytest.approx([0, 0, 0, 0.001, math.log(1e8)], rel=1e-3)
    (slope,) = torch.autograd.grad(penalty.sum(), bound)
    assert slope.tolist() == pytest.approx([0, 0, 0, -1, -1e-8], rel=2e-3)


def test_the_term_is_the_weighted_mean_of_what_the_certificate_says(x: Tensor, y: Tensor) -> None:
    model = make()
    with SPEC.attach(model, example=x, seed=0) as a:
        assert a.sites == () and not any("_hardy" in key for key in model.state_dict())
        _, losses = Objective(model)(x, y)
        assert set(losses) == {"task", "margin_bound"}
        certain = margin_bound(strip(model).eval(), x, y, eps=0.05, weight_eps=0.002, form="norm")
        # the batch norm has moved its statistics in the pass before the term, as it has for the certificate
        torch.testing.assert_close(losses["margin_bound"], 0.5 * (-certain).clamp(min=0).log1p().mean())
        assert losses["margin_bound"] > 0
        assert set(Objective(model).eval()(x, y)[1]) == {"task"}
    assert attachments(model) == []


def test_gradients_are_those_of_finite_differences(x: Tensor, y: Tensor) -> None:
    model = make().double().eval()  # its norms fixed
    SPEC.attach(model, example=x.double(), seed=0)
    objective = Objective(model).train()
    model.eval()
    weight, step = model[5].weight, 1e-6
    (slope,) = torch.autograd.grad(objective(x.double(), y)[1]["margin_bound"], weight)
    for place in ((0, 0), (1, 7), (2, 15)):
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                weight[place] += sign * step
                ends.append(float(objective(x.double(), y)[1]["margin_bound"]))
                weight[place] -= sign * step
        assert math.isclose(float(slope[place]), (ends[0] - ends[1]) / (2 * step), rel_tol=1e-4, abs_tol=1e-6)


def test_every_weight_is_pulled_and_running_statistics_are_not_touched(x: Tensor, y: Tensor) -> None:
    model, plain = make(), make()
    SPEC.attach(model, example=x, seed=0)
    _, losses = Objective(model)(x, y)
    Objective(plain)(x, y)
    assert torch.equal(model[1].running_mean, plain[1].running_mean)  # type: ignore[arg-type]
    losses["margin_bound"].backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for p in (model[0].weight, model[1].weight, model[5].weight)
    )


def test_training_raises_the_certified_share(digits_like: tuple[Tensor, Tensor]) -> None:
    x, y = digits_like
    shares = []
    for spec in (None, MarginBound(weight=0.1, eps=0.05)):
        model = make()
        if spec is not None:
            spec.attach(model, example=x, seed=0)
        objective = Objective(model)
        optimizer = torch.optim.Adam(objective.parameters(), 0.02)
        for _ in range(80):
            optimizer.zero_grad()
            torch.stack(list(objective(x, y)[1].values())).sum().backward()
            optimizer.step()
        net = strip(model).eval()
        assert (net(x).argmax(dim=1) == y).float().mean() > 0.95
        shares.append(float((margin_bound(net, x, y, eps=0.05, form="norm") > 0).float().mean()))
    assert shares[1] > shares[0] + 0.3


@pytest.fixture
def digits_like() -> tuple[Tensor, Tensor]:
    """Three classes of noisy images, each bright in one place."""
    g = torch.Generator().manual_seed(3)
    y = torch.arange(90) % 3
    x = 0.2 * torch.rand(90, 1, 4, 4, generator=g)
    for k, (row, column) in enumerate(((0, 0), (0, 2), (2, 0))):
        x[y == k, :, row : row + 2, column : column + 2] += 0.6
    return x, y


def test_of_mixed_labels_the_larger_part_counts(x: Tensor, y: Tensor) -> None:
    model = make()
    SPEC.attach(model, example=x, seed=0)
    soft = 0.7 * F.one_hot(y, 3).float() + 0.3 * F.one_hot((y + 1) % 3, 3).float()
    twin = copy.deepcopy(model)
    want, got = Objective(model)(x, y)[1], Objective(twin)(x, soft)[1]
    assert torch.equal(got["margin_bound"], want["margin_bound"]) and got["task"] != want["task"]


def test_a_copy_looks_at_its_own_weights(x: Tensor, y: Tensor) -> None:
    model = make()
    SPEC.attach(model, example=x, seed=0)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301
        before = Objective(copy.deepcopy(model))(x, y)[1]["margin_bound"]
        with torch.no_grad():
            twin[5].weight.mul_(3)
        assert Objective(twin)(x, y)[1]["margin_bound"] > 1.2 * before
        assert torch.equal(Objective(copy.deepcopy(model))(x, y)[1]["margin_bound"], before)


def test_train_only_masks_do_not_change_the_term_and_live_ones_are_refused(x: Tensor, y: Tensor) -> None:
    plain, masked = make(), make()
    SPEC.attach(plain, example=x, seed=0)
    LocalFeatureMasking(p=1.0, area=(0.5, 1.0)).attach(masked, example=x, seed=0)
    SPEC.attach(masked, example=x, seed=0)
    for model in (plain, masked):
        model[1].momentum = 0.0  # statistics that do not see the masks
    a, b = (Objective(model)(x, y)[1] for model in (plain, masked))
    assert a["task"] != b["task"] and torch.equal(a["margin_bound"], b["margin_bound"])
    DefectiveConv().attach(plain, example=x, seed=0)
    with pytest.raises(AttachError, match="margin_bound: the net must be a chain of its own layers; DefectiveConv"):
        Objective(plain)(x, y)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"weight": -1.0}, r"MarginBound: weight must be in \[0, 1e\+06\]; got -1.0"),
        ({"eps": 1.5}, r"MarginBound: eps must be in \[0, 1\]; got 1.5"),
        ({"weight_eps": math.nan}, "MarginBound: weight_eps must be in"),
    ],
)
def test_a_number_out_of_range_is_an_error(fields: dict[str, float], text: str) -> None:
    with pytest.raises(ParameterError, match=text):
        MarginBound(**fields)


def test_says_that_it_is_a_reconstruction() -> None:
    assert CARD.kind == "loss" and not CARD.live and CARD.paper.startswith("inspired by")
    assert any("reconstruction" in text for text in CARD.deviations)
