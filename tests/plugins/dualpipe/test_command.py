"""`luciola dualpipe`."""

import json

import pytest
from click.testing import CliRunner, Result

from luciola.client import close_locations, open_location
from luciola.plugins.dualpipe.command import dualpipe


def run(*arguments: str) -> Result:
    return CliRunner().invoke(dualpipe, arguments)


def test_plan_lists_the_fastest_first_and_names_the_best() -> None:
    result = run("plan", "--ranks", "8", "--chunks", "32", "--overlap", "2.4")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[0].split() == [
        *("SCHEDULE", "MAKESPAN", "IDLE", "LIVE", "CHUNKS", "ACTIVATIONS", "PARAMETERS", "NOTE")
    ]
    assert lines[1].split() == ["dualpipe", "86.4", "4.3%", "9", "9", "2", "best"]
    assert lines[-1].split() == ["1f1b", "117", "17.9%", "8", "8", "1"]


def test_plan_explains_what_is_not_possible() -> None:
    result = run("plan", "--ranks", "3", "--chunks", "7")
    assert "dualpipe needs an even number of ranks, not 3" in result.output


def test_plan_as_json() -> None:
    found = json.loads(run("plan", "--ranks", "4", "--chunks", "20", "--json").output)
    by_name = {each["name"]: each for each in found["schedules"]}
    assert found["best"] == found["schedules"][0]["name"]
    assert by_name["1f1b"]["makespan"] == 69
    assert by_name["1f1b"]["idle"] == [9, 9, 9, 9]
    assert by_name["dualpipe"]["parameters"] == [2, 2, 2, 2]


def test_plan_with_a_limit_of_memory() -> None:
    sizes = ("plan", "--ranks", "8", "--chunks", "32", "--overlap", "2.2", "--memory-limit", "80")
    result = run(*sizes, "--parameters", "40", "--activation", "1", "--json")
    assert json.loads(result.output)["best"] == "dualpipev"
    refused = run(*sizes)
    assert refused.exit_code == 2
    assert "--memory-limit needs --activation and --parameters" in refused.output


def test_plan_with_transfers_that_are_waited_for() -> None:
    sizes = ("plan", "--ranks", "4", "--chunks", "20", "--communication", "0.2", "--json", "--transport")
    free, waiting = (
        {each["name"]: each for each in json.loads(run(*sizes, transport).output)["schedules"]}
        for transport in ("background", "rendezvous")
    )
    assert waiting["1f1b"]["makespan"] > free["1f1b"]["makespan"]
    assert waiting["zbv"]["reason"].startswith("zbv stops in a circle: rank ")
    assert "makespan" not in waiting["zbv"]


def test_costs_come_from_a_file_and_options_come_before_it(tmp_path) -> None:
    file = tmp_path / "costs.json"
    file.write_text(json.dumps({"forward": [1, 1, 1, 1], "backward": 3, "weight": 1}))
    sizes = ("plan", "--ranks", "2", "--chunks", "4", "--costs", str(file), "--json")
    found = json.loads(run(*sizes).output)
    assert {each["name"]: each for each in found["schedules"]}["1f1b"]["makespan"] == 5 * (2 + 6)
    found = json.loads(run(*sizes, "--backward", "2").output)
    assert {each["name"]: each for each in found["schedules"]}["1f1b"]["makespan"] == 5 * (2 + 4)
    file.write_text(json.dumps({"speed": 1}))
    assert "must hold one JSON object with keys of activation, backward" in run(*sizes).output
    file.write_text("{")
    assert "is not JSON" in run(*sizes).output


def test_costs_by_stage_on_the_command_line() -> None:
    result = run(
        "plan", "--ranks", "2", "--chunks", "1", "--forward", "1,3", "--backward", "2,6", "--weight", "1"
    )
    assert result.exit_code == 0
    assert "12" in result.output.split()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--forward", "1,x"), "'1,x' is not a number, nor numbers with commas between them"),
        (("--forward", "-1"), "forward must be a finite number from 0 on, not -1.0"),
        (("--weight", "5"), "the weight part 5 is more than the whole backward 2"),
        (("--ranks", "0"), "0 is not in the range x>=1"),
    ],
)
def test_numbers_that_cannot_be_are_refused(arguments, words: str) -> None:
    result = run("plan", "--ranks", "4", "--chunks", "8", *arguments)
    assert result.exit_code == 2
    assert words in result.output


def test_plot_writes_a_picture(tmp_path) -> None:
    for name, start in (("a.png", b"\x89PNG"), ("b.SVG", b"<?xml")):
        result = run(
            "plot", str(tmp_path / "new" / name), "--ranks", "4", "--chunks", "8", "--schedule", "zbv"
        )
        assert result.exit_code == 0, result.output
        assert "zbv: 4 ranks, 8 stages, 8 micro-batches" in result.output
        assert (tmp_path / "new" / name).read_bytes().startswith(start)


def test_plot_writes_to_a_cluster(shared_cluster) -> None:
    location = f"luciola://{shared_cluster.data}!/plots/step.png"
    result = run("plot", location, "--ranks", "2", "--chunks", "4")
    assert result.exit_code == 0, result.output
    files, path = open_location(location)
    try:
        assert files.read(path).startswith(b"\x89PNG")
        files.rmtree("/plots")
    finally:
        close_locations()


def test_plot_refuses_other_pictures_and_sizes(tmp_path) -> None:
    assert "FILE must end in .png or .svg" in run("plot", "a.gif", "--ranks", "4", "--chunks", "8").output
    result = run("plot", str(tmp_path / "a.png"), "--ranks", "4", "--chunks", "7")
    assert result.exit_code == 2
    assert "needs at least 8 chunks" in result.output
    assert not list(tmp_path.iterdir())


def test_show_prints_a_line_for_each_rank() -> None:
    result = run("show", "--ranks", "2", "--chunks", "4")
    assert result.output.splitlines()[1:] == [
        "rank 0  |F0|f0|F1|b0   |f1B0    |b1   |I1|W1|",
        "rank 1  |f0|F0|f1|B0   |F1b0    |B1   |i1|w1|",
    ]


def test_show_lists_actions_with_their_transfers() -> None:
    result = run("show", "--ranks", "2", "--chunks", "4", "--actions")
    assert result.output.splitlines()[0].startswith("rank 0: F0:0 [>1 a0:0, <1 a1:0] F1:0 ")


@pytest.mark.parametrize("name", ["plan", "plot", "show"])
def test_help_has_an_example_that_works(name: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = run(name, "--help").output
    example = text.partition("Example:\n")[2].splitlines()[0].split()
    assert example[:2] == ["luciola", "dualpipe"]
    result = run(*example[2:])
    assert result.exit_code == 0, result.output
