"""The colours of figures from 0 to 100: dark blue to yellow, ever lighter (after matplotlib's viridis)."""

from __future__ import annotations

_STOPS = ((68, 1, 84), (65, 68, 135), (42, 120, 142), (34, 168, 132), (122, 209, 81), (253, 231, 37))


def colour(value: float, top: float = 100.0) -> str:
    """The colour of a value between 0 and ``top``."""
    at = min(1.0, max(0.0, value / top)) * (len(_STOPS) - 1)
    lower = min(int(at), len(_STOPS) - 2)
    share = at - lower
    mixed = [round(a + share * (b - a)) for a, b in zip(_STOPS[lower], _STOPS[lower + 1], strict=True)]
    return "#{:02x}{:02x}{:02x}".format(*mixed)


def ink(value: float, top: float = 100.0) -> str:
    """Black or white, whichever is read better on `colour`."""
    return "#fff" if value < 0.55 * top else "#111"


def style(value: float, top: float = 100.0) -> str:
    """Both, as the style of a cell."""
    return f"background:{colour(value, top)};color:{ink(value, top)}"
