"""Goals: what counts as reached, and NaN is never a class."""

import torch

from hardy.attacks.goal import Goal, predicted

NAN, INF = torch.nan, torch.inf
LOGITS = torch.tensor([[NAN, NAN, NAN], [5.0, NAN, 1.0], [1.0, 3.0, 2.0], [2.0, 2.0, 0.0], [INF, INF, 0.0]])


def test_nan_predicts_no_class() -> None:
    assert predicted(LOGITS).tolist() == [-1, -1, 1, 0, 0]


def test_away_from_the_label_nan_is_a_success() -> None:
    zero = torch.zeros(5, dtype=torch.int64)
    goal = Goal(zero, zero, zero.bool())
    assert goal.reached(LOGITS).tolist() == [True, True, True, False, False]
    assert goal.margin(LOGITS).tolist() == [-INF, -INF, -2.0, 0.0, 0.0]


def test_where_a_target_must_be_hit_nan_is_a_failure() -> None:
    label, target = torch.full((5,), 2), torch.tensor([0, 1, 1, 1, 0])
    goal = Goal(label, target, torch.ones(5, dtype=torch.bool))
    assert goal.reached(LOGITS).tolist() == [False, False, True, False, True]
    assert goal.margin(LOGITS).tolist() == [INF, INF, -1.0, 0.0, 0.0]
