"""Pages use the field's words: what a storage engineer would search for."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORDS = {
    r"tells?|told|telling": "send, report, show, say",
    r"untold": "not synced",
    r"whoever|whomever": "the caller, a client, a program that",
    r"nobody|somebody|everybody|anybody": "no client, another client, every node",
    r"anew": "again",
    r"for ever": "indefinitely",
    r"lend|lends|lent|lending": "register, pass",
    r"goes on|go on|going on|went on": "continue",
    r"gives? up|gave up|given up|giving up": "abandon, release",
    r"(?:becomes?|became) of": "outcome",
    r"taken for": "declared, treated as",
    r"in a row": "consecutive, sequential",
    r"under way": "in flight, in progress",
    r"lies|lay": "is stored, is at",
    r"errands?|goodbye|whims?": "background task, close request, fault plan",
}
PAGES = sorted(
    page
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*/README.md"))
    if ".venv" not in page.parts
)
FOUND = re.compile(rf"\b(?:{'|'.join(WORDS)})\b", re.IGNORECASE)


def prose_of(page: str) -> list[str]:
    """Return the lines of a page without what it quotes: code, and names of functions and files."""
    text = re.sub(
        r"^```.*?^```", lambda block: "\n" * block[0].count("\n"), page, flags=re.DOTALL | re.MULTILINE
    )
    return re.sub(r"`[^`\n]*`", "``", text).splitlines()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_page_uses_the_words_of_the_field(page: Path) -> None:
    lines = enumerate(prose_of(page.read_text()), 1)
    assert [f"line {number}: {found[0]}" for number, line in lines for found in FOUND.finditer(line)] == []


def test_word_is_found_in_prose_and_not_in_what_is_quoted() -> None:
    page = "The client tells mgmtd.\n```\nlog: it was given up\n```\n| `what_is_told` | nobody |\n"
    assert [FOUND.findall(line) for line in prose_of(page)] == [["tells"], [], [], [], ["nobody"]]
