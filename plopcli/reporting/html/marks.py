"""Pieces of HTML. Whatever comes from a file or a user goes through `escape`."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence


def escape(text: object) -> str:
    """Text that a browser shows as it is, in an attribute too."""
    return html.escape(str(text), quote=True)


def tag(name: str, /, *content: str, **attributes: object) -> str:
    """An element; ``content`` is HTML, attributes are text. ``class_`` is written `class`, ``_`` in names ``-``."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{written}>{''.join(content)}</{name}>"


def void(name: str, /, **attributes: object) -> str:
    """An element without content."""
    return tag(name, **attributes).removesuffix(f"></{name}>") + "/>"


def card(title: str, *content: str, note: str = "", wide: bool = False) -> str:
    """A titled part of the page; ``title`` and ``note`` are text."""
    parts = [tag("h4", escape(title)), *content]
    if note:
        parts.append(tag("p", escape(note), class_="note"))
    return tag("section", *parts, class_="card wide" if wide else "card")


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, class_: str = "figures") -> str:
    """A table of text columns and numbers; the cells of ``rows`` are HTML, the first of each names it."""
    header = tag("tr", *(tag("th", escape(name), scope="col") for name in head))
    lines = [tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:])) for row in rows]
    return tag("div", tag("table", tag("thead", header), tag("tbody", *lines), class_=class_), class_="scroll")


def picture(content: bytes, kind: str, text: str, **attributes: object) -> str:
    """A picture inside the page; ``text`` says what it shows."""
    data = base64.b64encode(content).decode("ascii")
    return void("img", src=f"data:image/{kind};base64,{data}", alt=text, **attributes)


def percent(value: float | None, digits: int = 1) -> str:
    """A figure in percent as shown; a dash for none."""
    return "–" if value is None else f"{value:.{digits}f}"
