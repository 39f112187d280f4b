"""The code in the documentation runs: all Python blocks of a page, one after the other."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    scope = {"__name__": page.stem}
    for block in blocks:
        exec(compile(block, str(page), "exec"), scope)


def test_links_lead_somewhere():
    for page in [*PAGES, *ROOT.glob("*.md"), ROOT / "fastlnl/methods/README.md"]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
