"""Every command has help with an example; errors are one line and a code; nothing is imported too early."""

import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click import Context
from click.testing import CliRunner

from luciola.cli import COMMANDS, cli, main
from luciola.cli.processes import python


@pytest.mark.parametrize("name", sorted(cli.list_commands(Context(cli))))
def test_help_has_an_example(name: str) -> None:
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert "Example" in result.output
    assert f"luciola {name}" in result.output


@pytest.mark.parametrize(
    "names",
    [
        f"{group} {name}"
        for group in ("chain", "node", "rdma")
        for name in sorted(cli.get_command(Context(cli), group).commands)  # type: ignore[union-attr]
    ],
)
def test_help_of_a_command_in_a_group_has_an_example(names: str) -> None:
    result = CliRunner().invoke(cli, [*names.split(), "--help"])
    assert result.exit_code == 0, result.output
    assert f"Example:\n    luciola {names}" in result.output


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
        (["token", "create", "--data", "/nonexistent"], "no cluster secret"),
        (["token", "show", "/nonexistent"], "token create"),
        (["ls", "--address", "127.0.0.1:1", "--token-file", "/nonexistent", "/"], "token create"),
        (["chain", "list", "--manager", "127.0.0.1:1", "--token-file", "/nonexistent"], "token create"),
        (["ls", "--address", "h:1", "--token-file", "/x", "--secret-file", "/x", "/"], "either --token-file"),
        (["chain", "list", "--data", "/nonexistent"], "no cluster"),
        (["chain", "list"], "name the cluster"),
        (["chain", "list", "--manager", "127.0.0.1:1"], "--secret-file"),
        (["node", "list", "--manager", "nowhere", "--secret-file", "/x"], "nowhere"),
        (["chain", "rotate", "1", "--data", "/nonexistent"], "say which rotation"),
        (["chain", "rotate", "1", "--preferred", "--last-serving", "--data", "/x"], "say which rotation"),
        (["chain", "rotate", "0", "--preferred", "--data", "/x"], "not in the range"),
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


def the_script() -> tuple[str, ...]:
    """The program that an installation makes of the entry point."""
    file = Path(__file__).parents[3] / "pyproject.toml"
    module, _, name = tomllib.loads(file.read_text())["project"]["scripts"]["luciola"].partition(":")
    return sys.executable, "-c", f"import sys; from {module} import {name}; sys.exit({name}())"


def run(
    command: tuple[str, ...], *arguments: str, first: Path | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a program that finds the modules of `first` before others, and hears of interrupts."""
    path = os.pathsep.join(
        [*([str(first)] if first else []), *(str(Path(each).absolute()) for each in sys.path)]
    )
    return subprocess.run(
        [*command, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        cwd=cwd,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # the tests may run in the background
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("command", [(sys.executable, "-m", "luciola"), the_script()])
def test_module_and_script_are_one_program(command: tuple[str, ...]) -> None:
    assert run(command, "--version").stdout.startswith("luciola, version ")
    assert run(command, "ls", "--help").stdout.startswith("Usage: luciola ls ")
    wrong = run(command, "ls", "--nonsense")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("Usage: luciola ls ")
    missing = run(command, "ls", "--data", "/nonexistent")
    assert (missing.returncode, missing.stderr.count("\n")) == (1, 1)
    assert missing.stderr.startswith("luciola: no cluster")


@pytest.mark.parametrize("command", [(sys.executable, "-m", "luciola"), the_script()])
@pytest.mark.parametrize(("module", "says"), [("click", ""), ("rich", "\nluciola: interrupted\n")])
def test_interrupt_while_modules_are_loaded_shows_no_traceback(
    command: tuple[str, ...], module: str, says: str, tmp_path: Path
) -> None:
    """`click` is loaded before the command is known, `rich` with this command."""
    (tmp_path / f"{module}.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    result = run(command, "cp", "/a", "lu:/b", first=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", says)


def test_ignored_interrupt_stays_ignored() -> None:
    """As a shell starts what runs in its background."""
    code = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN);"
        "os.execv(sys.executable, [sys.executable, '-c', "
        '\'import signal, sys, atexit; from luciola.__main__ import main; sys.argv = ["luciola", "--version"];'
        "atexit.register(lambda: print(signal.getsignal(signal.SIGINT).name)); main()'])"
    )
    assert run((sys.executable, "-c", code)).stdout.splitlines()[1:] == ["SIG_IGN"]


def test_modules_of_the_working_directory_are_not_imported_by_a_service(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise SystemExit('this is somebody\\'s own file')\n")
    result = run(python("-m", "luciola"), "--version", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_plugin_adds_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "guest.py").write_text(
        "import click\n\n@click.command()\ndef guest():\n    click.echo('here')\n"
    )
    metadata = tmp_path / "guest-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: guest\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[luciola.commands]\nguest = guest:guest\n")
    monkeypatch.syspath_prepend(tmp_path)
    result = CliRunner().invoke(cli, ["guest"])
    assert (result.exit_code, result.output) == (0, "here\n")
    assert "\n  guest" in CliRunner().invoke(cli, ["--help"]).output
