"""README.md and docs/performance.md show the figures of benchmarks/results, and no others."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
assert SPEC is not None
assert SPEC.loader is not None
tables = importlib.util.module_from_spec(SPEC)
sys.modules["tables"] = tables  # its dataclass looks itself up
SPEC.loader.exec_module(tables)


def test_pages_hold_the_tables_of_the_kept_records() -> None:
    assert [page.name for page in tables.PAGES if tables.written(page) != page.read_text()] == []


def test_every_table_is_on_a_page() -> None:
    shown = [name for page in tables.PAGES for _, name, *_ in tables.TABLE.findall(page.read_text())]
    assert sorted(shown) == sorted(tables.TABLES)


def test_figure_that_was_changed_by_hand_is_put_back(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    text = (ROOT / "README.md").read_text()
    page.write_text(text.replace("| 996 / 1,718 |", "| 1,996 / 1,718 |"))
    assert page.read_text() != text
    assert tables.written(page) == text


def test_medians_and_ratios_are_those_of_the_rounds(tmp_path: Path) -> None:
    run = tmp_path / "run.json"
    run.write_text('{"figures": {"luciola": {"w": [30, 10, 50]}, "juicefs": {"w": [10, 20, 10]}}}')
    record = tables.Record.load(run)
    assert record.medians == {"luciola": {"w": 30}, "juicefs": {"w": 10}}
    assert record.ratios == {"luciola": {"w": (0.5, 5.0)}}
