"""The contract: every attack in the table obeys it, and no attack file escapes the table."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hardy.attacks
from hardy.attacks import APGD, ATTACKS, CARDS, CW, FAB, FMN, SPSA, VMIFGSM, Attack, HopSkipJump, Square, attack
from hardy.attacks.norms import norm_of
from hardy.attacks.state import AnyAttack
from hardy.config import build
from hardy.threats import Threat

FOLDER = Path(hardy.attacks.__file__).parent
CHEAP: dict[str, AnyAttack] = {  # with budgets for a test of the contract
    "apgd": APGD(steps=10),
    "fab": FAB(steps=6, restarts=3),
    "square": Square(queries=20),
    "cw": CW(steps=10, searches=2),
    "fmn": FMN(steps=10),
    "spsa": SPSA(steps=3, samples=4),
    "hop_skip_jump": HopSkipJump(queries=100),
    "vmi_fgsm": VMIFGSM(steps=3, neighbors=3),
}


def cheap(name: str) -> AnyAttack:
    return CHEAP.get(name) or ATTACKS[name]()


def test_tables_list_every_file_with_a_card() -> None:
    files = sorted(p.stem for p in FOLDER.glob("*.py") if "CARD = Card(" in p.read_text())
    assert sorted(ATTACKS) == sorted(CARDS) == files


@pytest.mark.parametrize("name", ATTACKS)
def test_has_card_test_and_defaults(name: str) -> None:
    made = ATTACKS[name]()
    assert isinstance(made, Attack) and made.name == CARDS[name].name == name
    assert CARDS[name].url.startswith("https://")
    assert (Path(__file__).parent / f"test_{name}.py").exists()
    assert made == ATTACKS[name]() == build(type(made), {})


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("stop", ["first_success", "min_norm", "never"])
def test_stays_inside_and_repeats(net: nn.Module, x: Tensor, y: Tensor, name: str, stop: str) -> None:
    for norm in ATTACKS[name]().norms:
        threat = Threat(norm, 0.1)
        a, b = (attack(net, x, y, cheap(name), threat=threat, stop=stop) for _ in range(2))  # type: ignore[arg-type]
        assert torch.equal(a.x_adv, b.x_adv) and a.passes == b.passes
        assert (norm_of(a.x_adv - x, norm=norm) <= 0.1 + 1e-6).all()
        assert a.x_adv.min() >= 0 and a.x_adv.max() <= 1 and not a.x_adv.requires_grad


@pytest.mark.parametrize("name", ATTACKS)
def test_targets_are_hit_or_it_is_no_success(net: nn.Module, x: Tensor, y: Tensor, name: str) -> None:
    targets = (y + 3) % 5
    norm = ATTACKS[name]().norms[0]
    threat = Threat(norm, {"linf": 0.15, "l2": 1.0, "l1": 5.0}[norm])
    found = attack(net, x, y, cheap(name), threat=threat, targets=targets)
    with torch.no_grad():
        assert torch.equal(found.success, net(found.x_adv).argmax(dim=1) == targets)
    assert not found.success.all()
    assert (found.margin < 0).equal(found.success)
