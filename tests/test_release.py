"""What a release needs: one version everywhere, and a README that also works as the package's page."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

import apt_bench

ROOT = Path(__file__).parents[1]
URL = "https://github.com/apt-bench/apt-bench"
README = (ROOT / "README.md").read_text()
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


def test_the_readme_lists_every_page_of_the_docs_once():
    listed = README[README.index("## Documentation") : README.index("## Citation")]
    for page in (ROOT / "docs").glob("*.md"):
        assert listed.count(f"][{page.stem}]: ") == 1, page.name


def test_relative_links_of_the_other_pages_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in (inline or reference for inline, reference in LINK.findall(page.read_text())):
            if not re.match(r"https?:|#|mailto:", target):
                assert (page.parent / target.partition("#")[0]).exists(), f"{page.name}: {target}"


def test_the_torch_of_the_readme_is_the_one_of_continuous_integration():
    (pinned,) = re.findall(r"^torch==\S+$", (ROOT / "constraints.txt").read_text(), re.M)
    assert set(re.findall(r"torch==\S+", README)) == {pinned}
