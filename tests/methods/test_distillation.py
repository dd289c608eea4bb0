"""Distillation: the loss against closed forms, a teacher that nothing can touch, and runs that name one by its file."""

import copy
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import hardy
from hardy import io, seeding
from hardy.data import load_data
from hardy.errors import AttachError, CheckpointError, ParameterError
from hardy.methods import Distillation, GaussianNoise, LabelSmoothing, Mixup
from hardy.methods.distillation import Teacher, ask, distillation_loss
from hardy.objective import Objective
from hardy.surgery import attach, strip
from hardy.training import DataRecipe, ModelRecipe, Recipe, TrainRecipe, train
from hardy.training.build import with_teachers

KEY = seeding.keys(seeding.root(0, "images"), torch.arange(6))


def linear(seed: int, classes: int = 3, channels: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * 4, classes))


def normed(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.ReLU(), *pool, nn.Linear(4, 3))


def logits(seed: int, n: int = 5, k: int = 4) -> Tensor:
    return 3 * torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def x() -> Tensor:
    return torch.rand(6, 3, 2, 2, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def y() -> Tensor:
    return torch.arange(6) % 3


class TestLoss:
    @given(st.integers(0, 99), st.floats(0.3, 30.0), st.floats(0.0, 1.0))
    def test_is_the_divergence_of_softened_answers_mixed_with_the_cross_entropy(
        self, seed: int, temperature: float, weight: float
    ) -> None:
        z, t, y = logits(seed), logits(seed + 1000), torch.arange(5) % 4
        soft = [
            sum(
                float(p) * (float(p.log()) - float(q.log()))
                for p, q in zip((a / temperature).softmax(0), (b / temperature).softmax(0), strict=True)
            )
            for a, b in zip(t, z, strict=True)
        ]
        want = weight * temperature**2 * torch.tensor(soft, dtype=torch.float64)
        want = want + (1 - weight) * F.cross_entropy(z, y, reduction="none")
        got = distillation_loss(z, t, y, temperature=temperature, weight=weight)
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)

    def test_the_gradient_is_that_of_softened_probabilities_times_the_temperature(self) -> None:
        z, t = logits(0).requires_grad_(), logits(1)
        distillation_loss(z, t, torch.arange(5) % 4, temperature=2.5, weight=1.0).sum().backward()
        assert z.grad is not None
        torch.testing.assert_close(z.grad, 2.5 * ((z / 2.5).softmax(1) - (t / 2.5).softmax(1)).detach())

    def test_hot_answers_are_matched_in_their_logits(self) -> None:
        z, t = logits(0), logits(1)
        gap = (z - z.mean(1, keepdim=True)) - (t - t.mean(1, keepdim=True))
        got = distillation_loss(z, t, torch.arange(5) % 4, temperature=1e4, weight=1.0)
        torch.testing.assert_close(got, gap.square().mean(1) / 2, rtol=1e-3, atol=0)

    def test_cold_answers_are_those_of_the_most_likely_class(self) -> None:
        z, t = logits(0).float(), logits(1).float()
        got = distillation_loss(z, t, torch.arange(5) % 4, temperature=1e-3, weight=1.0)
        best = t.argmax(1)
        want = 1e-3 * (z.max(1).values - z.gather(1, best[:, None])[:, 0])  # T^2 * (largest - that of the class) / T
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-6)

    def test_nothing_is_lost_on_equal_answers_and_weight_0_leaves_the_labels(self) -> None:
        z, y = logits(0), torch.arange(5) % 4
        assert float(distillation_loss(z, z + 7, y, temperature=4.0, weight=1.0).abs().max()) < 1e-12
        plain = distillation_loss(z, logits(1), y, temperature=4.0, weight=0.0)
        torch.testing.assert_close(plain, F.cross_entropy(z, y, reduction="none"))
        soft = F.one_hot(y, 4).double() * 0.7 + 0.075
        torch.testing.assert_close(
            distillation_loss(z, logits(1), soft, temperature=4.0, weight=0.0), -(soft * z.log_softmax(1)).sum(1)
        )


def test_a_linear_student_steps_as_the_closed_form_says(x: Tensor, y: Tensor) -> None:
    student, teacher = linear(0), linear(1)
    attach(student, [Distillation(teacher=teacher, temperature=2.0, weight=0.75)], example=x, seed=0)
    z, losses = Objective(student)(x, y, KEY)
    assert list(losses) == ["task"]
    losses["task"].backward()
    t = teacher(x)
    slope = 0.75 * 2 * ((z / 2).softmax(1) - (t / 2).softmax(1)) + 0.25 * (z.softmax(1) - F.one_hot(y, 3))
    weight = student[1].weight
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, (slope.T @ x.flatten(1) / 6).detach())


def test_the_student_becomes_the_teacher(x: Tensor) -> None:
    student, teacher = linear(0), linear(1)
    wrong = (teacher(x).argmax(1) + 1) % 3  # labels are not looked at
    attach(student, [Distillation(teacher=teacher, temperature=1.0)], example=x, seed=0)
    objective, optimizer = Objective(student), torch.optim.SGD(student.parameters(), lr=0.2, momentum=0.9)
    for _ in range(300):
        optimizer.zero_grad()
        objective(x, wrong, KEY)[1]["task"].backward()
        optimizer.step()
    torch.testing.assert_close(student(x).softmax(1), teacher(x).softmax(1), atol=0.02, rtol=0)


class TestTeacher:
    def test_is_frozen_in_eval_mode_and_no_part_of_the_student(self, x: Tensor, y: Tensor) -> None:
        student, teacher = normed(0), normed(1).train()
        spec = Distillation(teacher=teacher)
        assert isinstance(spec.teacher, Teacher)
        net, before = spec.teacher.net, copy.deepcopy(teacher.state_dict())
        keys, parameters = list(student.state_dict()), len(list(student.parameters()))
        attached = attach(student, [spec], example=x, seed=0)
        objective = Objective(student)
        assert list(student.state_dict()) == keys and len(list(objective.parameters())) == parameters
        optimizer = torch.optim.SGD(objective.parameters(), lr=0.1)
        for step in range(3):
            optimizer.zero_grad()
            objective.train()(x, y, seeding.fold(KEY, step))[1]["task"].backward()
            optimizer.step()
        assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
        assert not any(m.training for m in net.modules()) and all(p.grad is None for p in net.parameters())
        assert teacher.training and all(p.requires_grad for p in teacher.parameters())
        assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
        attached.detach()
        assert list(student.state_dict()) == keys

    def test_is_a_copy_that_later_training_does_not_reach(self, x: Tensor, y: Tensor) -> None:
        student = linear(0)
        attach(student, [Distillation(teacher=student)], example=x, seed=0)  # held to its own answers
        assert Objective(student)(x, y, KEY)[1]["task"].item() < 1e-6
        with torch.no_grad():
            student[1].weight.add_(1.0 * torch.arange(3)[:, None])
        assert Objective(student)(x, y, KEY)[1]["task"].item() > 0.1

    def test_copies_of_the_student_share_it(self, x: Tensor, y: Tensor) -> None:
        student = linear(0)
        attach(student, [Distillation(teacher=linear(1))], example=x, seed=0)
        twin, pickled = copy.deepcopy(student), pickle.loads(pickle.dumps(student))  # noqa: S301
        held, other = (net._hardy["distillation"].spec.teacher for net in (student, twin))
        assert held.net is other.net
        tasks = [Objective(net)(x, y, KEY)[1]["task"] for net in (student, twin, pickled)]
        assert tasks[0] == tasks[1] == tasks[2]
        plain = strip(student)
        assert not hasattr(plain, "_hardy") and torch.equal(plain(x), student(x))

    def test_the_spec_is_a_value_named_after_the_weights(self) -> None:
        one, same, other = (Distillation(teacher=linear(seed)) for seed in (1, 1, 2))
        assert one == same != other and hash(one) == hash(same)
        assert pickle.loads(pickle.dumps(one)) == one == copy.deepcopy(one) == replace(one)  # noqa: S301
        assert "Sequential with weights " in repr(one) and len(repr(one)) < 120
        named = hardy.load_model("cifar_resnet8", num_classes=3, args={"width": 2})
        assert "cifar_resnet8 with weights " in repr(Distillation(teacher=named))

    def test_sees_what_the_methods_before_it_have_made(self, x: Tensor, y: Tensor) -> None:
        def seen(*methods: Any) -> tuple[Tensor, Tensor]:
            student, views = linear(0), []
            attach(student, methods, example=x, seed=0)
            student.register_forward_pre_hook(lambda _m, args: views.append(args[0]))
            net = student._hardy["distillation"].spec.teacher.net
            hook = net.register_forward_pre_hook(lambda _m, args: views.append(args[0].clone()))
            Objective(student)(x, y, KEY)
            hook.remove()
            return views[0], views[1]

        noise, distillation = GaussianNoise(sigma=0.3, p=1.0), Distillation(teacher=linear(1))
        asked, given_ = seen(noise, distillation)
        assert torch.equal(asked, given_) and not torch.equal(asked, x)
        asked, given_ = seen(distillation, noise)
        assert torch.equal(asked, x) and not torch.equal(given_, x)
        asked, given_ = seen(Mixup(), distillation)
        assert torch.equal(asked, given_) and not torch.equal(asked, x)

    def test_keeps_its_precision(self, x: Tensor, y: Tensor) -> None:
        student = linear(0)
        attach(student, [Distillation(teacher=linear(1))], example=x, seed=0)
        want = Objective(student)(x, y, KEY)[1]["task"]
        got = Objective(student.double())(x.double(), y, KEY)[1]["task"]
        assert got.dtype == torch.float64
        torch.testing.assert_close(got.float(), want)


class TestRefusals:
    @pytest.mark.parametrize(
        ("teacher", "message"),
        [
            (linear(1, classes=4), r"one logit for each of the 3 classes; got \(1, 4\)"),
            (linear(1, channels=1), "must take the student's images, 3x2x2; it does not"),
            (nn.Identity(), r"one logit for each of the 3 classes; got \(1, 3, 2, 2\)"),
        ],
    )
    def test_a_teacher_of_other_images_or_classes(self, teacher: nn.Module, message: str, x: Tensor) -> None:
        student = linear(0)
        with pytest.raises(AttachError, match=f"distillation: the teacher .*{message}"):
            attach(student, [Distillation(teacher=teacher)], example=x, seed=0)
        assert not hasattr(student, "_hardy")

    def test_a_teacher_whose_classes_stand_in_another_order(self) -> None:
        nets = [hardy.load_model("cifar_resnet8", num_classes=2, args={"width": 2}) for _ in range(2)]
        images = torch.rand(1, 3, 8, 8)
        for net, names in zip(nets, (("cat", "dog"), ("dog", "cat")), strict=True):
            net.class_names = names  # type: ignore[assignment]
        with pytest.raises(AttachError, match="class 0 is 'cat' for the student, 'dog' for the teacher"):
            attach(nets[0], [Distillation(teacher=nets[1])], example=images, seed=0)
        nets[1].class_names = ("0", "1")  # type: ignore[assignment]
        attach(nets[0], [Distillation(teacher=nets[1])], example=images, seed=0)

    def test_a_file_where_a_net_must_be(self, x: Tensor) -> None:
        with pytest.raises(AttachError, match=r"got the file a\.safetensors.*hardy\.load"):
            attach(linear(0), [Distillation(teacher="a.safetensors")], example=x, seed=0)

    @pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"temperature": float("inf")}, {"weight": 1.5}])
    def test_numbers_out_of_range(self, wrong: dict[str, float]) -> None:
        with pytest.raises(ParameterError, match=f"Distillation: {next(iter(wrong))}"):
            Distillation(teacher="a", **wrong)

    def test_no_teacher(self) -> None:
        with pytest.raises(ParameterError, match="teacher must be a checkpoint"):
            Distillation(teacher="")

    def test_another_task_loss(self, x: Tensor) -> None:
        student = linear(0)
        attach(student, [LabelSmoothing(), Distillation(teacher=linear(1))], example=x, seed=0)
        with pytest.raises(AttachError, match="only one method can define the task loss"):
            Objective(student)


BASE = Recipe(
    model=ModelRecipe(name="cifar_resnet8", args={"width": 4}),
    data=DataRecipe(name="digits", limit=96, augment=("crop",), val_fraction=0.0),
    train=TrainRecipe(epochs=3, batch_size=32, lr=0.1),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the run folder of a teacher."""
    path = tmp_path_factory.mktemp("teacher")
    model = hardy.load_model("cifar_resnet8", num_classes=10, in_channels=1, args={"width": 4}, seed=5)
    model.class_names = tuple(map(str, range(10)))  # type: ignore[assignment]
    io.save(model, path / "model.safetensors")
    return path


def distilled(teacher: Path, **more: Any) -> Recipe:
    return replace(BASE, methods=({"name": "distillation", "teacher": str(teacher), **more},))


class TestTraining:
    def test_a_recipe_names_a_file_or_a_run_folder(self, folder: Path, tmp_path: Path) -> None:
        file = folder / "model.safetensors"
        runs = [train(distilled(path), out=tmp_path / path.name, device="cpu") for path in (folder, file)]
        data = load_data("digits", split="train", val_fraction=0.0).limit(96)
        model = hardy.load_model("cifar_resnet8", num_classes=10, in_channels=1, args={"width": 4})
        spec = Distillation(teacher=hardy.load(file))
        direct = train(
            model, data, methods=[spec], options=BASE.train, augment=("crop",), out=tmp_path / "net", device="cpu"
        )
        plain = train(BASE, out=tmp_path / "plain", device="cpu")
        want = runs[0].model.state_dict()
        for run in (runs[1], direct):
            assert all(torch.equal(want[name], value) for name, value in run.model.state_dict().items())
        assert not torch.equal(want["net.fc.weight"], plain.model.state_dict()["net.fc.weight"])
        assert runs[0].history[0]["forward_passes"] == 2 and not hasattr(runs[0].model, "_hardy")
        header = io.read(tmp_path / folder.name / "model.safetensors")
        assert header.trained_with == (repr(Distillation(teacher=str(folder))),)
        assert "with weights" in (tmp_path / "net" / "recipe.toml").read_text()

    def test_resumed_equals_never_stopped(self, folder: Path, tmp_path: Path) -> None:
        recipe = distilled(folder, weight=0.5)
        whole = train(recipe, out=tmp_path / "whole", device="cpu")

        def stop(progress: Any) -> None:
            if progress.row is not None and progress.epoch == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(recipe, out=tmp_path / "part", device="cpu", on_progress=stop)
        part = train(recipe, out=tmp_path / "part", device="cpu", resume=True)
        for name, value in whole.model.state_dict().items():
            assert torch.equal(value, part.model.state_dict()[name]), name

    def test_a_missing_teacher_is_said_before_anything_is_written(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"distillation: the teacher must be .* no such file"):
            train(distilled(tmp_path / "none.safetensors"), out=tmp_path / "run", device="cpu")
        assert not (tmp_path / "run" / "recipe.toml").exists()

    def test_a_teacher_from_code_of_the_users_own_must_be_handed_over(self, tmp_path: Path) -> None:
        io.save(linear(0), tmp_path / "own.safetensors")
        with pytest.raises(CheckpointError, match=r"distillation: .*code of your own"):
            with_teachers([Distillation(teacher=str(tmp_path / "own.safetensors"))])

    def test_other_methods_stay_as_they_are(self) -> None:
        methods = [Mixup(), Distillation(teacher=linear(0))]
        assert with_teachers(methods) == methods


def test_the_teacher_answers_in_its_own_precision_under_autocast() -> None:
    teacher, x = nn.Sequential(nn.Flatten(), nn.Linear(48, 5)), torch.rand(3, 3, 4, 4)
    want = ask(teacher, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert teacher(x).dtype == torch.bfloat16  # what it would do by itself
        assert torch.equal(ask(teacher, x), want) and want.dtype == torch.float32
