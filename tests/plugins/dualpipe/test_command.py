"""`luciola dualpipe`."""

import pytest
from click.testing import CliRunner, Result

from luciola.plugins.dualpipe.command import NAMES, dualpipe
from luciola.plugins.dualpipe.schedule import MAKERS


def run(*arguments: str) -> Result:
    return CliRunner().invoke(dualpipe, arguments)


def test_every_schedule_of_the_runtime_can_be_shown() -> None:
    assert set(NAMES) == MAKERS.keys()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--forward", "x"), "'x' is not a valid float"),
        (("--forward", "-1"), "forward must be a finite number from 0 on, not -1.0"),
        (("--weight", "5"), "the weight part 5 is more than the whole backward 2"),
        (("--ranks", "0"), "0 is not in the range x>=1"),
        (("--ranks", "3"), "dualpipe needs an even number of ranks, not 3"),
        (("--chunks", "65536"), "4 ranks with 65536 chunks are too many: at most 32768 chunks"),
    ],
)
def test_numbers_that_cannot_be_are_refused(arguments, words: str) -> None:
    result = run("show", "--ranks", "4", "--chunks", "8", *arguments)
    assert result.exit_code == 2
    assert words in result.output


def test_show_prints_a_title_and_a_line_for_each_rank() -> None:
    assert run("show", "--ranks", "2", "--chunks", "4").output.splitlines() == [
        "dualpipe: 2 ranks, 2 stages, 4 micro-batches; makespan 12, idle 0.0%",
        "rank 0  |F0|f0|F1|b0   |f1B0    |b1   |I1|W1|",
        "rank 1  |f0|F0|f1|B0   |F1b0    |B1   |i1|w1|",
    ]


def test_show_lists_actions_with_their_transfers() -> None:
    result = run("show", "--ranks", "2", "--chunks", "4", "--actions")
    assert result.output.splitlines()[0].startswith("rank 0: F0:0 [>1 a0:0, <1 a1:0] F1:0 ")


def test_help_has_an_example_that_works() -> None:
    text = run("show", "--help").output
    example = text.partition("Example:\n")[2].splitlines()[0].split()
    assert example[:2] == ["luciola", "dualpipe"]
    result = run(*example[2:])
    assert result.exit_code == 0, result.output
