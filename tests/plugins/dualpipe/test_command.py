"""`luciola dualpipe`."""

import json

import pytest
from click.testing import CliRunner, Result

from luciola.plugins.dualpipe.command import dualpipe


def run(*arguments: str) -> Result:
    return CliRunner().invoke(dualpipe, arguments)


def test_plan_lists_the_fastest_first() -> None:
    result = run("plan", "--ranks", "8", "--chunks", "32", "--overlap", "2.4")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[0].split() == [
        *("SCHEDULE", "MAKESPAN", "IDLE", "LIVE", "CHUNKS", "ACTIVATIONS", "PARAMETERS", "NOTE")
    ]
    assert lines[1].split() == ["dualpipe", "86.4", "4.3%", "9", "9", "2"]
    assert lines[-1].split() == ["1f1b", "117", "17.9%", "8", "8", "1"]


def test_plan_explains_what_is_not_possible() -> None:
    result = run("plan", "--ranks", "3", "--chunks", "7")
    assert "dualpipe needs an even number of ranks, not 3" in result.output


def test_plan_as_json() -> None:
    found = json.loads(run("plan", "--ranks", "4", "--chunks", "20", "--json").output)
    by_name = {each["name"]: each for each in found["schedules"]}
    assert by_name["1f1b"]["makespan"] == 69
    assert by_name["1f1b"]["idle"] == [9, 9, 9, 9]
    assert by_name["dualpipe"]["parameters"] == [2, 2, 2, 2]


def test_plan_with_transfers_that_are_waited_for() -> None:
    sizes = ("plan", "--ranks", "4", "--chunks", "20", "--communication", "0.2", "--json", "--transport")
    free, waiting = (
        {each["name"]: each for each in json.loads(run(*sizes, transport).output)["schedules"]}
        for transport in ("background", "rendezvous")
    )
    assert waiting["1f1b"]["makespan"] > free["1f1b"]["makespan"]
    assert waiting["zbv"]["reason"].startswith("zbv stops in a circle: rank ")
    assert "makespan" not in waiting["zbv"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--forward", "x"), "'x' is not a valid float"),
        (("--forward", "-1"), "forward must be a finite number from 0 on, not -1.0"),
        (("--weight", "5"), "the weight part 5 is more than the whole backward 2"),
        (("--ranks", "0"), "0 is not in the range x>=1"),
    ],
)
def test_numbers_that_cannot_be_are_refused(arguments, words: str) -> None:
    result = run("plan", "--ranks", "4", "--chunks", "8", *arguments)
    assert result.exit_code == 2
    assert words in result.output


def test_show_prints_a_line_for_each_rank() -> None:
    result = run("show", "--ranks", "2", "--chunks", "4")
    assert result.output.splitlines()[1:] == [
        "rank 0  |F0|f0|F1|b0   |f1B0    |b1   |I1|W1|",
        "rank 1  |f0|F0|f1|B0   |F1b0    |B1   |i1|w1|",
    ]


def test_show_lists_actions_with_their_transfers() -> None:
    result = run("show", "--ranks", "2", "--chunks", "4", "--actions")
    assert result.output.splitlines()[0].startswith("rank 0: F0:0 [>1 a0:0, <1 a1:0] F1:0 ")


@pytest.mark.parametrize("name", ["plan", "show"])
def test_help_has_an_example_that_works(name: str) -> None:
    text = run(name, "--help").output
    example = text.partition("Example:\n")[2].splitlines()[0].split()
    assert example[:2] == ["luciola", "dualpipe"]
    result = run(*example[2:])
    assert result.exit_code == 0, result.output
