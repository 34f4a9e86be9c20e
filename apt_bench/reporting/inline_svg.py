"""Puts matplotlib's SVG into a page: one `<svg>` per panel, so that panels wrap, in the page's own colours."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from xml.etree import ElementTree

from apt_bench.reporting.chart_style import INK, LINE, MUTED, Box

SCALE = 1.55
"""Pixels per point on the page."""

_COLOURS = {INK: "var(--ink)", MUTED: "var(--muted)", LINE: "var(--line)"}


def panels(svg: str, boxes: Sequence[Box], prefix: str) -> list[str]:
    """The legends and axes of a figure as `<svg>` elements that scale with the page.

    Args:
        svg: The text of a file that `chart_style.save` wrote.
        boxes: What it returned: where the legends and axes are.
        prefix: Begins every id, so that figures of one page share none.
    """
    root = ElementTree.fromstring(svg)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    used = set(re.findall(r'(?:href="|url\()#([\w-]+)', svg))
    drawn = root.find("g")
    groups = list(drawn) if drawn is not None else []
    shared = [part for part in root.findall("defs") if part.find("style") is None]
    found = []
    for group, box in zip(_ordered(groups), boxes, strict=True):
        for element in (e for part in (group, *shared) for e in part.iter()):
            _adapt(element, used, prefix)
        inside = "".join(ElementTree.tostring(e, encoding="unicode") for e in (*shared, group))
        shared = []  # the page has one copy of what all panels refer to
        view = " ".join(f"{x:.1f}" for x in box)
        found.append(
            f'<svg viewBox="{view}" style="width:{SCALE * box[2]:.0f}px" aria-hidden="true">{inside}</svg>'
        )
    return found


def _ordered(groups: Sequence[ElementTree.Element]) -> Iterator[ElementTree.Element]:
    for kind in ("legend_", "axes_"):
        yield from (g for g in groups if g.get("id", "").startswith(kind))


def _adapt(element: ElementTree.Element, used: set[str], prefix: str) -> None:
    for key, value in list(element.attrib.items()):
        del element.attrib[key]
        name = key.rpartition("}")[2]
        if name == "id":
            if value in used:
                element.set(name, f"{prefix}-{value}")
        elif name == "href":
            element.set(name, value.replace("#", f"#{prefix}-", 1))
        else:
            value = value.replace("url(#", f"url(#{prefix}-")
            for colour, variable in _COLOURS.items():
                value = value.replace(colour.lower(), variable)
            element.set(name, value)
