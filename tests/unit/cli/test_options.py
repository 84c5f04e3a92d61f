"""Which option counts where two exclude each other."""

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from luciola.cli.options import (
    Credential,
    address_option,
    data_option,
    prevailing,
    secret_option,
    token_option,
)


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


@click.command()
@secret_option(where="a test")
@token_option(where="for a test")
def credential(secret_file: Path | None, token_file: Path | None) -> None:
    shown = Credential.given(secret_file, token_file)
    click.echo(f"{shown.secret_file} {shown.token_file}")


SECRET, TOKEN = {"LUCIOLA_SECRET_FILE": "/s"}, {"LUCIOLA_TOKEN_FILE": "/t"}


@pytest.mark.parametrize(
    ("arguments", "environment", "outcome"),
    [
        ("", {}, "None None"),
        ("", SECRET, "/s None"),
        ("", TOKEN, "None /t"),
        ("", SECRET | TOKEN, "None /t"),
        ("--secret-file /own", TOKEN, "/own None"),
        ("--token-file /own", SECRET | TOKEN, "None /own"),
    ],
)
def test_a_token_counts_before_a_secret_and_the_command_line_before_both(
    arguments: str, environment: dict[str, str], outcome: str
) -> None:
    done = CliRunner().invoke(credential, arguments.split(), env=environment)
    assert (done.exit_code, done.output.strip()) == (0, outcome)


def test_token_and_secret_on_the_command_line_exclude_each_other() -> None:
    done = CliRunner().invoke(credential, ["--secret-file", "/s", "--token-file", "/t"])
    assert done.exit_code == 2
    assert "either --token-file or --secret-file" in done.output
