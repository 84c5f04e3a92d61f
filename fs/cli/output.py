"""How commands speak: JSON, tables, errors."""

import json
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click


def print_json(value: Any) -> None:
    """Prints `value` as one JSON document."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """Prints columns under a header; those whose index is in `right` are aligned to the right."""
    cells = [tuple(header), *(tuple(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    for row in cells:
        parts = [
            cell.rjust(widths[column]) if column in right else cell.ljust(widths[column])
            for column, cell in enumerate(row)
        ]
        click.echo("  ".join(parts).rstrip())


def fail(message: str, *, code: int) -> NoReturn:
    """Ends the program with one line on standard error."""
    click.echo(f"luciola: {message}", err=True)
    sys.exit(code)


__all__ = ["fail", "print_json", "print_table"]
