"""The documentation site's own parts (MkDocs calls the functions `on_...`; `scripts/docs.sh` runs the file afterwards).

Pages link to files of the repository by relative paths, which work on GitHub and in a checkout. On the site such a
link leads to GitHub. The site itself loads nothing from other hosts.
"""

from __future__ import annotations

import os
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

SOURCE = "https://github.com/apt-bench/apt-bench/blob/main/"
LINK = re.compile(r"(?<=\]\()(?:\.\./)+[^)\s#]+(?=[)#])|(?<=\]: )(?:\.\./)+[^\s#]+")
"""Targets that begin with `../`: of `[text](target)` and of `[name]: target`."""


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Replace links that leave `docs/` by links to GitHub."""
    folder = os.path.join("docs", os.path.dirname(page.file.src_uri))

    def to_github(link: re.Match[str]) -> str:
        target = os.path.normpath(os.path.join(folder, link[0]))
        return link[0] if target.startswith("docs/") else SOURCE + target

    return LINK.sub(to_github, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Drop the backslash of a bar in a table: GitHub needs it, and Python-Markdown prints it in code."""
    return re.sub(r"<td.*?</td>", lambda cell: cell[0].replace("\\|", "|"), html, flags=re.DOTALL)


class Loaded(HTMLParser):
    """What a page makes the browser load: addresses in `found`."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect the addresses of one tag."""
        values = dict(attrs)
        self.found += [values[a] or "" for a in ("src", "srcset", "poster") if a in values]
        if tag == "link" and values.get("rel") not in ("canonical", "next", "prev"):
            self.found.append(values.get("href") or "")


def foreign(site: Path) -> list[str]:
    """What the site loads from other hosts."""
    found = []
    for page in sorted(site.rglob("*.html")):
        loaded = Loaded()
        loaded.feed(page.read_text())
        found += [f"{page}: {a}" for a in loaded.found if re.match(r"(https?:)?//", a)]
    for sheet in sorted(site.rglob("*.css")):
        addresses = re.findall(r"""(?:url\(|@import)\s*["']?((?:https?:)?//[^"')\s]+)""", sheet.read_text())
        found += [f"{sheet}: {a}" for a in addresses]
    return found


if __name__ == "__main__":
    sys.exit(
        "\n".join(["The site loads from other hosts:", *found])
        if (found := foreign(Path(sys.argv[1])))
        else 0
    )
