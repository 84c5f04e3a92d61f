"""Pages, docstrings, comments and messages use the field's words: what a storage engineer would search for."""

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORDS = {
    r"tells?|told|telling": "send, report, show, say",
    r"untold": "not synced",
    r"whoever|whomever": "the caller, a client, a program that",
    r"nobody": "no client, no program",
    r"anew": "again",
    r"for ever": "indefinitely",
    r"lend|lends|lent|lending": "register, pass",
    r"goes on|go on|going on|went on": "continue",
    r"(?:becomes?|became) of": "outcome",
    r"taken for": "declared, treated as",
    r"in a row": "consecutive, sequential",
    r"lies": "is stored, is at",
    r"errands?|goodbye|whims?": "background task, close request, fault plan",
}
ON_PAGES = {
    r"gives? up|gave up|given up|giving up": "abandon, release",
    r"under way": "in flight, in progress",
    r"somebody|everybody|anybody": "another client, every node, any caller",
}
PAGES = sorted(
    page
    for page in (
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *ROOT.glob("*/README.md"),
        *ROOT.glob("tests/*/README.md"),
    )
    if ".venv" not in page.parts
)
SOURCES = sorted(
    source
    for top in ("benchmarks", "compat", "core", "docs", "examples", "fs", "plugins", "proto", "tests")
    for source in (ROOT / top).rglob("*.*")
    if source.suffix in {".py", ".pyi", ".rs", ".proto"}
    and not {"pb", "target", "tidy"} & set(source.relative_to(ROOT).parts)
)
SLASHED = re.compile(r'"(?:[^"\\]|\\.)*"|//.*')
"""A string, or a comment to the end of its line, where comments begin with slashes."""
NAMED = re.compile(r"\b(?:def|fn) (?!tell\b)(\w+)")
"""The name of a function; `tell` is a method of files."""


def pattern(*tables: dict[str, str]) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(words for table in tables for words in table)})\b", re.IGNORECASE)


FOUND = pattern(WORDS)
FOUND_ON_PAGES = pattern(WORDS, ON_PAGES)


def prose_of(page: str) -> list[str]:
    """Return the lines of a page without what it quotes: code, and names of functions and files."""
    text = re.sub(
        r"^```.*?^```", lambda block: "\n" * block[0].count("\n"), page, flags=re.DOTALL | re.MULTILINE
    )
    return re.sub(r"`[^`\n]*`", "``", text).splitlines()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_page_uses_the_words_of_the_field(page: Path) -> None:
    lines = enumerate(prose_of(page.read_text()), 1)
    assert [
        f"line {number}: {found[0]}" for number, line in lines for found in FOUND_ON_PAGES.finditer(line)
    ] == []


def texts_of(source: str, suffix: str) -> Iterator[tuple[int, str]]:
    """Yield the comments and strings of a source, docstrings among them, with their lines."""
    if suffix not in {".py", ".pyi"}:
        for number, line in enumerate(prose_of(source), 1):
            yield from ((number, text) for text in SLASHED.findall(line))
        return
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in {tokenize.COMMENT, tokenize.STRING}:
            yield from enumerate(prose_of(token.string), token.start[0])


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_source_uses_the_words_of_the_field(source: Path) -> None:
    texts = texts_of(source.read_text(), source.suffix)
    assert [
        f"line {number}: {found[0]}"
        for number, line in texts
        for found in FOUND.finditer(line)
        if not found[0].isupper()
    ] == []


def names_in(source: str) -> Iterator[str]:
    """Yield the names of the functions of a source, as words."""
    return (name.replace("_", " ") for name in NAMED.findall(source))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_are_named_in_the_words_of_the_field(source: Path) -> None:
    assert [name for name in names_in(source.read_text()) if FOUND.search(name)] == []


def test_word_is_found_in_the_name_of_a_function() -> None:
    source = "def tell(self):\n    fn who_is_told(file: &File) {}\nasync def goes_on(): file.tell()\n"
    assert [FOUND.findall(name) for name in names_in(source)] == [["told"], ["goes on"]]


def test_word_is_found_in_comments_and_strings_and_not_in_names() -> None:
    source = 'position = file.tell()  # who tells\n"""Say what became of it."""\n'
    assert [found[0] for _, line in texts_of(source, ".py") for found in FOUND.finditer(line)] == [
        "tells",
        "became of",
    ]


def test_word_is_found_behind_slashes_and_in_strings() -> None:
    source = 'let told = "nobody"; // who tells\nlies();\n'
    assert [FOUND.findall(text) for _, text in texts_of(source, ".rs")] == [["nobody"], ["tells"]]


def test_word_is_found_in_prose_and_not_in_what_is_quoted() -> None:
    page = "The client tells mgmtd.\n```\nlog: it was given up\n```\n| `what_is_told` | nobody |\n"
    assert [FOUND_ON_PAGES.findall(line) for line in prose_of(page)] == [["tells"], [], [], [], ["nobody"]]
