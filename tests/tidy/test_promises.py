"""docs/consistency.md names the tests that prove its promises: they exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = sorted(
    set(re.findall(r"`((?:core|tests)/[\w/.-]+)(?:: (\w+))?`", (ROOT / "docs/consistency.md").read_text()))
)


@pytest.mark.parametrize(("path", "name"), NAMED, ids=lambda value: value)
def test_named_test_exists(path: str, name: str) -> None:
    source = (ROOT / path).read_text()
    assert not name or re.search(rf"\b(def|fn) {name}\(", source), f"{path} has no test {name}"


def test_page_names_tests() -> None:
    assert len(NAMED) >= 30


def test_page_says_how_many_states_are_explored() -> None:
    record = (ROOT / "core/tests/states/record.txt").read_text().splitlines()
    states = sum(int(line.split(": ")[1].split()[0]) for line in record)
    assert f"{states:,} distinct states in {len(record)} worlds" in (ROOT / "docs/consistency.md").read_text()
