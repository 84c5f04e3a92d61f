"""Options that commands of several plugins have, and the progress bar that one of them asks for."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

location_argument = click.argument("location")
progress_option = click.option(
    "--progress/--no-progress", default=None, help="A progress bar.  [default: in a terminal]"
)


@contextmanager
def progress_bar(
    what: str, total_bytes: int | None, *, shown: bool | None, as_json: bool = False
) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, and what moves it on by so many bytes. `shown`: as the option says."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    enabled = (sys.stderr.isatty() if shown is None else shown) and not as_json
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not enabled) as bar:
        task = bar.add_task(what, total=total_bytes)
        yield lambda count: bar.advance(task, count)


__all__ = ["location_argument", "progress_bar", "progress_option"]
