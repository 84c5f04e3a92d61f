"""README.md and docs/performance.md show the figures of benchmarks/results, and no others."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

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


def test_ratios_to_an_earlier_version_are_those_within_a_round(tmp_path: Path) -> None:
    run = tmp_path / "run.json"
    run.write_text(
        json.dumps(
            {"before": "abc", "figures": {"luciola": {"w": [30, 10, 50]}, "before": {"w": [20, 20, 10]}}}
        )
    )
    assert tables.ratios_to_before(run) == ("abc", {"luciola": {"w": (1.5, 0.5, 5)}})


def test_jobs_in_turn_are_added_to_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    turns = importlib.import_module("turns")
    path = tmp_path / "turns.json"
    for order, ratios in (("first", [1.0, 0.9, 1.2]), ("second", [1.1]), ("first", [1.0, 3.0])):
        turns.record(path, order, "read 1M x1 direct", ratios)
    assert json.loads(path.read_text()) == {
        "ratios": {
            "first": {"read 1M x1 direct": [2.0, 1.0, 3.0]},
            "second": {"read 1M x1 direct": [1.1, 1.1, 1.1]},
        }
    }
