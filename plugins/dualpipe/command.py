"""`luciola dualpipe`: print a schedule."""

from typing import Final

import click

NAMES: Final = ("dualpipe", "dualpipev")  # as in `schedule.MAKERS`
CELLS_MAX: Final = 1 << 17
"""Ranks times micro-batches: more would take minutes, and cannot be read."""


@click.group()
def dualpipe() -> None:
    """Pipeline schedules, as the runtime executes them.

    \b
    Example:
      luciola dualpipe show --ranks 4 --chunks 8 --overlap 2.4
    """


@dualpipe.command()
@click.option("--schedule", "name", type=click.Choice(NAMES), default=NAMES[0], show_default=True)
@click.option("--ranks", type=click.IntRange(1), required=True, help="Devices.")
@click.option("--chunks", type=click.IntRange(1), required=True, help="Micro-batches of a step.")
@click.option("--forward", type=float, help="Time of a forward in one stage.  [default: 1]")
@click.option("--backward", type=float, help="Time of a whole backward.  [default: 2]")
@click.option("--weight", type=float, help="The part of it for weights.  [default: 1]")
@click.option("--overlap", type=float, help="Time of a forward beside a backward.  [default: their sum]")
@click.option("--actions", is_flag=True, help="List every action, transfers too, instead of a timeline.")
def show(name: str, ranks: int, chunks: int, actions: bool, **times: float | None) -> None:
    """Print a step as a timeline, a line for each rank, with its length and its idle share.

    \b
    Example:
      luciola dualpipe show --ranks 4 --chunks 8 --overlap 2.4
    """
    from .schedule import MAKERS, label
    from .simulate import StageCosts, as_text, simulate

    if ranks * chunks > CELLS_MAX:
        raise click.UsageError(
            f"{ranks} ranks with {chunks} chunks are too many: at most {CELLS_MAX // ranks} chunks"
        )
    try:
        schedule = MAKERS[name](ranks, chunks)
        costs = StageCosts(**{name: value for name, value in times.items() if value is not None})
        text = None if actions else as_text(simulate(schedule, costs))
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if text is not None:
        click.echo(text)
        return
    for rank, own in enumerate(schedule.actions):
        click.echo(f"rank {rank}: " + " ".join(label(each) for each in own))


__all__ = ["dualpipe"]
