"""Learning rates are the closed forms that their names promise; the average is the textbook's."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from hardy.errors import ParameterError
from hardy.training.optim import Average, learning_rate, make_optimizer, set_learning_rate
from hardy.training.recipe import TrainRecipe


def rates(recipe: TrainRecipe, steps_per_epoch: int) -> list[float]:
    return [learning_rate(step, steps_per_epoch, recipe) for step in range(recipe.epochs * steps_per_epoch)]


def test_cosine_equals_torch() -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30)
    want = []
    for _ in range(30):
        want.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates(TrainRecipe(epochs=3, lr=0.4), 10) == pytest.approx(want, abs=1e-9)


def test_step_drops_at_its_milestones() -> None:
    got = rates(TrainRecipe(epochs=4, lr=1.0, schedule="step", milestones=(0.5, 0.75), gamma=0.1), 2)
    assert got == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_one_cycle_equals_torch() -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.4)
    # torch counts its phases from step 0 to total - 1; 31 of them put its peak at step 9, ours at 0.3 * 30
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.4, total_steps=31, pct_start=10 / 31, final_div_factor=1e12, cycle_momentum=False
    )
    want = []
    for _ in range(30):
        want.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates(TrainRecipe(epochs=3, lr=0.4, schedule="one_cycle"), 10) == pytest.approx(want, abs=1e-6)


def test_warm_up_rises_linearly_and_then_the_schedule_starts_at_its_top() -> None:
    got = rates(TrainRecipe(epochs=2, lr=1.0, warmup_epochs=0.5), 8)
    assert got[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8]) and got[4] == 1.0
    assert got[5] == pytest.approx((1 + math.cos(math.pi / 12)) / 2)
    assert all(a > b for a, b in pairwise(got[4:]))


def test_constant_is_constant() -> None:
    assert set(rates(TrainRecipe(epochs=2, lr=0.3, schedule="constant"), 5)) == {0.3}


def test_only_matrices_and_kernels_are_decayed() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    groups = make_optimizer(model, TrainRecipe(weight_decay=0.1)).param_groups
    assert [(len(g["params"]), g["weight_decay"]) for g in groups] == [(1, 0.1), (3, 0.0)]
    assert isinstance(make_optimizer(model, TrainRecipe(optimizer="adamw")), torch.optim.AdamW)
    for p in model.parameters():
        p.requires_grad_(False)
    with pytest.raises(ParameterError, match=r"must have parameters that require gradients"):
        make_optimizer(model, TrainRecipe())


def test_each_group_learns_at_its_factor_of_the_rate_and_without_factors_nothing_is_grouped_anew() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    recipe = TrainRecipe(weight_decay=0.1)
    optimizer = make_optimizer(model, recipe, {model[0].weight: 0.25, model[0].bias: 0.25, model[3].bias: 10.0})
    set_learning_rate(optimizer, 0.5)
    got = {p: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    want = [(0.125, 0.1), (0.125, 0), (0.5, 0), (0.5, 0), (0.5, 0.1), (5.0, 0)]
    assert [got[p] for p in model.parameters()] == want
    plain = make_optimizer(model, recipe)
    assert [len(g["params"]) for g in plain.param_groups] == [2, 4]
    set_learning_rate(plain, 1 / 3)
    assert {g["lr"] for g in plain.param_groups} == {1 / 3}


def test_the_average_is_the_recursion_written_out() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    average = Average(model, 0.9)
    want = model[0].weight.item()
    for step in range(40):
        with torch.no_grad():
            model[0].weight.fill_(float(step))
        model[1].num_batches_tracked.fill_(step)
        average.update(model)
        decay = min(0.9, (1 + step) / (10 + step))
        want = decay * want + (1 - decay) * step
    assert average.values["0.weight"].item() == pytest.approx(want, rel=1e-5)
    assert average.values["1.num_batches_tracked"] == 39
