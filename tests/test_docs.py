"""The documentation: every Python block runs, every public module and picture has its place."""

import ast
import importlib.util
import inspect
import re
from pathlib import Path

import pytest
from tests.blocks import python_blocks, run_blocks
from tests.test_architecture import FLOORS
from tests.test_public_names import MODULES

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(page for page in DOCS.glob("*.md") if python_blocks(page))
CHINESE = sorted((DOCS / "zh").glob("*.md"))
# What the blocks of a page need beyond plait's own extras for tests.
NEEDS = {"save-export-serve.md": ["onnxruntime", "tensorflow"]}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_run(page, tmp_path, monkeypatch):
    for package in NEEDS.get(page.name, []):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{page.name} needs {package}")
    monkeypatch.chdir(tmp_path)
    assert run_blocks(page)


def test_output_that_a_page_does_not_print_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1)\n```\n\n```text\n2\n```\n")
    with pytest.raises(AssertionError):
        run_blocks(page)


def shown(text):
    """What a page shows in no language: code without comments, output, levels of headings."""
    fenced = re.findall(r"^```(\w+)\n(.*?)^```$", text, flags=re.M | re.S)
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    return {
        "blocks": [(kind, code_of(body) if kind == "python" else body) for kind, body in fenced],
        "headings": re.findall(r"^#+(?= )", prose, flags=re.M),
        "rows of tables": len(re.findall(r"^\|", prose, flags=re.M)),
    }


def code_of(block):
    """The code of a block without comments, in one style."""
    return ast.unparse(ast.parse(block))


@pytest.mark.parametrize("page", CHINESE, ids=lambda page: page.name)
def test_chinese_pages_show_what_the_english_ones_do(page):
    """The blocks of the English page are run; what equals them needs no second run."""
    english, chinese = (DOCS / page.name).read_text(), page.read_text()
    assert shown(chinese) == shown(english)
    assert f"](../{page.name})" in chinese
    assert f"](zh/{page.name})" in english


def test_chinese_blocks_that_differ_are_found():
    english = "# A\n\n```python\nx = 1  # one\n```\n"
    assert shown(english.replace("# one", "# 一")) == shown(english)
    assert shown(english.replace("x = 1", "x = 2")) != shown(english)


@pytest.mark.parametrize("module", MODULES)
def test_every_public_module_has_a_page_of_the_reference(module):
    page = DOCS / "api" / f"{module.removeprefix('plait.').split('.')[0]}.md"
    assert f"::: {module}" in page.read_text()


def test_every_result_that_is_linked_has_a_page():
    index = (DOCS.parent / "benchmarks" / "results" / "README.md").read_text()
    linked = re.findall(r"\]\(([\w./-]+)\)", index)
    assert {"cpu-2-cores.md", "scaling.svg"} <= set(linked)
    assert [name for name in linked if not (DOCS / "results" / name).exists()] == []


def test_every_picture_is_shown_and_drawn_by_the_script():
    script = ast.parse((DOCS / "pictures.py").read_text())
    drawn = next(
        {key.value for key in node.value.keys}
        for node in ast.walk(script)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PICTURES"
    )
    text = "".join(page.read_text() for page in DOCS.glob("*.md"))
    shown = set(re.findall(r"\(pictures/([\w-]+)\.svg\)", text))
    assert drawn <= shown
    assert all((DOCS / "pictures" / f"{name}.svg").exists() for name in shown)


def test_the_floors_are_those_of_the_architecture():
    rows = re.findall(r"^\| (\d) \| (.*?) \|", (DOCS / "inside.md").read_text(), flags=re.M)
    assert [set(re.findall(r"`(\w+)`", rooms)) for _, rooms in rows] == FLOORS


@pytest.mark.parametrize("module", [name for name in MODULES if name != "plait"])
def test_names_that_are_also_files_stand_in_the_reference(module):
    """Griffe takes such a name for the file, so that its page must ask for the object."""
    if module == "plait.interop":
        pytest.importorskip("keras_hub")
    loaded = importlib.import_module(module)
    page = (DOCS / "api" / f"{module.split('.')[1]}.md").read_text()
    for name in loaded.__all__:
        shadowed = importlib.util.find_spec(f"{module}.{name}") is not None
        if shadowed and not inspect.ismodule(getattr(loaded, name)):
            assert f"::: {module}.{name}.{name}\n" in page
