"""Valid files, damaged at random by a seeded generator: in their bytes, or in what they say."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

_INTEGERS = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 62, (1 << 64) - 1)
_NUMBERS = (b"-1", b"0", b"1e400", b"nan", b"inf", b"99999999999999999999", b"255", b"0.5", b"-0", b"1_000", b"0x10")
#: What replaces a value in a structure.
_JUNK: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 3, 1 << 70, 0.5, -1.5, float("nan"), float("inf"), "", "x", "../../x", "\x00", "é"),
    *([], [0], ["x"], [[0, 1], [2]], [None], {}, {"x": 1}, {"": None}, "step", "15-1", [[]], {"miou": 1}),
)


def damaged(rng: random.Random, samples: Sequence[bytes], tokens: Sequence[bytes] = ()) -> bytes:
    """One of ``samples`` with one to four changes; ``tokens`` are words of the format."""
    content = bytearray(rng.choice(samples))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        _change(rng, content, samples, tokens)
    return bytes(content)


def _change(rng: random.Random, content: bytearray, samples: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    at = rng.randrange(len(content) + 1)
    length = min(rng.choice((1, 1, 2, 4, 8, 16, 64, 500)), len(content) - at)
    kind = rng.randrange(10)
    if kind == 0 and length:
        content[at] ^= 1 << rng.randrange(8)
    elif kind == 1 and length:
        content[at] = rng.randrange(256)
    elif kind == 2:
        del content[at : at + length]
    elif kind == 3:
        content[at:at] = content[at : at + length] * rng.choice((1, 2, 50))
    elif kind == 4:
        content[at:at] = rng.randbytes(rng.choice((1, 2, 8)))
    elif kind == 5:
        del content[at:]
    elif kind == 6:
        other = rng.choice(samples)
        start = rng.randrange(len(other) + 1)
        content[at : at + length] = other[start : start + rng.choice((4, 16, 200))]
    elif kind == 7:
        size = rng.choice((1, 2, 4, 8))
        number = rng.choice(_INTEGERS) & ((1 << 8 * size) - 1)
        content[at : at + size] = number.to_bytes(size, rng.choice(("little", "big")))
    elif kind == 8 and (numbers := list(re.finditer(rb"\d+", content))):
        match = rng.choice(numbers)
        content[match.start() : match.end()] = rng.choice(_NUMBERS)
    elif tokens:
        content[at : at + rng.choice((0, length))] = rng.choice(tokens)


def distorted(rng: random.Random, value: Any, junk: Sequence[Any] = _JUNK) -> Any:
    """A copy of a structure of dicts and lists in which something is replaced, gone, doubled or in another's place."""
    value = _copied(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(value))
        if not places:
            return rng.choice(junk)
        holder, key = rng.choice(places)
        kind = rng.randrange(6)
        if kind == 0:
            del holder[key]
        elif kind == 1:
            other, name = rng.choice(places)
            if name in other if isinstance(other, dict) else name < len(other):
                holder[key] = _copied(other[name])
        elif kind == 2 and isinstance(holder, dict):
            holder[rng.choice(("x", "step", "", "miou"))] = holder.pop(key)
        elif kind == 3 and isinstance(holder, list):
            holder.insert(key, _copied(holder[key]))
        else:
            holder[key] = _copied(rng.choice(junk))
    return value


def _places(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from _places(inner)


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_copied(inner) for inner in value]
    return value
