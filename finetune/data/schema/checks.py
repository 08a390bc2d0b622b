"""What must hold between the splits of a data set before anything is trained on it."""

from __future__ import annotations

import numpy as np

from finetune.data.schema.labels import LabelSpace
from finetune.data.task_data import Split
from finetune.errors import DataError, shown

FEWEST_ROWS = 6  # two in each of three splits


def check_row_count(splits: dict[str, Split]) -> None:
    """Raises DataError when a split has to be made and there are too few rows to make it from."""
    rows = len(splits["train"])
    if rows < FEWEST_ROWS and not {"validation", "test"} <= splits.keys():
        raise DataError(f"there {'is 1 usable row' if rows == 1 else f'are {rows} usable rows'} to make splits from; "
                        f"at least {FEWEST_ROWS} are needed")


def check_labels(splits: dict[str, Split], space: LabelSpace) -> list[str]:
    """Notes on labels. Raises DataError where train has nothing to learn, or evaluation a class that train lacks."""
    if space.task == "regression":
        return _check_targets(splits["train"].labels)
    if space.task == "multilabel":
        return _never_in_train(splits, space)
    return _check_classes(splits, space)


def _check_targets(targets: np.ndarray) -> list[str]:
    if (targets == targets[0]).all():
        raise DataError(f"every training target is {float(targets[0]):g}; there is nothing to predict")
    return []


def _check_classes(splits: dict[str, Split], space: LabelSpace) -> list[str]:
    assert space.names is not None
    known = set(splits["train"].labels.tolist())
    if len(known) < 2:
        raise DataError(f"the training split has one class only ({shown(space.names[min(known)])}); two are needed")
    for name in ("validation", "test"):
        unknown = sorted(set(splits[name].labels.tolist()) - known)
        if unknown:
            first = splits[name].ids[int((splits[name].labels == unknown[0]).argmax())]
            raise DataError(f"label {shown(space.names[unknown[0]])} occurs in {name} (row {first}) but never in train"
                            + (f", and so do {len(unknown) - 1} others" if len(unknown) > 1 else ""))
    return []


def _never_in_train(splits: dict[str, Split], space: LabelSpace) -> list[str]:
    """Unlike a class, a label that train lacks leaves the other labels of its rows useful: it is noted."""
    assert space.names is not None
    trained = splits["train"].labels.any(axis=0)
    if not trained.any():
        raise DataError("no row of the training split has a label; there is nothing to predict")
    asked = splits["validation"].labels.any(axis=0) | splits["test"].labels.any(axis=0)
    names = [shown(name) for name, lacks in zip(space.names, asked & ~trained, strict=True) if lacks]
    if not names:
        return []
    return [f"{len(names)} labels occur in validation or test but never in train: {', '.join(names[:6])}"]
