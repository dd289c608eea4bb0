"""Free adversarial training: a hand-written loop of replays, and what the training loop does around it."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardy import io, seeding
from hardy.data import ArrayData
from hardy.errors import AttachError, ParameterError
from hardy.methods import AdversarialWeightPerturbation, FreeAdversarialTraining
from hardy.objective import Objective
from hardy.surgery import attach
from hardy.training import TrainRecipe, train
from hardy.training.ranks import TrainingRanks

SPEC = FreeAdversarialTraining(eps=0.1, replays=3)


def make() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Softplus(), nn.Flatten(), nn.Linear(36, 3)).double()


def data() -> list[tuple[Tensor, Tensor, Tensor]]:
    g = torch.Generator().manual_seed(0)
    return [
        (torch.rand(6, 1, 5, 5, generator=g).double(), torch.arange(6) % 3, seeding.keys(batch, torch.arange(6)))
        for batch in range(3)
    ]


def optimizer_of(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)


def by_hand(model: nn.Module, root: int) -> list[float]:
    """Write the replays of three batches out."""
    optimizer, losses = optimizer_of(model), []
    for x, y, key in data():
        delta = (2 * seeding.uniform(seeding.fold(key, root), 0, x.shape[1:]).double() - 1) * 0.1
        for _ in range(3):
            delta = delta.detach().requires_grad_()
            loss = F.cross_entropy(model((x + delta).clamp(0, 1)), y)
            optimizer.zero_grad()
            loss.backward()
            assert delta.grad is not None
            delta = (delta + 0.1 * delta.grad.sign()).clamp(-0.1, 0.1)
            optimizer.step()
        losses.append(loss.item())
    return losses


def test_equals_a_hand_written_loop_of_replays_over_three_batches() -> None:
    model = make()
    reference = copy.deepcopy(model)
    held = SPEC.attach(model, example=data()[0][0], seed=0).insert
    want = by_hand(reference, held.root)
    objective, optimizer, got = Objective(model), optimizer_of(model), []
    for x, y, key in data():

        def closure(x: Tensor = x, y: Tensor = y, key: Tensor = key) -> dict[str, Tensor]:
            optimizer.zero_grad()
            _, losses = objective(x, y, key)
            losses["task"].backward()
            return losses

        got.append(held.around_step(closure, optimizer.step)["task"].item())
        optimizer.step()
    assert got == pytest.approx(want, rel=1e-9)
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-8, atol=1e-10)
    assert held.delta is held.leaf is None and not held.replaying  # type: ignore[union-attr]


def test_a_failed_replay_leaves_no_perturbation_behind() -> None:
    model, (x, y, key) = make(), data()[0]
    held = SPEC.attach(model, example=x, seed=0).insert
    calls = []

    def closure() -> dict[str, Tensor]:
        calls.append(held.inputs(x, y, key))
        if len(calls) == 2:
            raise RuntimeError("full")
        return {}

    with pytest.raises(RuntimeError, match="full"):
        held.around_step(closure, lambda: None)
    assert held.delta is held.leaf is None and torch.equal(held.inputs(x, y, key)[0], calls[0][0])


def tiny() -> tuple[nn.Module, ArrayData]:
    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    x = torch.randint(256, (48, 1, 8, 8), dtype=torch.uint8, generator=g)
    return net, ArrayData(x, torch.arange(48) % 2, torch.arange(48), class_names=("a", "b"), name="tiny", split="train")


def test_a_training_steps_as_often_as_it_replays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    own = TrainingRanks.average_norms_

    def counted(self: TrainingRanks, model: nn.Module) -> None:
        steps.append(1)
        own(self, model)

    monkeypatch.setattr(TrainingRanks, "average_norms_", counted)
    model, images = tiny()
    options = TrainRecipe(epochs=2, batch_size=16, clip_norm=0.1)
    run = train(model, images, methods=[SPEC], options=options, out=tmp_path / "a", augment=())
    assert len(steps) == 2 * 3 * 3 and run.history[-1]["step"] == 6
    assert [(row["forward_passes"], row["backward_passes"]) for row in run.history] == [(3, 3), (3, 3)]
    metrics = io.read(run.folder / "model.safetensors").metrics
    assert (metrics["forward_passes"], metrics["backward_passes"]) == (6, 6)


def test_a_resumed_training_equals_one_that_never_stopped(tmp_path: Path) -> None:
    def run(name: str, *, stop: int | None, resume: bool = False) -> dict[str, Tensor]:
        def watch(progress: object) -> None:
            if getattr(progress, "step", None) == stop:
                raise KeyboardInterrupt

        model, images = tiny()
        options = TrainRecipe(epochs=2, batch_size=16, save_every=1)
        train(model, images, methods=[SPEC], options=options, out=tmp_path / name, augment=(), resume=resume,
              on_progress=watch)  # fmt: skip
        return io.read_tensors(tmp_path / name / "model.safetensors")

    whole = run("whole", stop=None)
    with pytest.raises(KeyboardInterrupt):
        run("cut", stop=4)
    again = run("cut", stop=None, resume=True)
    assert whole.keys() == again.keys() and all(torch.equal(whole[k], again[k]) for k in whole)


def test_awp_and_bad_values_are_refused() -> None:
    x = data()[0][0]
    for pair in ([SPEC, AdversarialWeightPerturbation()], [AdversarialWeightPerturbation(), SPEC]):
        with pytest.raises(AttachError, match="cannot be combined with"):
            attach(make(), pair, example=x, seed=0)
    for fields in ({"eps": -0.1}, {"eps": 1.5}, {"replays": 0}):
        with pytest.raises(ParameterError, match="FreeAdversarialTraining: "):
            FreeAdversarialTraining(**fields)  # type: ignore[arg-type]
