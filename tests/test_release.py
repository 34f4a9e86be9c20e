"""What a release needs: one version everywhere, and a README that also works as the package's page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from test_imports import MAY_IMPORT

import apt_bench

ROOT = Path(__file__).parents[1]
URL = "https://github.com/apt-bench/apt-bench"
README = (ROOT / "README.md").read_text()
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
LINK = re.compile(r"!?\[[^\]]+\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)$", re.M)
"""Inline links and images, and the definitions of links by reference."""


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == apt_bench.__version__
    assert f"## [{apt_bench.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    assert f"version = {{{apt_bench.__version__}}}" in README


def test_every_link_of_the_readme_is_absolute_and_leads_somewhere():
    targets = [inline or reference for inline, reference in LINK.findall(README)]
    assert len(targets) > 15
    for target in targets:
        assert target.startswith("https://"), target
        ours = re.match(
            rf"{URL}/blob/main/([^#]+)|https://raw\.githubusercontent\.com/apt-bench/apt-bench/main/(.+)",
            target,
        )
        if ours:
            assert (ROOT / (ours[1] or ours[2])).is_file(), target


def test_every_reference_of_the_readme_is_defined():
    used = {name.lower() for name in re.findall(r"\]\[([^\]]+)\]", README)}
    assert used == set(re.findall(r"^\[([^\]]+)\]: ", README, re.M))


def listed_in_the_readme() -> list[tuple[str, str]]:
    """(title, address) of every page in the README's list, in its order."""
    address = dict(re.findall(r"^\[([^\]]+)\]: (\S+)$", README, re.M))
    section = README[README.index("## Documentation") : README.index("## Citation")]
    return [
        (title, address[name]) for title, name in re.findall(r"^- \[([^\]]+)\]\[([^\]]+)\]: ", section, re.M)
    ]


def test_the_readme_lists_every_page_of_the_docs_once():
    pages = {page.relative_to(ROOT).as_posix() for page in PAGES if page.is_relative_to(DOCS)} - {
        "docs/index.md"
    }
    listed = [address.removeprefix(f"{URL}/blob/main/") for _, address in listed_in_the_readme()]
    assert sorted(a for a in listed if a.startswith("docs/")) == sorted(pages)


def test_the_navigation_of_the_site_is_the_list_of_the_readme():
    home, *sections = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert home == {"Home": "index.md"}
    pages = [page for section in sections for pages in section.values() for page in pages]
    site = [(title, target) for page in pages for title, target in page.items()]
    assert site == [
        (title, address.removeprefix(f"{URL}/blob/main/docs/")) for title, address in listed_in_the_readme()
    ]


def test_the_index_of_the_docs_leads_to_every_page():
    linked = set(re.findall(r"\]\(([^)#]+)", (DOCS / "index.md").read_text()))
    assert {page.name for page in DOCS.glob("*.md")} - {"index.md"} <= linked


def test_the_architecture_page_has_the_table_of_imports():
    rows = re.findall(
        r"^\| \[`(\w+)`\]\(\S+\) \|[^|]+\| ([^|]+) \|$", (DOCS / "architecture.md").read_text(), re.M
    )
    table = {
        package: set() if names == "nothing of apt-bench" else set(names.split(", "))
        for package, names in rows
    }
    assert table == {package: set(names.split()) for package, names in MAY_IMPORT.items()}


def test_the_architecture_page_names_what_its_files_define():
    page = (DOCS / "architecture.md").read_text()
    named = re.findall(r"`([\w.]+)` in\s+\[`[^`]+`\]\(\.\./([^)]+)\)", page)
    assert len(named) >= 12
    for name, path in named:
        last = re.escape(name.split(".")[-1])
        assert re.search(rf"^\s*((def|class) {last}\b|{last}( =|:))", (ROOT / path).read_text(), re.M), (
            name,
            path,
        )


def test_files_that_the_pages_name_exist():
    place = r"(?:apt_bench|baselines|benchmarks|docs|scripts|suites|tests)"
    for page in PAGES:
        for path in re.findall(rf"`({place}/[\w./-]+\.\w+)`", page.read_text()):
            there = (ROOT / path).exists() or (ROOT / "apt_bench" / path).exists()
            assert there or "NAME" in path, f"{page.name}: {path}"


def prose(page: Path) -> Iterator[tuple[int, str]]:
    """Number and text of the lines of a page outside code blocks, tables and definitions of links."""
    code = False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.lstrip().startswith("```"):
            code = not code
        elif not (code or line.startswith(("    ", "|", "[")) or re.fullmatch(r"\s*!\[.*", line)):
            yield number, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_prose_is_wrapped_at_100_characters(page: Path):
    assert [number for number, line in prose(page) if len(LINK.sub("", line)) > 100] == []


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_relative_links_of_the_other_pages_lead_somewhere():
    for page in PAGES:
        for target in (inline or reference for inline, reference in LINK.findall(page.read_text())):
            if not re.match(r"https?:|mailto:", target):
                path, _, anchor = target.partition("#")
                other = page.parent / path if path else page
                assert other.exists(), f"{page.name}: {target}"
                assert not anchor or anchor in anchors(other), f"{page.name}: {target}"


def test_the_torch_of_the_readme_is_the_one_of_continuous_integration():
    (pinned,) = re.findall(r"^torch==\S+$", (ROOT / "constraints.txt").read_text(), re.M)
    assert set(re.findall(r"torch==\S+", README)) == {pinned}
