"""RiFT: one layer moves, the line to it is exact at both ends, and robustness decides how far to go."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import hardy
from hardy.attacks import PGD
from hardy.data import ArrayData, load_data
from hardy.diagnosis.module_criticality import module_criticality
from hardy.errors import DataError, LayerNotFoundError, ParameterError, TrainingError
from hardy.methods import SoftThreshold
from hardy.threats import Threat
from hardy.training import TrainRecipe, train
from hardy.treatment.line import Judge, Line, choose, interpolated
from hardy.treatment.rift import ALPHAS, Rift, rift

THREAT = Threat("linf", 0.05)
QUICK: dict[str, Any] = {"epochs": 2, "lr": 0.02, "threat": THREAT, "steps": 2, "augment": (), "device": "cpu"}
LAYER = "net.layer2.0.conv1"


@pytest.fixture(scope="module")
def parts() -> tuple[ArrayData, ArrayData]:
    return load_data("digits", split="train").limit(160), load_data("digits", split="val").limit(48)


@pytest.fixture(scope="module")
def patient(parts: tuple[ArrayData, ArrayData], tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    model = hardy.load_model("cifar_resnet8", num_classes=10, in_channels=1, args={"width": 4})
    options, out = TrainRecipe(epochs=6, batch_size=32, lr=0.1), tmp_path_factory.mktemp("patient") / "run"
    train(model, parts[0], options=options, augment=(), out=out, device="cpu")
    weight = model.get_submodule(LAYER).weight
    with torch.no_grad():  # what is to be mended
        weight.mul_(1 + 1.5 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    return model


@pytest.fixture(scope="module")
def treated(
    patient: nn.Module, parts: tuple[ArrayData, ArrayData], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Rift, dict[str, Tensor]]:
    before = copy.deepcopy(patient.state_dict())
    out = tmp_path_factory.mktemp("rift") / "treated"
    return rift(patient, parts[0], held_out=parts[1], out=out, layer="layer2.0.conv1", **QUICK), before


def moved(one: nn.Module, other: dict[str, Tensor]) -> set[str]:
    assert one.state_dict().keys() == other.keys()
    return {name for name, value in one.state_dict().items() if not torch.equal(value, other[name])}


class TestChoice:
    @given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=11))
    def test_is_the_best_of_those_that_are_as_robust_as_the_patient(self, points: list[tuple[int, int]]) -> None:
        clean, robust = [c / 5 for c, _ in points], [r / 5 for _, r in points]
        best = choose(clean, robust)
        assert robust[best] >= robust[0] and clean[best] >= clean[0]
        for i, (c, r) in enumerate(zip(clean, robust, strict=True)):
            if r >= robust[0]:
                assert c < clean[best] or (c == clean[best] and i >= best)

    def test_stays_at_the_patient_where_every_gain_costs_robustness(self) -> None:
        assert choose([0.5, 0.6, 0.9], [0.4, 0.39, 0.1]) == 0
        assert choose([0.5, 0.5, 0.4], [0.4, 0.5, 0.6]) == 0
        assert choose([0.5, 0.9, 0.6], [0.4, 0.3, 0.4]) == 2  # behind a dip


class TestLine:
    def test_ends_are_exact_and_the_middle_is_on_the_line(self) -> None:
        before, after = {"w": torch.randn(50) * 1e3}, {"w": torch.randn(50) * 1e-3}
        assert torch.equal(interpolated(before, after, 0.0)["w"], before["w"])
        assert torch.equal(interpolated(before, after, 1.0)["w"], after["w"])
        torch.testing.assert_close(interpolated(before, after, 0.3)["w"], 0.7 * before["w"] + 0.3 * after["w"])

    def test_moves_the_layer_alone_and_copies(self) -> None:
        torch.manual_seed(0)
        patient = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()
        tuned = copy.deepcopy(patient)
        with torch.no_grad():
            tuned[0].weight.add_(1)
            tuned[0].bias.add_(2)
        line, before = Line(patient, tuned, "0"), copy.deepcopy(patient.state_dict())
        assert moved(line.at(0.0), before) == set() == moved(patient, before)
        assert moved(line.at(1.0), tuned.state_dict()) == set()
        half = line.at(0.5)
        assert moved(half, before) == {"0.weight", "0.bias"} and not half.training
        torch.testing.assert_close(half[0].bias, patient[0].bias + 1)  # type: ignore[index]


class TestTreatment:
    def test_only_the_layer_differs(self, treated: tuple[Rift, dict[str, Tensor]], patient: nn.Module) -> None:
        made, before = treated
        assert made.layer == LAYER and made.criticality == {}
        assert moved(patient, before) == set() and not patient.training
        own = {name for name in before if name.startswith(f"{LAYER}.")}
        assert moved(made.fine_tuned, before) == own
        assert moved(made.model, before) == (own if made.alpha else set())
        assert all(not m.training for m in made.model.modules())

    def test_alpha_1_is_the_trained_net(self, treated: tuple[Rift, dict[str, Tensor]]) -> None:
        made, _ = treated
        trained = hardy.load(made.folder / "training" / "model.safetensors")
        assert moved(made.fine_tuned, trained.state_dict()) == set()

    def test_the_curve_is_what_the_nets_do(
        self, treated: tuple[Rift, dict[str, Tensor]], patient: nn.Module, parts: tuple[ArrayData, ArrayData]
    ) -> None:
        made, held = treated[0], parts[1]
        assert [p.level for p in made.clean] == list(ALPHAS) == [p.level for p in made.robust]
        for i, net in ((0, patient), (10, made.fine_tuned), (ALPHAS.index(made.alpha), made.model)):
            pgd = PGD(steps=2)
            seen = hardy.attack(net, held.images(), held.y, pgd, threat=THREAT, rows=held.index)
            assert made.clean[i].accuracy == pytest.approx(float(seen.clean_correct.float().mean()))
            assert made.robust[i].accuracy == pytest.approx(float((~seen.success).float().mean()))
        best = choose([p.accuracy for p in made.clean], [p.accuracy for p in made.robust])
        assert made.alpha == ALPHAS[best]
        assert made.gain[0] == pytest.approx(made.clean[best].accuracy - made.clean[0].accuracy)
        assert made.gain[1] <= made.gain[0] <= made.gain[2]
        assert 0 < made.robust[0].accuracy < made.clean[0].accuracy  # so that the rule has something to weigh
        assert made.alpha > 0 and made.gain[0] > 0

    def test_everything_is_in_the_folder(self, treated: tuple[Rift, dict[str, Tensor]]) -> None:
        made, _ = treated
        assert moved(hardy.load(made.folder / "model.safetensors"), made.model.state_dict()) == set()
        said = json.loads((made.folder / "rift.json").read_text())
        assert said["layer"] == LAYER and said["alpha"] == made.alpha and said["held_out_images"] == 48
        assert [row["robust"]["accuracy"] for row in said["curve"]] == [p.accuracy for p in made.robust]
        assert said["passes"] == made.passes and said["passes"]["forward"] > 11 * 48

    def test_takes_the_layer_that_is_least_critical_on_the_held_out_images(
        self, patient: nn.Module, parts: tuple[ArrayData, ArrayData], tmp_path: Path
    ) -> None:
        held = parts[1]
        made = rift(patient, parts[0], held_out=held, out=tmp_path / "r", **{**QUICK, "epochs": 1})
        want = module_criticality(patient, held.images(), held.y, rows=held.index, threat=THREAT)
        assert made.layer == want.least == min(made.criticality, key=made.criticality.__getitem__)
        assert list(made.criticality) == list(want.layers)
        assert list(made.criticality.values()) == pytest.approx(list(want.values.values()), abs=1e-4)

    def test_what_live_methods_have_learned_stays(self, parts: tuple[ArrayData, ArrayData], tmp_path: Path) -> None:
        model = hardy.load_model("cifar_resnet8", num_classes=10, in_channels=1, args={"width": 4})
        hardy.attach(model, [SoftThreshold()], example=parts[0].images()[:1], seed=0)
        before = copy.deepcopy(model.eval().state_dict())
        made = rift(model, parts[0], held_out=parts[1], out=tmp_path / "r", layer=LAYER, **QUICK)
        assert moved(made.fine_tuned, before) == {f"{LAYER}.weight"}
        trained = hardy.load(made.folder / "training" / "model.safetensors")
        assert moved(trained, before) == {f"{LAYER}.weight"}
        loaded = hardy.load(made.folder / "model.safetensors")
        assert moved(loaded, made.model.state_dict()) == set()

    def test_resumed_equals_never_stopped(
        self,
        treated: tuple[Rift, dict[str, Tensor]],
        patient: nn.Module,
        parts: tuple[ArrayData, ArrayData],
        tmp_path: Path,
    ) -> None:
        def stop(progress: Any) -> None:
            if progress.row is not None:
                raise KeyboardInterrupt

        how = {"held_out": parts[1], "out": tmp_path / "r", "layer": LAYER, **QUICK}
        with pytest.raises(KeyboardInterrupt):
            rift(patient, parts[0], on_progress=stop, **how)
        assert not (tmp_path / "r" / "rift.json").exists()
        with pytest.raises(TrainingError, match="already holds a run"):
            rift(patient, parts[0], **how)
        made = rift(patient, parts[0], resume=True, **how)
        assert moved(made.fine_tuned, treated[0].fine_tuned.state_dict()) == set()
        assert made.alpha == treated[0].alpha and made.robust == treated[0].robust


class TestRefusals:
    def test_before_anything_is_trained(
        self, patient: nn.Module, parts: tuple[ArrayData, ArrayData], tmp_path: Path
    ) -> None:
        data, held = parts
        out = tmp_path / "r"

        def refused(error: type[Exception], message: str, held_out: ArrayData = held, **more: Any) -> None:
            with pytest.raises(error, match=message):
                rift(patient, data, held_out=held_out, out=out, **{**QUICK, **more})
            assert not out.exists()

        refused(ParameterError, "one convolution or linear layer; 'layer1' is net.layer1", layer="layer1")
        refused(ParameterError, "one convolution or linear layer; '\\*conv1' is", layer="*conv1")
        refused(ParameterError, "one convolution or linear layer", layer="layer1.0.conv1@input")
        refused(LayerNotFoundError, "nowhere", layer="nowhere")
        refused(ParameterError, "steps", layer=LAYER, steps=0)
        refused(ParameterError, "batch_size must be at least 1", layer=LAYER, batch_size=0)
        refused(ParameterError, "epochs must be above 0", layer=LAYER, epochs=0)
        both = ArrayData(
            torch.cat([held.x[:3], data.x[:2]]),
            torch.cat([held.y[:3], data.y[:2]]),
            torch.cat([held.index[:3], data.index[:2]]),
            held.class_names,
        )
        refused(DataError, "share no image with the training images; 2 of 5 are there too", held_out=both)
        small = ArrayData.make(held.x[:, :, :4, :4], held.y, class_names=held.class_names)
        refused(DataError, "must have the size and classes", held_out=small)

    def test_a_patient_in_train_mode_and_a_folder_in_use(
        self, treated: tuple[Rift, dict[str, Tensor]], patient: nn.Module, parts: tuple[ArrayData, ArrayData]
    ) -> None:
        twin = copy.deepcopy(patient).train()
        with pytest.raises(ParameterError, match="must be in eval mode"):
            rift(twin, parts[0], held_out=parts[1], out="unused", **QUICK)
        with pytest.raises(TrainingError, match="already holds a treatment"):
            rift(patient, parts[0], held_out=parts[1], out=treated[0].folder, **QUICK)


def test_says_that_a_budget_left_nothing_to_protect(
    patient: nn.Module, parts: tuple[ArrayData, ArrayData], tmp_path: Path
) -> None:
    how = {**QUICK, "epochs": 1, "threat": Threat("linf", 0.4), "steps": 10}
    made = rift(patient, parts[0], held_out=parts[1], out=tmp_path / "r", layer=LAYER, limit=12, **how)
    assert made.robust[0].accuracy == 0 and made.robust[0].n == 12
    assert any("right on no image at linf" in note for note in made.notes)


def test_the_judge_asks_the_same_question_of_every_net(patient: nn.Module, parts: tuple[ArrayData, ArrayData]) -> None:
    judge = Judge.of(parts[1], THREAT, steps=2, seed=4, batch_size=16)
    one, same = judge.measure(patient), Judge.of(parts[1], THREAT, steps=2, seed=4, batch_size=48).measure(patient)
    assert torch.equal(one.success, same.success) and torch.equal(one.clean_correct, same.clean_correct)
