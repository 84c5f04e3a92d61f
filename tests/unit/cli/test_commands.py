"""Every command has help with an example; errors are one line and a code; nothing is imported too early."""

import subprocess
import sys

import pytest
from click.testing import CliRunner

from luciola.cli import COMMANDS, cli, main


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_has_an_example(name: str) -> None:
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert "Example" in result.output
    assert f"luciola {name}" in result.output


def test_help_of_everything_lists_every_command() -> None:
    result = CliRunner().invoke(cli, ["--help"])
    assert result.exit_code == 0
    for name in COMMANDS:
        assert f"\n  {name} " in result.output


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["ls", "--nonsense"], ["cp", "one"], ["up"], ["du", "/"]]
)
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ls", "--data", "/nonexistent", "/"], "no cluster"),
        (["ls", "--address", "127.0.0.1:1", "/"], "secret"),
        (["status", "--data", "/nonexistent"], "no cluster"),
        (["fsck", "--data", "/nonexistent"], "no cluster"),
        (["token", "--data", "/nonexistent"], "no cluster secret"),
        (["bench", "/", "--size", "lots"], "not a size"),
        (["bench", "/", "--size", "1K"], "at least 1M"),
        (["mkdir", "--data", "/nonexistent", "-m", "9", "/x"], "octal"),
        (["cp", "--data", "/nonexistent", "/a", "/b"], "no path on the cluster"),
    ],
)
def test_errors_are_one_line_that_helps(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code in (1, 2)
    assert message in capsys.readouterr().err


def test_the_command_line_starts_without_services() -> None:
    code = "import sys, luciola.cli; print(' '.join(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert {"grpc", "rocksdict", "luciola_core", "rich"} & set(loaded) == set()
