"""Which outputs of a model stand for the classes of the cue-conflict images of Geirhos et al. (ICLR 2019)."""

from collections.abc import Collection, Mapping, Sequence

from hardy.errors import DataError, did_you_mean

__all__ = ["CLASSES", "IMAGENET", "outputs_of"]

CLASSES = (
    *("airplane", "bear", "bicycle", "bird", "boat", "bottle", "car", "cat"),
    *("chair", "clock", "dog", "elephant", "keyboard", "knife", "oven", "truck"),
)
ALSO_CALLED = {"boat": ("ship",), "car": ("automobile",), "airplane": ("aeroplane",)}  # ship, automobile: CIFAR-10
# Outputs of a net for the 1,000 classes of ILSVRC 2012, in their usual order, that stand for each class: the lists
# "*_indices" in code/helper/human_categories.py of the authors' repository, commit 6468a0e
_DOGS = (*range(152, 269),)
_NO_DOGS = (192, 204, 227, 242, 251, 258, 260, 264)  # left out there
IMAGENET: Mapping[str, tuple[int, ...]] = {
    "airplane": (404,),
    "bear": (294, 295, 296, 297),
    "bicycle": (444, 671),
    "bird": (
        *(8, *range(10, 17), 18, 19, 20, 22, 23, 24, *range(80, 84), *range(87, 97), 98, 99, 100),
        *(*range(127, 134), *range(135, 146)),
    ),
    "boat": (472, 554, 625, 814, 914),
    "bottle": (440, 720, 737, 898, 899, 901, 907),
    "car": (436, 511, 817),
    "cat": (281, 282, 283, 284, 285, 286),
    "chair": (423, 559, 765, 857),
    "clock": (409, 530, 892),
    "dog": tuple(i for i in _DOGS if i not in _NO_DOGS),
    "elephant": (385, 386),
    "keyboard": (508, 878),
    "knife": (499,),
    "oven": (766,),
    "truck": (555, 569, 656, 675, 717, 734, 864, 867),
}
ILSVRC = 1000  # classes


def outputs_of(
    classes: Collection[str], class_names: Sequence[str], groups: Mapping[str, Sequence[int]] | None = None
) -> tuple[dict[str, tuple[int, ...]], str]:
    """Find the outputs that stand for each class of the images: ``groups``, the authors' lists, or equal names.

    Args:
        classes: Of the images.
        class_names: Of the model, in the order of its outputs; 1,000 are taken to be those of ILSVRC 2012.
        groups: Outputs by class; instead of names and lists.

    Returns:
        Outputs by class, in the order of ``classes``, without those that have none; and the same in words.

    Raises:
        DataError: fewer than two classes have outputs, or ``groups`` names others.
    """
    if groups is not None:
        found = _given(classes, len(class_names), groups)
        how = [f"{name}: {', '.join(class_names[i] for i in found[name])}" for name in found]
    elif len(class_names) == ILSVRC:
        found = {name: IMAGENET[name] for name in classes if name in IMAGENET}
        how = ["classes of ILSVRC 2012 by the lists of Geirhos et al."]
    else:
        plain = [name.strip().lower() for name in class_names]
        named = {c: [i for i, name in enumerate(plain) if name in (c, *ALSO_CALLED.get(c, ()))] for c in classes}
        found = {name: tuple(outputs) for name, outputs in named.items() if outputs}
        how = [f"{name}: {', '.join(class_names[i] for i in found[name])}" for name in found]
    without = [name for name in classes if name not in found]
    if len(found) < 2:
        raise DataError(
            f"cue_conflict: at least two classes of the images must be classes of the model; got {list(found)}, no "
            f'output for {", ".join(without)}. Say which outputs they are, as in groups={{"dog": [5], "cat": [3]}}.'
        )
    return found, "; ".join([*how, *([f"left out: {', '.join(without)}"] if without else [])])


def _given(
    classes: Collection[str], num_classes: int, groups: Mapping[str, Sequence[int]]
) -> dict[str, tuple[int, ...]]:
    """Check groups of the caller."""
    for name, outputs in groups.items():
        if name not in classes:
            raise DataError(f"cue_conflict: groups name {name!r}; {did_you_mean(name, classes)}")
        if not outputs or not all(0 <= i < num_classes for i in outputs):
            raise DataError(f"cue_conflict: groups[{name!r}] must be outputs in 0 .. {num_classes - 1}; got {outputs}.")
    return {name: tuple(groups[name]) for name in classes if name in groups}
