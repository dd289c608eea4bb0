"""One diagnosis: what is asked, what is refused before anything is computed, and nothing left behind."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import hardy
from hardy.diagnosis import DEFAULT, PARTS, Case, Part, diagnose
from hardy.errors import AttachError, DataError, HardyError, LayerNotFoundError, ParameterError, ShapeError


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.relu = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.b, self.head = nn.Conv2d(4, 5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(self.b(self.relu(self.norm(self.a(x))))).mean((2, 3)))


@pytest.fixture(autouse=True)
def table() -> Iterator[None]:
    """Give the table of parts back in its order, which what a test takes out and puts back would change."""
    before = dict(PARTS)
    yield
    PARTS.clear()
    PARTS.update(before)


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return Small().eval()


X = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(2))
Y = torch.arange(24) % 3


def test_the_default_is_channels_and_predictions_of_all_convolutions(net: nn.Module) -> None:
    seen: list[tuple[str, int, int]] = []
    found = hardy.diagnose(net, X, Y, on_progress=lambda *p: seen.append(p), model_name="m", data_name="d", seed=4)
    assert [part.name for part in found.parts] == list(DEFAULT) and found.layers == ("a", "b")
    assert seen == [("channels", 0, 2), ("predictions", 1, 2)]
    assert (found.model, found.data, found.n, found.seed) == ("m", "d", 24, 4)
    assert found.class_names == ("0", "1", "2") and found.environment["hardy"]
    assert found.options["top"] == 100 and found.options["threat"] == "linf 8/255"


def test_a_loader_is_as_good_as_tensors(net: nn.Module) -> None:
    batches = [(X[:10], Y[:10]), (X[10:], Y[10:])]
    one, two = diagnose(net, X, Y), diagnose(net, batches)
    assert all(a.scores == b.scores for a, b in zip(one.parts, two.parts, strict=True))
    mapped = diagnose(net, X, Y, map_x=batches)
    assert mapped.map_n == 24 and not one.correlation("b").isnan().all()
    for found in (two, mapped):
        assert torch.equal(found.correlation("b").nan_to_num(-1), one.correlation("b").nan_to_num(-1))


def test_batches_change_nothing_but_rounding(net: nn.Module) -> None:
    one, two = (diagnose(net, X, Y, draws=2, batch_size=size) for size in (24, 5))
    for layer in one.layers:
        assert torch.allclose(one.correlation(layer), two.correlation(layer), rtol=1e-4, atol=1e-7, equal_nan=True)


def test_the_same_question_has_the_same_answer_to_the_bit(net: nn.Module) -> None:
    one, two = (diagnose(net, X, Y, draws=2, joint=True, seed=7) for _ in range(2))
    assert all(a.scores == b.scores and a.findings == b.findings for a, b in zip(one.parts, two.parts, strict=True))
    for a, b in zip(one.parts, two.parts, strict=True):
        assert all(torch.equal(a.tensors[n].nan_to_num(-1), b.tensors[n].nan_to_num(-1)) for n in a.tensors)
    other = diagnose(net, X, Y, draws=2, joint=True, seed=8)
    assert not torch.equal(one.correlation("b").nan_to_num(0), other.correlation("b").nan_to_num(0))


def test_the_net_and_the_random_state_are_left_as_they_were(net: nn.Module) -> None:
    net.norm.weight.requires_grad_(False)
    before, state, x = copy.deepcopy(net), torch.get_rng_state(), X.clone()
    diagnose(net, X, Y, draws=1)
    assert torch.equal(state, torch.get_rng_state()) and torch.equal(x, X)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), before.state_dict().values(), strict=True))
    assert [p.requires_grad for p in net.parameters()] == [p.requires_grad for p in before.parameters()]
    assert all(p.grad is None for p in net.parameters()) and not hasattr(net, "_hardy")
    assert not any(m._forward_hooks or m._forward_pre_hooks or m.training for m in net.modules())


def test_a_part_that_lacks_masks_is_left_out_of_all_and_refused_by_name(
    net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def fake(name: str) -> None:
        def measure(case: Case) -> Part:
            asked.append(name)
            return Part(name=name, question="?")

        monkeypatch.setitem(PARTS, name, measure)

    for name in ("channels", "predictions", "background", "criticality"):
        fake(name)
    for name in set(PARTS) - {"channels", "predictions", "background", "criticality"}:
        monkeypatch.delitem(PARTS, name)
    found = diagnose(net, X, Y, parts="all")
    assert "background" not in asked and {"channels", "predictions", "criticality"} <= set(asked)
    assert any("background" in note for note in found.notes)
    with pytest.raises(ParameterError, match="background needs masks"):
        diagnose(net, X, Y, parts=["background"])
    asked.clear()
    diagnose(net, X, Y, parts=["background"], masks=torch.ones(24, 8, 8, dtype=torch.bool))
    assert asked == ["background"]


def test_a_part_that_cannot_work_on_this_net_is_noted_in_all_and_an_error_by_name(
    net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Case) -> Part:
        raise AttachError("too lazy: its layers must have weights.")

    for name in set(PARTS) - set(DEFAULT):
        monkeypatch.delitem(PARTS, name)
    monkeypatch.setitem(PARTS, "criticality", refuse)
    found = diagnose(net, X, Y, parts="all")
    assert [part.name for part in found.parts] == list(DEFAULT)
    assert found.notes == ("Not measured: criticality. too lazy: its layers must have weights.",)
    with pytest.raises(AttachError, match="too lazy"):
        diagnose(net, X, Y, parts=["predictions", "criticality"])


def test_what_a_part_draws_depends_on_no_other_part_and_leaves_no_trace(
    net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[float] = []

    def draw(name: str) -> None:
        def measure(_: Case) -> Part:
            drawn.append(float(torch.rand(())))
            return Part(name=name, question="?")

        monkeypatch.setitem(PARTS, name, measure)

    draw("isolation"), draw("attention")
    state = torch.get_rng_state()
    diagnose(net, X, Y, parts=["isolation", "attention"])
    diagnose(net, X, Y, parts=["attention"])
    assert drawn[0] == drawn[1] == drawn[2] and torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"parts": ["chanels"]}, ParameterError, "did you mean 'channels'"),
        ({"parts": []}, ParameterError, "at least one"),
        ({"layers": ["c"]}, LayerNotFoundError, "'c'"),
        ({"layers": []}, ParameterError, "at least one layer|some that"),
        ({"class_names": ("a",)}, ParameterError, "all 3 outputs"),
        ({"top": 0}, ParameterError, "top"),
        ({"draws": -1}, ParameterError, "draws"),
        ({"sigma": -1.0}, ParameterError, "sigma"),
        ({"batch_size": 0}, ParameterError, "batch_size"),
        ({"x": X * 255}, DataError, "divide by 255"),
        ({"y": Y + 1}, DataError, "labels"),
        ({"y": None}, ParameterError, "tensors x and y"),
        ({"masks": torch.ones(24, 4, 4, dtype=torch.bool)}, ShapeError, "masks"),
        ({"masks": torch.zeros(24, 8, 8, dtype=torch.bool)}, DataError, "masks"),
        ({"map_y": Y}, ParameterError, "map_x"),
        ({"map_x": X[:, :, :4], "map_y": Y}, ShapeError, "map_x"),
        ({"map_x": X * 2, "map_y": Y}, DataError, r"\(map_x\)"),
        ({"map_x": X, "map_y": Y + 1}, DataError, r"\(map_y\)"),
        ({"rows": torch.arange(3)}, HardyError, "rows"),
    ],
)
def test_bad_input_is_refused_before_anything_is_computed(
    net: nn.Module, monkeypatch: pytest.MonkeyPatch, change: dict[str, object], error: type[Exception], words: str
) -> None:
    for name in PARTS:
        monkeypatch.setitem(PARTS, name, lambda _: pytest.fail("computed"))
    if "rows" in change or isinstance(change.get("masks"), Tensor):
        error = (error, Exception)  # type: ignore[assignment]  # in tests shapes are checked at the call too
        words = f"{words}|Type"
    with pytest.raises(error, match=words):
        diagnose(**({"model": net, "x": X, "y": Y} | change))


def test_train_mode_is_refused_and_not_flipped(net: nn.Module) -> None:
    net.train()
    with pytest.raises(ParameterError, match=r"eval\(\)"):
        diagnose(net, X, Y)
    assert net.training


def test_a_wrapped_net_is_refused(net: nn.Module) -> None:
    with pytest.raises(AttachError, match="DataParallel"):
        diagnose(nn.DataParallel(net).eval(), X, Y)


def test_a_net_that_returns_no_logits_is_refused() -> None:
    with pytest.raises(ShapeError, match="logits"):
        diagnose(nn.Sequential(nn.Conv2d(3, 2, 3)).eval(), X, Y)


def test_a_net_that_answers_at_random_is_noted(net: nn.Module) -> None:
    class Random(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) + torch.randn(len(x), 3)

    found = diagnose(Random().eval(), X, Y)
    assert any("at random" in note for note in found.notes)
    alone = diagnose(Random().eval(), X, Y, parts=["predictions"])
    assert torch.equal(alone.part("predictions").tensors["confidence"], found.part("predictions").tensors["confidence"])
    assert not diagnose(net, X, Y).notes
