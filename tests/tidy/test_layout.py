"""The house itself: links, exports, documents that name files."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path for top in ("fs", "plugins") for path in (ROOT / top).rglob("*.py") if "/pb/" not in str(path)
)


def test_what_tests_need_of_the_crate_is_built_outside_of_their_time_limit() -> None:
    needs = re.compile(r"^from (?:power_disk|power_store|\.fakes) import", re.MULTILINE)
    texts = {path: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    users = {path for path, text in texts.items() if needs.search(text)}
    assert len(users) >= 5
    assert [path for path in users if "pytest.mark.crate(" not in texts[path]] == []


def test_the_two_links_lead_home() -> None:
    assert (ROOT / "src" / "luciola").resolve() == ROOT / "fs"
    assert (ROOT / "fs" / "plugins").resolve() == ROOT / "plugins"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_have_a_docstring_and_export_a_name_once(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "a module docstring says its idea"
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(each) for each in node.targets] == ["__all__"]:
            names = ast.literal_eval(node.value)
            assert len(names) == len(set(names))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_inside_the_package_are_relative(path: Path) -> None:
    if path.is_relative_to(ROOT / "plugins") or path.name == "__init__.py":
        return
    tree = ast.parse(path.read_text())
    absolute = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        and node.level == 0
        and (node.module or "").split(".")[0] == "luciola"
    ]
    assert absolute == []


def test_importing_luciola_brings_neither_torch_nor_a_service() -> None:
    code = "import sys, luciola, luciola.errors, luciola.config; print(' '.join(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = {"torch", "triton", "grpc", "rocksdict", "luciola_core", "luciola.meta", "luciola.storage"}
    assert heavy & set(loaded) == set()


def test_another_name_is_refused() -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import fs"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "this package is 'luciola'" in result.stderr


PAGES = sorted(
    [
        *(ROOT / "docs").rglob("*.md"),
        *ROOT.glob("*.md"),
        *ROOT.glob("*/README.md"),
        *ROOT.glob("tests/*/README.md"),
    ]
)


def test_documents_name_files_that_exist() -> None:
    pattern = re.compile(r"`((?:fs|core|docs|tests|benchmarks|examples|proto|plugins|deploy)/[\w./-]+)`")
    missing = [
        f"{document.relative_to(ROOT)}: {name}"
        for document in PAGES
        if document.name != "CHANGELOG.md"  # of files that were there
        for name in pattern.findall(document.read_text())
        if not (ROOT / name).exists()
    ]
    assert missing == []


def _links(page: Path) -> set[Path]:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", page.read_text())
    return {(page.parent / target).resolve() for target in targets}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert [str(target) for target in sorted(_links(page)) if not target.exists()] == []


def test_the_index_leads_to_every_page() -> None:
    index = ROOT / "docs" / "index.md"
    linked = _links(index)
    pages = {page for page in (ROOT / "docs").rglob("*.md") if page.parent not in linked} - {index}
    assert sorted(map(str, pages - linked)) == []


def test_the_guides_of_folders_name_what_is_there() -> None:
    examples = (ROOT / "examples" / "README.md").read_text()
    assert [path.name for path in (ROOT / "examples").glob("*.py") if f"`{path.name}`" not in examples] == []
    tests = (ROOT / "tests" / "README.md").read_text()
    suites = [
        path for path in (ROOT / "tests").iterdir() if path.is_dir() and not path.name.startswith(("_", "."))
    ]
    assert [path.name for path in suites if f"| `{path.name}` |" not in tests] == []


def test_configurations_on_pages_load() -> None:
    from luciola import config

    shown = [
        block
        for page in PAGES
        for block in re.findall(r"^```toml\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    ]
    assert shown
    for block in shown:
        config.loads(block)


def test_locks_of_the_core_may_be_met_after_a_fork() -> None:
    """Those of parking_lot wait in a table that a forked child inherits; see core/src/lock.rs."""
    found = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "core" / "src").rglob("*.rs"))
        if "parking_lot::" in path.read_text()
    ]
    assert found == []
