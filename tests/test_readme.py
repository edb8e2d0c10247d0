"""The README in both languages: its blocks run, and its links lead somewhere."""

import re
from pathlib import Path

import pytest
from tests.blocks import python_blocks, run_blocks

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "README.zh.md"]


def without_comments(code):
    """A block without what each language says in its own words."""
    return re.sub(r" *#.*", "", code)


@pytest.mark.parametrize("page", PAGES)
def test_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_blocks(ROOT / page)


def test_both_languages_show_the_same_code():
    english, chinese = (
        [without_comments(code) for code in python_blocks(ROOT / page)] for page in PAGES
    )
    assert english == chinese


def test_pages_link_only_to_files_that_exist():
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / page).read_text()):
            assert (ROOT / target).exists(), f"{page} links to {target}"
