"""The contract: every attack in the table obeys it, and no attack file escapes the table."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hardy.attacks
from hardy.attacks import ATTACKS, CARDS, Attack, attack
from hardy.attacks.norms import norm_of
from hardy.config import build
from hardy.threats import Threat

FOLDER = Path(hardy.attacks.__file__).parent


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
        a, b = (attack(net, x, y, name, threat=threat, stop=stop) for _ in range(2))  # type: ignore[arg-type]
        assert torch.equal(a.x_adv, b.x_adv) and a.passes == b.passes
        assert (norm_of(a.x_adv - x, norm=norm) <= 0.1 + 1e-6).all()
        assert a.x_adv.min() >= 0 and a.x_adv.max() <= 1 and not a.x_adv.requires_grad


@pytest.mark.parametrize("name", ATTACKS)
def test_targets_are_hit_or_it_is_no_success(net: nn.Module, x: Tensor, y: Tensor, name: str) -> None:
    targets = (y + 3) % 5
    found = attack(net, x, y, name, threat=Threat("linf", 0.15), targets=targets)
    with torch.no_grad():
        assert torch.equal(found.success, net(found.x_adv).argmax(dim=1) == targets)
    assert not found.success.all()
    assert (found.margin < 0).equal(found.success)
