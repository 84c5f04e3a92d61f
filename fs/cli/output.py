"""How commands speak: JSON, tables, errors."""

import json
import re
import shlex
import sys
from collections.abc import Sequence
from itertools import groupby
from typing import Final, NoReturn

import click

from ..errors import Error

# What stands in a string for a byte that is not UTF-8.
UNDECODED: Final = re.compile("[\\udc80-\\udcff]")


def print_json(value: object) -> None:
    """Print `value` as one JSON document; bytes of names that are not UTF-8 are escapes there (\\udc80 to \\udcff)."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    click.echo(UNDECODED.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def shown(name: str, *, terminal: bool | None = None) -> str:
    """A name as it is printed: on a terminal quoted as for a shell where it would move the cursor or break the line."""
    if name.isprintable() or not (sys.stdout.isatty() if terminal is None else terminal):
        return name
    parts = [(plain, "".join(part)) for plain, part in groupby(name, key=str.isprintable)]
    return "".join(shlex.quote(part) if plain else _escaped(part) for plain, part in parts)


def _escaped(text: str) -> str:
    return "$'" + "".join(f"\\x{byte:02x}" for byte in text.encode(errors="surrogateescape")) + "'"


def describe_error(error: OSError) -> str:
    """Return what went wrong, in one line without the number."""
    if isinstance(error, Error) or error.strerror is None:
        return str(error)
    names = [repr(name) for name in (error.filename, error.filename2) if name is not None]
    return ": ".join([error.strerror, " -> ".join(names)]) if names else error.strerror


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """Print columns under a header; those whose index is in `right` are aligned to the right."""
    cells = [tuple(header), *(tuple(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    for row in cells:
        parts = [
            cell.rjust(widths[column]) if column in right else cell.ljust(widths[column])
            for column, cell in enumerate(row)
        ]
        click.echo("  ".join(parts).rstrip())


def fail(message: str, *, code: int) -> NoReturn:
    """End the program with one line on standard error."""
    click.echo(f"luciola: {message}", err=True)
    sys.exit(code)


__all__ = ["describe_error", "fail", "print_json", "print_table", "shown"]
