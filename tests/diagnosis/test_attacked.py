"""The adversarial images that several parts share."""

import pytest
import torch
from torch import Tensor, nn

from hardy.attacks import Goal, attack
from hardy.attacks.goal import predicted
from hardy.diagnosis.attacked import attacked, of_all
from hardy.diagnosis.case import Case
from hardy.threats import Threat


def make_case(n: int = 40, **facts: object) -> Case:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    x: Tensor = torch.rand(n, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    y = net(x).argmax(1)
    y[::4] = (y[::4] + 1) % 3
    known = {"x": x, "y": y, "rows": torch.arange(n) + 5, "threat": Threat("linf", 0.1)}
    names = ("a", "b", "c")
    return Case(model=net, class_names=names, num_classes=3, layers=("0",), **{**known, **facts})  # type: ignore[arg-type]  # fields


def test_says_who_was_fooled_and_counts_passes_once() -> None:
    case = make_case()
    made, passes = attacked(case)
    assert torch.equal(made.index, torch.arange(40)) and of_all(case, made.index) == ()
    assert torch.equal(made.right, case.model(case.x).argmax(1) == case.y)
    now = predicted(case.model(made.x_adv))
    assert torch.equal(made.fooled, made.right & (now != case.y)) and bool(made.fooled.any())
    assert torch.equal(made.x_adv[~made.right], case.x[~made.right])  # wrong before: not attacked
    assert float((made.x_adv - case.x).abs().max()) <= 0.1 + 1e-6
    assert passes["backward"] == 20 * int(made.right.sum())
    again, none = attacked(case)
    assert again is made and none == {"forward": 0, "backward": 0}


def test_goes_on_after_the_first_wrong_answer() -> None:
    case = make_case()
    made, _ = attacked(case)
    x, y = made.x[made.fooled], made.y[made.fooled]
    near = attack(case.model, x, y, "pgd", threat=case.threat, rows=made.rows[made.fooled]).margin
    far = Goal(y, y, torch.zeros_like(y, dtype=torch.bool)).margin(case.model(made.x_adv[made.fooled]).detach())
    assert bool((far < 0).all()) and float(far.mean()) < 1.5 * float(near.mean())


def test_chooses_by_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hardy.diagnosis.attacked.MOST_IMAGES", 30)
    case = make_case(50)
    made, _ = attacked(case)
    assert of_all(case, made.index) == ("30 of 50 images, chosen by their identities",)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(3))
    other, _ = attacked(make_case(50, x=case.x[order], y=case.y[order], rows=case.rows[order]))
    place = {int(row): i for i, row in enumerate(other.rows)}
    match = torch.tensor([place[int(row)] for row in made.rows])
    assert torch.allclose(other.x_adv[match], made.x_adv, atol=1e-6)
