"""The pages that follow a request through the code name functions that are in the files they name."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("how-a-write-flows.md", "how-a-name-is-made.md")
PLACE = re.compile(r"`([\w/.-]+\.(?:rs|py))`: ((?:`\w+`(?:, )?)+)")
NAMED = [
    (page, path, name)
    for page in PAGES
    for path, names in PLACE.findall((ROOT / "docs" / page).read_text())
    for name in re.findall(r"\w+", names)
]


def is_defined(name: str, source: str) -> bool:
    return re.search(rf"\b(?:fn|def|class|struct|enum|trait) {name}\b", source) is not None


@pytest.mark.parametrize(("page", "path", "name"), NAMED, ids=lambda value: value)
def test_named_function_is_in_the_named_file(page: str, path: str, name: str) -> None:
    assert is_defined(name, (ROOT / path).read_text()), f"docs/{page}: {path} has no {name}"


@pytest.mark.parametrize("page", PAGES)
def test_page_names_its_way(page: str) -> None:
    assert len({(path, name) for each, path, name in NAMED if each == page}) >= 30


def test_function_that_was_renamed_is_found() -> None:
    source = "pub fn write_back(self) {}\n// take_batch is called here\n"
    assert is_defined("write_back", source)
    assert not is_defined("take_batch", source)
