"""Are adversarial images isolated points: does a little noise inside the net bring them back?

Feng, Hu, Wu, Yu, Song, Song. "Model Doctor: a simple gradient aggregation strategy for diagnosing and treating CNN
classifiers". AAAI 2022, https://arxiv.org/abs/2112.04934: normal noise on the feature map of a layer brings most
adversarial images back to their true class at a standard deviation at which normal images stay right. The curve was
read off a picture of it; the attack behind it and the prose could not be read.

An image that comes back is no defence: an attacker who knows of the noise averages over it. And how easily it comes
back says something about the attack too: one that stops right behind the boundary makes images that any change brings
back. Here the attack uses up its steps; images of one that stops there are shown beside.
"""

from collections.abc import Sequence

from torch import Tensor

from hardy import surgery
from hardy.attacks import PGD, attack
from hardy.diagnosis.attacked import Attacked, attacked, of_all
from hardy.diagnosis.case import Case
from hardy.diagnosis.feature_noise import check_stds, feature_scale, noisy_predictions
from hardy.diagnosis.record import Finding, Part
from hardy.last_map import last_map
from hardy.records import Score
from hardy.stats import wilson
from hardy.topology import stages

__all__ = ["BACK", "NEAR_BACK", "NEAR_SAME", "NORMAL", "SAME", "STDS", "measure"]

STDS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # the range of the paper's curve
FEW = 20  # adversarial images below which nothing is said of them
KEPT = 0.9  # of the normal images must stay right where noise is called small; Hardy's own limit
NORMAL, BACK, SAME = "normal, still right", "adversarial, back to the true class", "adversarial, same wrong class"
NEAR_BACK, NEAR_SAME = f"{BACK}, first wrong answer", f"{SAME}, first wrong answer"
PARTS_OF_OWN = (0.25, 0.5, 1, 2, 4)  # of the feature map's own standard deviation


def measure(case: Case, *, stds: Sequence[float] | None = None, site: str | None = None) -> Part:
    """Draw the paper's curve on at most 512 images.

    Args:
        case: The case.
        stds: Standard deviations of the noise, in the units of the feature map as in the paper. None: 0 to 1 as in the
            paper, and where that range is short for this feature map, 1/4, 1/2, 1, 2 and 4 of its own standard
            deviation.
        site: Where; None: the output of the last convolution, or, where that is not among the layers of the case, of
            the last of those.

    Raises:
        ParameterError: a bad standard deviation.
        LayerNotFoundError: no such layer.
    """
    check_stds(STDS if stds is None else stds)
    where, note = _site(case) if site is None else (site, "")
    surgery.resolve(case.model, [where])
    made, passes = attacked(case)
    near, more = _first_wrong(case, made)
    own, moved = feature_scale(
        case.model, made.x, made.x_adv[made.fooled], made.x[made.fooled], site=where, batch_size=case.batch_size
    )
    levels = _levels(own) if stds is None else tuple(dict.fromkeys(float(std) for std in stds))
    normal, hit = int(made.right.sum()), int(made.fooled.sum())
    scores = _curves(case, made, near, where, levels)
    scores = [score for score in scores if score.n] + _scales(own, moved, len(made.x), hit)
    asked = normal * len(levels) + 2 * hit * (len(levels) + 1) + len(made.x) + 2 * hit
    return Part(
        name="isolation",
        question="Are adversarial images isolated points: does a little noise inside the net bring them back?",
        scores=tuple(scores),
        findings=(_finding(scores, made, own, case.num_classes),),
        level_name=f"standard deviation of the noise on {where}, in its own units",
        notes=(
            f"Noise on the output of {where}, whose own standard deviation is {own:.3g}.",
            *((f"{note}.",) if note else ()),
            f"Adversarial images: {hit} of {normal} that were right, by {made.attack}, the last point of its search.",
            "First wrong answer: the same attack on these images, stopped there. The attack behind the paper's curve "
            "is not known to Hardy.",
            "Normal images: those that are right without noise.",
            *of_all(case, made.index),
        ),
        passes={
            "forward": passes["forward"] + more["forward"] + asked,
            "backward": passes["backward"] + more["backward"],
        },
    )


def _site(case: Case) -> tuple[str, str]:
    """Choose the layer: the last convolution if it is among those of the case, else the last of those."""
    modules = {site.partition("#")[0] for site in case.layers}
    conv = stages(case.model, case.x[:1])[-1].convs[-1].name
    return last_map(case.model, case.x[:1]) if conv.partition("#")[0] in modules else (case.layers[-1], "")


def _levels(own: float) -> tuple[float, ...]:
    """Give the paper's range, and what the units of this feature map need beyond it."""
    further = {float(f"{part * own:.3g}") for part in PARTS_OF_OWN}
    least, most = min(std for std in STDS if std), max(STDS)
    return tuple(sorted({*STDS, *(std for std in further if 0 < std < least or std > most)}))


def _first_wrong(case: Case, made: Attacked) -> tuple[Tensor, dict[str, int]]:
    """Attack the images that were fooled once more, and stop at the first wrong answer."""
    if not made.fooled.any():
        return made.x[:0], {"forward": 0, "backward": 0}
    done = attack(
        case.model, made.x[made.fooled], made.y[made.fooled], PGD(), threat=case.threat, rows=made.rows[made.fooled],
        seed=case.seed, batch_size=case.batch_size, stop="first_success",
    )  # fmt: skip
    return done.x_adv, dict(done.passes)


def _curves(case: Case, made: Attacked, near: Tensor, site: str, stds: Sequence[float]) -> list[Score]:
    """Predict at every level of noise and count; ``near`` are those of the search that stops at once."""

    def ask(x: Tensor, chosen: Tensor, levels: Sequence[float]) -> Tensor:
        return noisy_predictions(
            case.model, x, site=site, stds=levels, rows=made.rows[chosen], seed=case.seed, batch_size=case.batch_size
        )

    normal, hit = made.right, made.fooled
    plain, y = ask(made.x[normal], normal, stds), made.y[hit]
    far, close = (ask(x, hit, (0.0, *stds)) for x in (made.x_adv[hit], near))
    answers = {
        NORMAL: plain == made.y[normal],
        BACK: far[1:] == y,
        SAME: far[1:] == far[0],
        NEAR_BACK: close[1:] == y,
        NEAR_SAME: close[1:] == close[0],
    }
    return [
        _score(series, int(answer.sum()), len(answer), std)
        for series, found in answers.items()
        for std, answer in zip(stds, found, strict=True)
    ]


def _score(series: str, count: int, n: int, std: float) -> Score:
    low, high = wilson(count, n) if n else (0.0, 1.0)
    return Score(
        label=f"{series}, std {std:g}", value=count / max(n, 1), kind="description", n=n, low=low, high=high, level=std,
        series=series,
    )  # fmt: skip


def _scales(own: float, moved: float, n: int, hit: int) -> list[Score]:
    unit = "in its own units"
    made = [Score(label="standard deviation of the feature map", value=own, kind="description", n=n, unit=unit)]
    if hit:
        label = "how far the attack moves the feature map (root mean square)"
        made.append(Score(label=label, value=moved, kind="description", n=hit, unit=unit))
    return made


def _finding(scores: Sequence[Score], made: Attacked, own: float, classes: int) -> Finding:
    """Say whether some small noise brings most adversarial images back."""
    hit, right = int(made.fooled.sum()), int(made.right.sum())
    if hit < FEW:
        text = f"{made.attack} found {hit} adversarial images of {right} that are right: too few to tell."
        return Finding(code="few_adversarial_images", severity="note", text=text, remedy="Give more images.")
    curves = {name: [s for s in scores if s.series == name and s.level] for name in (NORMAL, BACK)}
    pairs = list(zip(curves[NORMAL], curves[BACK], strict=True))
    small = [(n, b) for n, b in pairs if n.value >= KEPT]
    if not small:
        text = (
            f"Every noise that was tried takes more than {1 - KEPT:.0%} of the normal images away; the feature map "
            f"itself has a standard deviation of {own:.3g}."
        )
        return Finding(code="isolation_unknown", severity="note", text=text, remedy="Try smaller noise: stds=...")
    normal, back = max(small, key=lambda pair: (pair[1].value, pair[1].level or 0.0))
    near = next(s for s in scores if s.series == NEAR_BACK and s.level == back.level)
    return _verdict(normal, back, near, own, every=len(small) == len(pairs), classes=classes)


def _verdict(normal: Score, back: Score, near: Score, own: float, *, every: bool, classes: int) -> Finding:
    """Compare the best small noise with one half, by its interval."""
    std, low, high = back.level or 0.0, back.low or 0.0, 1.0 if back.high is None else back.high
    relative = f", {std / own:.2g} of the feature map's own standard deviation," if own > 0 else ""
    said = (
        f"noise of {std:g}{relative} brings {back.value:.0%} of {back.n} adversarial images back to their true class "
        f"({low:.0%} to {high:.0%}; chance {1 / classes:.0%}; of a search that stops at once {near.value:.0%}), "
        f"and {normal.value:.0%} of the normal images stay right"
    )
    if low >= 0.5:
        remedy = (
            "Train with noise in the features, as FPCC and dropout do, and see whether the pockets close. Noise at "
            "test time is no defence: an attack averages over it."
        )
        return Finding(code="isolated_adversarials", severity="note", text=f"Isolated points: {said}.", remedy=remedy)
    if every:
        text = f"Not decided: {said}; they stay right at every noise that was tried."
        return Finding(code="isolation_unknown", severity="note", text=text, remedy="Try larger noise: stds=...")
    if high < 0.5:
        text = f"Not isolated: at best {said}."
        return Finding(code="adversarials_not_isolated", severity="note", text=text)
    text = f"Not decided: {said}; whether that is half of them cannot be told from so few."
    return Finding(code="isolation_unclear", severity="note", text=text, remedy="Give more images.")
