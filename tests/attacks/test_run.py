"""What goes into ``attack`` is checked, and foreign attacks are judged like our own."""

import copy

import pytest
import torch
import torchattacks
from torch import Tensor, nn

from hardy.attacks import PGD, attack
from hardy.errors import DataError, HardyError, HardyWarning, ParameterError, ShapeError
from hardy.threats import Threat

THREAT = Threat("linf", 0.05)


def test_a_foreign_attack_is_verified_and_gets_the_same_verdicts(net: nn.Module, x: Tensor, y: Tensor) -> None:
    def theirs(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        made: Tensor = torchattacks.PGD(model, eps=0.05, alpha=0.01, steps=5, random_start=False)(x, y)
        return made

    got = attack(net, x, y, theirs, threat=THREAT, batch_size=16)
    ours = PGD(steps=5, step_size=0.01, random_start=False)
    want = attack(net, x, y, ours, threat=THREAT, stop="never")
    assert got.attack == "theirs" and torch.equal(got.success, want.success)
    torch.testing.assert_close(got.margin, want.margin, rtol=0, atol=1e-4)


def test_foreign_points_outside_the_ball_do_not_count(net: nn.Module, x: Tensor, y: Tensor) -> None:
    def cheat(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return torch.rand(x.shape, generator=torch.Generator().manual_seed(9))

    with pytest.warns(HardyWarning, match="cheat: images must stay inside .* 47 of 47 did not and count as failed"):
        found = attack(net, x, y, cheat, threat=THREAT)
    assert not found.success[3:].any() and torch.equal(found.x_adv, x)
    assert (found.margin[3:] > 0).all()


def test_foreign_attacks_leave_no_trace_and_cannot_move_the_global_generator(
    net: nn.Module, x: Tensor, y: Tensor
) -> None:
    net = copy.deepcopy(net)

    def rude(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        model.train()
        model(x + 1)  # moves the running statistics
        model.requires_grad_(False)
        model[0].weight.grad = torch.ones_like(model[0].weight)
        model.eval()
        model[1].training = True
        return (x + 0.05 * torch.randn_like(x).sign()).clamp(0, 1)

    rng = torch.get_rng_state()
    buffers = copy.deepcopy(dict(net.named_buffers()))
    one, two = (attack(net, x, y, rude, threat=THREAT).x_adv for _ in range(2))
    assert all(torch.equal(b, buffers[name]) for name, b in net.named_buffers())
    assert torch.equal(one, two) and torch.equal(rng, torch.get_rng_state())
    assert not any(m.training for m in net.modules())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_a_foreign_attack_must_return_images(net: nn.Module, x: Tensor, y: Tensor) -> None:
    def flat(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return x.flatten(1)

    with pytest.raises(
        ShapeError,
        match=r"flat: .* images like x, \(16, 3, 6, 6\) in \[0, 1\]; got torch.float32 \(16, 108\)",
    ):
        attack(net, x, y, flat, threat=THREAT, batch_size=16)


def test_random_nets_are_seeded_and_leave_the_generator_alone(net: nn.Module, x: Tensor, y: Tensor) -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net(nn.functional.dropout(x, 0.3, training=True))

    rng = torch.get_rng_state()
    a, b = (attack(Dropping().eval(), x, y, "pgd", threat=THREAT) for _ in range(2))
    assert torch.equal(a.x_adv, b.x_adv) and torch.equal(rng, torch.get_rng_state())


def test_a_model_without_gradient_is_attacked_all_the_same(net: nn.Module, x: Tensor, y: Tensor) -> None:
    class Detached(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z: Tensor = net(x).detach()
            return z

    found = attack(Detached().eval(), x, y, "pgd", threat=Threat("linf", 1e-3))
    assert torch.equal(found.gradients, found.zero_gradients) and found.gradients[3:].all()


def test_int32_labels_and_images_with_gradient_are_taken(net: nn.Module, x: Tensor, y: Tensor) -> None:
    want = attack(net, x, y, "pgd", threat=THREAT)
    got = attack(net, x.clone().requires_grad_(), y.int(), "pgd", threat=THREAT, rows=torch.arange(50).int())
    assert torch.equal(got.success, want.success) and torch.equal(got.x_adv, want.x_adv)
    assert not got.x_adv.requires_grad and not got.margin.requires_grad


def test_nan_is_never_right(x: Tensor) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :5] * torch.nan

    found = attack(Broken().eval(), x, torch.zeros(50, dtype=torch.int64), "pgd", threat=THREAT)
    assert not found.clean_correct.any() and found.success.all()


def bad(name: str, net: nn.Module, x: Tensor, y: Tensor) -> None:
    half = nn.Sequential(nn.Flatten(), nn.Linear(108, 1)).eval()
    train = copy.deepcopy(net).train()
    frozen = copy.deepcopy(net)
    frozen[1].training = True
    maps = nn.Sequential(nn.Conv2d(3, 3, 1)).eval()
    cases = {
        "train": lambda: attack(train, x, y, "pgd", threat=THREAT),
        "norm layer": lambda: attack(frozen, x, y, "pgd", threat=THREAT),
        "source": lambda: attack(net, x, y, "pgd", threat=THREAT, sources=[train]),
        "no source": lambda: attack(net, x, y, "pgd", threat=THREAT, sources=[]),
        "name": lambda: attack(net, x, y, "pdg", threat=THREAT),
        "255": lambda: attack(net, x * 255, y, "pgd", threat=THREAT),
        "normalised": lambda: attack(net, x * 4 - 2, y, "pgd", threat=THREAT),
        "nan": lambda: attack(net, x / 0 * 0, y, "pgd", threat=THREAT),
        "dtype": lambda: attack(net, x.double(), y, "pgd", threat=THREAT),
        "empty": lambda: attack(net, x[:0], y[:0], "pgd", threat=THREAT),
        "labels": lambda: attack(net, x, y + 5, "pgd", threat=THREAT),
        "targets": lambda: attack(net, x, y, "pgd", threat=THREAT, targets=y),
        "target range": lambda: attack(net, x, y, "pgd", threat=THREAT, targets=y + 9),
        "one output": lambda: attack(half, x, 0 * y, "pgd", threat=THREAT),
        "maps": lambda: attack(maps, x, y, "pgd", threat=THREAT),
        "batch": lambda: attack(net, x, y, "pgd", threat=THREAT, batch_size=0),
        "half": lambda: attack(copy.deepcopy(net).bfloat16(), x, y, "pgd", threat=THREAT),
    }
    cases[name]()


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("train", ParameterError, r"must be in eval mode; the model is in train mode. Call model.eval\(\)"),
        ("norm layer", ParameterError, r"must be in eval mode; 1 is in train mode"),
        ("source", ParameterError, r"must be in eval mode"),
        ("no source", ParameterError, r"sources must name at least one net"),
        ("name", ParameterError, r"unknown attack 'pdg'; did you mean 'pgd'\?"),
        ("255", DataError, r"0-255 pixels: divide by 255"),
        ("normalised", DataError, r"look normalised: pass plain pixels"),
        ("nan", DataError, r"not finite"),
        ("dtype", DataError, r"must be float32 in \[0, 1\]; got torch.float64"),
        ("empty", ShapeError, r"n >= 1; got \(0, 3, 6, 6\)"),
        ("labels", DataError, r"labels must be in 0 .. 4"),
        ("targets", ParameterError, r"a target must differ from its label; 50 of 50 do not"),
        ("target range", DataError, r"attack \(targets\): labels must be in 0 .. 4"),
        ("one output", DataError, r"at least 2 outputs; got 1"),
        ("maps", ShapeError, r"must return logits \(n, k\), n = 50; got \(50, 3, 6, 6\)"),
        ("batch", ParameterError, r"batch_size must be at least 1; got 0"),
        ("half", DataError, r"weights must be float32, .* 0.weight is torch.bfloat16"),
    ],
)
def test_bad_input_is_an_error_that_says_what_to_do(  # noqa: PLR0917
    net: nn.Module, x: Tensor, y: Tensor, name: str, kind: type[HardyError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        bad(name, net, x, y)
