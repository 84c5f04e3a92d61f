"""What commands print: JSON that every reader takes, names that harm no terminal, errors in one line."""

import json
import os

import pytest

from luciola.cli.output import describe_error, print_json, shown
from luciola.errors import NotFound


def test_json_is_utf_8_whatever_is_in_a_name(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    names = [os.fsdecode(name) for name in (b"a\xff\xfe", "grün".encode(), b"two\nlines", b"\\udcff")]
    print_json(names)
    printed = capsysbinary.readouterr().out.decode("utf-8")
    assert "grün" in printed
    assert json.loads(printed) == names


@pytest.mark.parametrize(
    ("name", "quoted"),
    [
        (b"plain name", "plain name"),
        ("grün".encode(), "grün"),
        (b"two\nlines", r"two$'\x0a'lines"),
        (b"it's \x1b[31mred", r"""'it'"'"'s '$'\x1b''[31mred'"""),
        (b"\xff", r"$'\xff'"),
    ],
)
def test_names_are_quoted_for_a_terminal_only(name: bytes, quoted: str) -> None:
    assert shown(os.fsdecode(name), terminal=True) == quoted
    assert shown(os.fsdecode(name), terminal=False) == os.fsdecode(name)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FileNotFoundError(2, "No such file or directory", "/a"), "No such file or directory: '/a'"),
        (
            OSError(18, "Invalid cross-device link", "/a", None, "/b"),
            "Invalid cross-device link: '/a' -> '/b'",
        ),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("of another kind"), "of another kind"),
        (NotFound("no such file", path="/a"), "no such file: '/a'"),
    ],
)
def test_errors_are_described_without_a_number(error: OSError, line: str) -> None:
    assert describe_error(error) == line
