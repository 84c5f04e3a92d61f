"""What commands print: JSON that every reader takes, names that harm no terminal, errors in one line."""

import io
import json
import os

import pytest

from luciola.cli.administration import Unanswered, confirm
from luciola.cli.chain import _given_up, _loss
from luciola.cli.files import _long
from luciola.cli.output import describe_error, print_json, shown
from luciola.errors import NotFound


def test_json_is_utf_8_for_any_name(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
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


def test_name_in_a_long_listing_cannot_forge_a_line() -> None:
    entry = {
        "name": "evil\n-rw-r--r-- 1 0 0 5 root",
        "mode": "lrwxrwxrwx",
        "links": 1,
        "uid": 0,
        "gid": 0,
        "size": 5,
        "modified": "2026-11-28T08:00:00",
        "target": "to\nnowhere",
    }
    assert "\n" not in "".join(_long(entry))


def test_question_without_a_terminal_is_a_refusal_not_a_wrong_usage(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    confirm("Forget node 204?", yes=True)
    with pytest.raises(Unanswered) as refused:
        confirm("Forget node 204?", yes=False)
    refused.value.show()
    assert refused.value.exit_code == 2
    said = "luciola: Forget node 204? There is no terminal to ask on: repeat with --yes.\n"
    assert capsys.readouterr().err == said


def test_question_about_a_rotation_says_that_the_next_node_is_disabled() -> None:
    targets = [
        {"target": 1, "node": 202, "state": "lastsrv", "reported": "offline"},
        {"target": 2, "node": 201, "state": "offline", "reported": "online"},
    ]
    question = _loss({"id": 7, "targets": targets}, 1, {201})
    assert "Node 201 is disabled: luciola node enable 201 lets it serve." in question
    assert "disabled" not in _loss({"id": 7, "targets": targets}, 1, set())


def test_question_about_a_rotation_names_the_replica_that_is_not_there() -> None:
    targets = [
        {"target": 1, "node": 202, "state": "lastsrv", "reported": "online"},
        {"target": 2, "node": 201, "state": "lastsrv", "reported": "offline"},
        {"target": 3, "node": 203, "state": "waiting", "reported": "online"},
    ]
    chain = {"id": 7, "targets": targets}
    assert _given_up(chain, {202, 203}) == 2, "without it the one that is present serves"
    question = _loss(chain, 2, set())
    assert "gives up replica 2 on node 201" in question
    assert "Then node 202 serves what it has" in question
    del targets[0]
    targets.append({"target": 4, "node": 204, "state": "lastsrv", "reported": "offline"})
    assert _given_up(chain, {203, 204}) == 4, "its data are gone; those of the absent one may return"
