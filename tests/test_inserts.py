"""How the passes of several methods add up."""

from hardy.inserts import Insert, Passes, passes_per_image


class Held(Insert):
    def __init__(self, passes: Passes) -> None:
        super().__init__(None, seed=0)
        self.told = passes

    @property
    def passes(self) -> Passes:
        return self.told


def test_rounds_repeat_what_trains_and_not_what_searches() -> None:
    search, further = Held(Passes(search_forward=11, search_backward=10)), Held(Passes(forward=2, backward=1))
    twice, thrice = Held(Passes(rounds=2)), Held(Passes(rounds=3))
    assert passes_per_image([]) == passes_per_image([Insert(None, seed=0)]) == (1, 1)
    assert passes_per_image([search]) == (12, 11)
    assert passes_per_image([further, search, twice]) == passes_per_image([twice, further, search]) == (17, 14)
    assert passes_per_image([further, twice, thrice]) == (18, 12)
