"""Animated GIF files of drawn frames: few exact colours beside a photograph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from plopcli.files.atomic import write_atomic

FRAME_MS = 1200
LAST_FRAME_MS = 2600

_COLOURS = 256
_KEPT = 96
_CHUNK = 8192


def write_gif(frames: Sequence[Image.Image], path: Path) -> None:
    """Writes RGB frames of one size as a GIF that loops for ever, with a pause on the last frame.

    All frames share 256 colours: the most frequent ones (classes, paper) are kept exactly, the others are fitted to the
    photograph. There is no dithering, so that what does not move does not flicker.
    """
    packed = [_packed(frame) for frame in frames]
    present, counts = np.unique(np.concatenate([numbers.ravel() for numbers in packed]), return_counts=True)
    colours = _shared_colours(present, counts)
    index = _nearest(present, colours)
    table = _channels(colours).astype(np.uint8).tobytes()
    pictures = []
    for numbers in packed:
        picture = Image.fromarray(index[np.searchsorted(present, numbers)])
        picture.putpalette(table)
        pictures.append(picture)
    durations = [*[FRAME_MS] * (len(frames) - 1), LAST_FRAME_MS]
    more = {"save_all": True, "append_images": pictures[1:], "duration": durations, "loop": 0, "optimize": False}
    write_atomic(path, lambda file: pictures[0].save(file, "GIF", **more), durable=False)


def _packed(frame: Image.Image) -> NDArray[np.int64]:
    """Each pixel (H, W) as one number, red first."""
    pixels = np.asarray(frame).astype(np.int64)
    packed: NDArray[np.int64] = pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]
    return packed


def _channels(packed: NDArray[np.int64]) -> NDArray[np.int64]:
    """Red, green and blue (n, 3) of packed colours (n,)."""
    return np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=-1)


def _shared_colours(present: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """At most 256 colours for all frames: the most frequent ones exactly, then colours fitted to the rest."""
    if len(present) <= _COLOURS:
        return present
    often = np.argsort(-counts, kind="stable")
    kept, rest = present[often[:_KEPT]], present[often[_KEPT:]]
    # One pixel for each that the frames have would cost much and change little.
    pixels = _channels(rest).astype(np.uint8)
    weights = np.minimum(counts[often[_KEPT:]], 8)
    line = Image.fromarray(np.repeat(pixels, weights, axis=0)[None])
    table = line.quantize(_COLOURS - _KEPT, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).getpalette() or []
    chosen = np.array(table, dtype=np.int64).reshape(-1, 3)[: _COLOURS - _KEPT]
    return np.unique(np.concatenate([kept, chosen[:, 0] << 16 | chosen[:, 1] << 8 | chosen[:, 2]]))


def _nearest(present: NDArray[np.int64], colours: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Position in ``colours`` of the nearest colour to each of ``present``."""
    table = _channels(colours).astype(np.float32)
    lengths = np.square(table).sum(axis=1)
    chunks = [present[start : start + _CHUNK] for start in range(0, len(present), _CHUNK)]
    # |a - b|^2 without |a|^2, which does not depend on b; exact in float32, since all are whole numbers below 2^24.
    positions = [(lengths - 2 * _channels(chunk).astype(np.float32) @ table.T).argmin(axis=1) for chunk in chunks]
    return np.concatenate(positions).astype(np.uint8)
