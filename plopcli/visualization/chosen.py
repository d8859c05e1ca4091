"""Class colours that a user has asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from plopcli.data.colours import IGNORED_NAME, read_palette
from plopcli.data.palettes import Palette, class_colours
from plopcli.errors import UsageError
from plopcli.runs.checkpoint import Checkpoint
from plopcli.runs.learned import data_set_of, learned_colours

DISTINCT = "distinct"
"""The palette whose colours are far apart, whatever the data set."""

_SHOWN = 5


def chosen_colours(checkpoint: Checkpoint, palette: str | None) -> Palette:
    """Colours (n, 3) of at least the learned classes, in learned order.

    Args:
        checkpoint: The trained model.
        palette: `DISTINCT`, or a palette of `read_palette`, whose colours go to classes of the same names. None: as
            `learned_colours` has them.

    Raises:
        DataError: There is no such palette.
        UsageError: It names none of the classes.
    """
    if palette is None:
        return learned_colours(checkpoint)
    if palette != DISTINCT:
        return _by_name(checkpoint.classes, palette)
    spec = data_set_of(checkpoint)
    if spec is not None and spec.domains:
        return class_colours(len(checkpoint.classes))
    # A class keeps the colour of its label, whatever the task.
    colours: Palette = class_colours(max(checkpoint.task.order) + 1)[list(checkpoint.task.order)]
    return colours


def _by_name(classes: Sequence[str], palette: str) -> Palette:
    """Colours that a palette has for these names; classes that it does not name get distinct ones."""
    named = {name.lower(): colour for colour, name in reversed(read_palette(palette).items())}
    named.pop(IGNORED_NAME, None)
    known = [label for label, name in enumerate(classes) if name.lower() in named]
    if not any(known):
        raise UsageError(
            f"Palette {palette} names no class of the model: it has {', '.join(list(named)[:_SHOWN])}.",
            f"The model's classes are {', '.join(classes[:_SHOWN])}; colours that are far apart: --palette {DISTINCT}",
        )
    if classes[0] == "background" and 0 not in known:
        named["background"] = (0, 0, 0)
        known.insert(0, 0)
    others = [label for label in range(len(classes)) if label not in set(known)]
    colours = np.empty((len(classes), 3), dtype=np.uint8)
    colours[known] = [named[classes[label].lower()] for label in known]
    colours[others] = class_colours(len(classes), colours[known])[len(known) :]
    return colours
