"""Which numbers of a grid answer the same question: others are neither averaged nor compared with them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from hardy.reporting.compare import Topic
from hardy.reporting.refusals import refusal
from hardy.reporting.runs import Run

__all__ = ["Place", "odd_ones"]

Place = tuple[str, str, int]  # arm, net, seed


def odd_ones(runs: Mapping[Place, Run], columns: Iterable[Topic], baseline: str) -> dict[tuple[Place, str], str]:
    """Find the numbers of a column that answer another question than most on their net do.

    Most are the largest group in which any two can be compared; of equal groups that with the first net of the
    baseline. So whatever is averaged or paired was asked the same, pair by pair.

    Returns:
        Why not, in words, by place and axis.
    """
    found = {}
    for net in dict.fromkeys(place[1] for place in runs):
        places = sorted((p for p in runs if p[1] == net), key=lambda p: p[0] != baseline)
        for topic in columns:
            groups = _groups({place: runs[place] for place in places}, topic)
            for group in groups[1:]:
                for place in group:
                    why = next(filter(None, (_apart(runs[most], runs[place], topic) for most in groups[0])), "")
                    found[place, topic.axis] = why.replace("the baseline has", "the others have").replace(
                        "the baseline", "one of them"
                    )
    return found


def _apart(base: Run, run: Run, topic: Topic) -> str:
    """Say why the numbers of two nets answer different questions; empty where they do not. Checks do not enter."""
    before, after = topic.select(base.result), topic.select(run.result)
    if before is None or after is None:
        return ""  # nothing is averaged or compared there
    return refusal(replace(base.result, checks=()), replace(run.result, checks=()), topic.axis, before, after)


def _groups(runs: Mapping[Place, Run], topic: Topic) -> Sequence[Sequence[Place]]:
    """Group those of which any two can be compared, the largest group first."""
    groups: list[list[Place]] = []
    for place, run in runs.items():
        if topic.select(run.result) is not None:
            home = next((group for group in groups if not any(_apart(runs[p], run, topic) for p in group)), None)
            if home is None:
                groups.append([place])
            else:
                home.append(place)
    return sorted(groups, key=lambda group: -len(group))
