"""Which option counts where two exclude each other."""

from typing import Any

import click
import pytest
from click.testing import CliRunner

from luciola.cli.options import address_option, data_option, prevailing


@click.command()
@data_option(required=False)
@address_option
def named(**given: Any) -> None:
    click.echo(" ".join(f"{name}={given[name]}" for name in sorted(prevailing(**given))))


@pytest.mark.parametrize(
    ("arguments", "environment", "outcome"),
    [
        ("", {}, ""),
        ("", {"LUCIOLA_DATA": "/d"}, "data_path=/d"),
        ("--address h:1", {"LUCIOLA_DATA": "/d"}, "address=h:1"),
        ("--data /d", {"LUCIOLA_ADDRESS": "h:1"}, "data_path=/d"),
        ("--data /d", {"LUCIOLA_DATA": "/e", "LUCIOLA_ADDRESS": "h:1"}, "data_path=/d"),
        ("", {"LUCIOLA_DATA": "/d", "LUCIOLA_ADDRESS": "h:1"}, "address=h:1 data_path=/d"),
        ("--data /d --address h:1", {}, "address=h:1 data_path=/d"),
    ],
)
def test_the_command_line_counts_before_the_environment(
    arguments: str, environment: dict[str, str], outcome: str
) -> None:
    done = CliRunner().invoke(named, arguments.split(), env=environment)
    assert (done.exit_code, done.output.strip()) == (0, outcome)


def test_help_names_the_environment() -> None:
    text = CliRunner().invoke(named, ["--help"]).output
    assert "LUCIOLA_DATA" in text
    assert "LUCIOLA_ADDRESS" in text
