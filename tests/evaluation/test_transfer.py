"""Transfer: from one net, from several at once, and from the net without what was inserted."""

import copy
import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import hardy
from hardy.attacks import APGD, FAB, MIFGSM, PGD, attack
from hardy.attacks.state import AnyAttack
from hardy.errors import ParameterError
from hardy.evaluation.adaptive import without_methods
from hardy.evaluation.budget import Budget
from hardy.evaluation.context import Context, Measured, NotMeasured, Source
from hardy.evaluation.fingerprint import weights_digest
from hardy.evaluation.transfer import measure
from hardy.methods import DefectiveConv, LocalFeatureMasking
from hardy.threats import Threat

THREAT = Threat("linf", 0.1)
QUICK = Budget(transfer_steps=4)
Train = Callable[[int], nn.Module]
Make = Callable[..., Context]


@pytest.fixture
def make(net: nn.Module, x: Tensor, y: Tensor) -> Make:
    def context(*sources: Source, model: nn.Module = net, **facts: object) -> Context:
        given: dict[str, object] = {"threat": THREAT, "budget": QUICK} | facts
        rows = torch.arange(len(x))
        plain = Context(
            model=model,
            x=x,
            y=y,
            rows=rows,
            predictions=y,
            num_classes=10,
            sources=sources,
            **given,  # type: ignore[arg-type]
        )
        return dataclasses.replace(plain, predictions=plain.predict(x))

    return context


@pytest.fixture
def masked(trained: Train, x: Tensor) -> nn.Module:
    net = copy.deepcopy(trained(0))
    hardy.attach(net, [DefectiveConv(sites=("0",), keep=0.8)], example=x[:2], seed=0)
    return net


def run(context: Context) -> Measured:
    got = measure(context)
    assert isinstance(got, Measured)
    return got


def test_one_net_and_several_are_points_of_their_own(make: Make, trained: Train) -> None:
    sources = [Source("a", trained(1), "independent"), Source("b", trained(2), "independent")]
    twins = [Source("s", trained(3), "gray-box"), Source("t", trained(4), "gray-box")]
    got = run(make(*sources, *twins, Source("base", trained(5), "base")))
    assert [(p.label, p.series, p.details["source"]) for p in got.axis.points] == [
        ("a", "independent", "a"),
        ("b", "independent", "b"),
        ("s", "gray-box", "s"),
        ("t", "gray-box", "t"),
        ("base", "base", "base"),
        ("ensemble of 2", "ensemble", "a + b"),
        ("gray-box ensemble of 2", "gray-box", "s + t"),
    ]
    assert got.axis.headline == "a" and set(got.outcomes) == {p.label for p in got.axis.points}
    assert [p.details.get("nets") for p in got.axis.points] == [None] * 5 + [2, 2]
    both = "+".join(weights_digest(source.model) for source in sources)
    assert got.axis.points[5].details["source_weights"] == both and got.axis.points[0].details["source_weights"] in both
    one_of_each = run(make(sources[0], twins[0]))
    assert [p.label for p in one_of_each.axis.points] == ["a", "s"]


def test_an_ensemble_is_searched_on_averaged_logits(
    make: Make, trained: Train, net: nn.Module, x: Tensor, y: Tensor
) -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.nets = nn.ModuleList([trained(1), trained(2)])

        def forward(self, x: Tensor) -> Tensor:
            return (self.nets[0](x) + self.nets[1](x)) / 2

    sources = [Source("a", trained(1), "independent"), Source("b", trained(2), "independent")]
    got = run(make(*sources))
    mean = Mean().eval()
    found = attack(net, x, y, PGD(steps=4), threat=THREAT, sources=[mean], stop="never")
    assert torch.equal(got.outcomes["ensemble of 2"], ~found.success)
    point = got.axis.points[2]
    right, plain, fooled = ((n(images).argmax(dim=1) == y) for n, images in ((net, x), (mean, x), (mean, found.x_adv)))
    assert point.details["conditional_n"] == int((right & plain & ~fooled).sum())
    attacked = int(right.sum())
    # of the net: 120 clean, one verification each; of two sources: the search, and all images before and after
    assert point.passes == {"forward": 120 + attacked + 2 * (4 * attacked + 240), "backward": 2 * 4 * attacked}
    assert int((got.outcomes["ensemble of 2"] != got.outcomes["a"]).sum()) > 3


def test_the_conditional_rate_is_that_of_a_loop_by_hand(make: Make, net: nn.Module, x: Tensor, y: Tensor) -> None:
    poor = copy.deepcopy(net)  # wrong on some plain images on which the net is right, and not always fooled
    torch.manual_seed(0)
    poor[0].weight.data += 0.2 * torch.randn_like(poor[0].weight)
    threat = Threat("linf", 0.06)
    point = run(make(Source("poor", poor, "independent"), threat=threat)).axis.points[0]
    x_adv = attack(net, x, y, PGD(steps=4), threat=threat, sources=[poor], stop="never").x_adv
    asked, kept, dropped = 0, 0, {"source": 0, "fooled": 0}
    for image, changed, label in zip(x, x_adv, y.tolist(), strict=True):
        before, before_source = (int(n(image[None]).argmax()) for n in (net, poor))
        after, after_source = (int(n(changed[None]).argmax()) for n in (net, poor))
        if before != label:
            continue
        dropped["source"] += before_source != label
        dropped["fooled"] += after_source == label
        if before_source == label and after_source != label:
            asked += 1
            kept += after == label
    assert min(*dropped.values(), asked, kept, asked - kept) > 0  # every clause of the definition matters
    assert point.details["conditional_n"] == asked
    assert point.details["conditional_accuracy"] == pytest.approx(kept / asked)
    assert point.details["filter"] == "this net and the source right before, and the image fools the source"


def test_a_source_that_nothing_fools_gives_no_conditional_rate(make: Make, y: Tensor) -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.eye(10)[3].expand(len(x), 10) + 0 * x.sum()

    details = run(make(Source("c", Constant().eval(), "independent"))).axis.points[0].details
    assert details["conditional_n"] == 0 and "conditional_accuracy" not in details


def test_the_net_without_its_live_methods_is_a_source_by_itself(
    make: Make, masked: nn.Module, trained: Train, x: Tensor, y: Tensor
) -> None:
    before = masked(x[:4])
    got = run(make(model=masked))
    assert [(p.label, p.series) for p in got.axis.points] == [("methods removed", "base")]
    assert got.axis.headline == "methods removed"
    twin = without_methods(masked)
    assert twin is not None and torch.equal(twin(x), trained(0)(x)) and not torch.equal(masked(x[:4]), twin(x[:4]))
    found = attack(masked, x, y, PGD(steps=4), threat=THREAT, sources=[trained(0)], stop="never")
    assert torch.equal(got.outcomes["methods removed"], ~found.success)
    assert torch.equal(masked(x[:4]), before) and not twin.training
    more = run(make(Source("a", trained(1), "independent"), model=masked))
    assert [p.label for p in more.axis.points] == ["a", "methods removed"] and more.axis.headline == "a"


def test_methods_are_taken_off_wherever_they_are(masked: nn.Module, trained: Train, x: Tensor) -> None:
    inside = nn.Sequential(nn.Identity(), masked).eval()
    wrapped = torch.compile(masked, backend="eager")
    for model in (inside, wrapped):
        twin = without_methods(model)
        assert twin is not None and torch.equal(twin(x[:5]), trained(0)(x[:5]))


def test_a_net_without_methods_has_no_such_twin(make: Make, trained: Train, x: Tensor) -> None:
    net = copy.deepcopy(trained(0))
    assert without_methods(net) is None
    hardy.attach(net, [LocalFeatureMasking()], example=x[:2], seed=0)  # for training only
    assert without_methods(net) is None
    got = measure(make(model=net))
    assert isinstance(got, NotMeasured) and got.reason == "no other net to make images on"


ATTACKS: dict[str, AnyAttack] = {
    "mi_fgsm": MIFGSM(steps=4),
    "apgd": APGD(steps=4),
    "fab": FAB(steps=4, restarts=1),  # one try: nine would be nine images for the model to choose from
}


@pytest.mark.parametrize("name", ATTACKS)
def test_the_attack_of_the_budget_searches(make: Make, trained: Train, name: str) -> None:
    budget = Budget(transfer_attack=name, transfer_steps=4)
    context = make(Source("a", trained(1), "independent"), budget=budget)
    got, source = run(context), [trained(1)]
    found = attack(context.model, context.x, context.y, ATTACKS[name], threat=THREAT, sources=source, stop="never")
    assert torch.equal(got.outcomes["a"], ~found.success)
    assert got.axis.points[0].details["attack"] == name and got.axis.points[0].details["steps"] == 4


def test_an_attack_that_does_not_know_the_norm_is_not_run(make: Make, trained: Train) -> None:
    source, budget = Source("a", trained(1), "independent"), Budget(transfer_attack="di_fgsm")
    got = measure(make(source, threat=Threat("l1", 4.0), budget=budget))
    assert isinstance(got, NotMeasured)
    assert got.reason == "di_fgsm is not defined for l1" and "transfer_attack" in got.remedy


@pytest.mark.parametrize("name", ["mi_fgs", "cw"])
def test_the_attack_must_be_one_for_linf(name: str) -> None:
    with pytest.raises(ParameterError, match=rf"transfer_attack must be an attack for linf; got '{name}'; (did|known)"):
        Budget(transfer_attack=name)


def test_several_budgets_make_several_points(make: Make, trained: Train) -> None:
    sources = [Source("a", trained(1), "independent"), Source("b", trained(2), "independent")]
    got = run(make(*sources, budget=Budget(transfer_steps=3, transfer_eps=(0.05, 0.1, 0.2))))
    accuracy = {p.label: p.accuracy for p in got.axis.points}
    assert list(accuracy) == [f"{name}{eps}" for eps in ("", ", linf 0.05", ", linf 0.2") for name in
                              ("a", "b", "ensemble of 2")]  # fmt: skip
    for name in ("a", "ensemble of 2"):
        assert accuracy[f"{name}, linf 0.2"] < accuracy[name] <= accuracy[f"{name}, linf 0.05"]
    forward = {p.label: p.passes["forward"] for p in got.axis.points}
    assert forward["a"] - forward["a, linf 0.2"] == 120  # the sources' plain predictions are made once
