"""An ensemble answers by the mean of its members' logits, keeps their masks, and works wherever a model does."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hardy
from hardy.errors import CheckpointError, ParameterError, ShapeError
from hardy.methods import DefectiveConv
from hardy.models import Ensemble
from hardy.surgery import attachments, capture


@pytest.fixture
def x() -> Tensor:
    return torch.rand(6, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def member(seed: int, *, classes: int = 4, channels: int = 3, method: DefectiveConv | None = None) -> nn.Module:
    model = hardy.load_model(
        "cifar_resnet8", num_classes=classes, in_channels=channels, seed=seed, args={"width": 4}
    ).eval()
    if method is not None:
        method.attach(model, example=torch.zeros(1, channels, 12, 12), seed=seed)
    return model


def masks(model: nn.Module) -> list[Tensor]:
    return [buffer for name, buffer in model.named_buffers() if name.endswith(".mask")]


def test_the_logits_are_the_mean_of_the_raw_logits(x: Tensor) -> None:
    members = [member(seed) for seed in range(3)]
    want = (members[0](x) + members[1](x) + members[2](x)) / 3
    torch.testing.assert_close(Ensemble(members)(x), want)
    probabilities = torch.stack([each(x).softmax(1) for each in members]).mean(0)
    assert not torch.allclose(Ensemble(members)(x).softmax(1), probabilities)  # another function
    assert torch.equal(Ensemble(members[:1])(x), members[0](x))


def test_members_attached_with_different_seeds_have_different_masks_and_with_one_mask_seed_the_same(x: Tensor) -> None:
    different = Ensemble([member(seed, method=DefectiveConv()) for seed in range(3)])
    same = Ensemble([member(seed, method=DefectiveConv(mask_seed=4)) for seed in range(3)])
    for model, equal in ((different, False), (same, True)):
        first, second, third = (masks(each) for each in model.members)
        assert len(first) == len(second) == len(third) == 5
        for a, b, c in zip(first, second, third, strict=True):
            assert torch.equal(a, b) is equal and torch.equal(b, c) is equal and torch.equal(a, c) is equal
        torch.testing.assert_close(model(x), torch.stack([each(x) for each in model.members]).mean(0))


def test_masks_work_inside_and_belong_to_the_members(x: Tensor) -> None:
    model = Ensemble([member(seed, method=DefectiveConv()) for seed in range(2)])
    assert attachments(model) == [] and all(len(attachments(each)) == 1 for each in model.members)
    with capture(model, ["members.0.net.bn1", "members.1.net.bn1"]) as f:
        model(x)
    for i, each in enumerate(model.members):
        assert (f[f"members.{i}.net.bn1"][:, masks(each)[0] == 0] == 0).all()
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), model(x))
    with pytest.raises(ShapeError, match=r"works at the input size it was attached with"):
        model(torch.rand(1, 3, 16, 16))


def test_gradients_go_through_all_members(x: Tensor) -> None:
    model = Ensemble([member(seed, method=DefectiveConv()) for seed in range(3)])
    x.requires_grad_()
    want = sum(torch.autograd.grad(each(x).logsumexp(1).sum(), x)[0] for each in model.members)
    (got,) = torch.autograd.grad(sum(each(x).logsumexp(1).sum() for each in model.members), x)
    torch.testing.assert_close(got, want)
    model(x).pow(2).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for each in model.members for p in each.parameters())
    (alone,) = torch.autograd.grad(model(x)[:, 0].sum(), x)
    parts = torch.stack([torch.autograd.grad(each(x)[:, 0].sum(), x)[0] for each in model.members])
    torch.testing.assert_close(alone, parts.mean(0))


def test_modes_pass_through_and_start_as_those_of_the_members() -> None:
    members = [member(seed) for seed in range(2)]
    model = Ensemble(members)
    assert not model.training and not any(module.training for module in model.modules())
    assert all(module.training for module in model.train().modules())
    assert not any(module.training for module in model.eval().modules())
    members[1].train()
    assert Ensemble(members).training
    assert not members[0].training and members[1].training  # nobody's mode was changed


def test_attack_and_evaluate_take_it(x: Tensor) -> None:
    model = Ensemble([member(seed, method=DefectiveConv()) for seed in range(2)])
    y = model(x).argmax(1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adv = hardy.attack(model, x, y, "pgd", threat=hardy.Threat("linf", 0.2))
    assert adv.success.any() and torch.equal(model(adv.x_adv).argmax(1) != y, adv.success)
    result = hardy.evaluate(model, x, y, axes=["clean", "white_box"], threat=hardy.Threat("linf", 0.2))
    assert result.accuracy("clean") == 1.0 and result.accuracy("white_box") <= 1 - adv.success.float().mean() + 1e-6
    assert not model.training and all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_it_can_be_the_source_of_transfer(x: Tensor) -> None:
    model = Ensemble([member(seed, method=DefectiveConv()) for seed in range(2)])
    target = member(7)
    result = hardy.evaluate(target, x, target(x).argmax(1), axes=["clean", "transfer"], sources=[("EN", model)])
    assert result.accuracy("clean") == 1.0


def test_it_is_loaded_into_an_ensemble_of_the_same_members(x: Tensor, tmp_path: Path) -> None:
    def make(seed: int) -> Ensemble:
        return Ensemble([member(seed + i, method=DefectiveConv()) for i in range(2)])

    model = make(0)
    hardy.save(model, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=r"holds the weights of Ensemble, built by code of your own"):
        hardy.load(tmp_path / "m.safetensors")
    again = hardy.load(tmp_path / "m.safetensors", model=make(5))
    assert torch.equal(again(x), model(x))


def test_any_module_can_be_a_member(x: Tensor) -> None:
    own = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 4))
    model = Ensemble([own, member(0)])
    torch.testing.assert_close(model(x), (own(x) + member(0)(x)) / 2)
    with pytest.raises(
        ShapeError, match=r"Ensemble: all members must give logits of one shape; got \(6, 4\) and \(6, 1\)"
    ):
        Ensemble([own, nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 1))])(x)  # and never broadcast


REFUSED: dict[str, tuple[Callable[[], list[nn.Module]], str]] = {
    "nobody": (list, r"Ensemble: there must be at least one member; got none"),
    "channels": (lambda: [member(0), member(0, channels=1)], r"must have the same channels; got 3 and 1"),
    "classes": (lambda: [member(0), member(0, classes=5)], r"must have the same number of classes; got 4 and 5"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_members_that_do_not_fit_are_an_error(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(ParameterError, match=message):
        Ensemble(make())


def test_classes_in_another_order_are_an_error_and_unnamed_ones_are_not() -> None:
    first, second, unnamed = (member(seed) for seed in range(3))
    first.class_names, second.class_names = ("a", "b", "c", "d"), ("b", "a", "c", "d")
    with pytest.raises(ParameterError, match=r"must have the same class names; got \('a', 'b', .* and \('b', 'a', "):
        Ensemble([first, second])
    Ensemble([unnamed, first])


def test_it_says_how_many_it_has() -> None:
    assert "mean of the logits of 2" in repr(Ensemble([member(0), member(1)]))
