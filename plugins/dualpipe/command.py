"""`luciola dualpipe`: compare and print schedules."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from luciola.cli.options import json_option
from luciola.cli.output import print_json, print_table

if TYPE_CHECKING:
    from .plan import Candidate

COST_OPTIONS = (
    ("forward", "Time of a forward."),
    ("backward", "Time of a whole backward."),
    ("weight", "The part of it for weights."),
    ("overlap", "Time of a forward beside a backward; their sum if not given."),
    ("communication", "Time of a transfer between stages."),
    ("activation", "Memory that one micro-batch's forward leaves."),
    ("parameters", "Memory of parameters, gradients and optimizer."),
)


def sizes_and_costs(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say what is simulated."""
    command = click.option(
        "--transport",
        type=click.Choice(("background", "buffered", "rendezvous")),
        default="background",
        show_default=True,
        help="What transfers make a device wait for: nothing, what it receives, or what it sends too.",
    )(command)
    for name, text in reversed(COST_OPTIONS):
        command = click.option(f"--{name}", type=float, help=text)(command)
    command = click.option(
        "--chunks", type=click.IntRange(1), required=True, help="Micro-batches of a step."
    )(command)
    return click.option("--ranks", type=click.IntRange(1), required=True, help="Devices.")(command)


@click.group()
def dualpipe() -> None:
    """Pipeline schedules: compare and print them.

    Costs are of one micro-batch in one of RANKS equal parts of the model.

    \b
    Example:
      luciola dualpipe plan --ranks 8 --chunks 32 --forward 1 --backward 2 --weight 1
    """


@dualpipe.command()
@sizes_and_costs
@json_option
def plan(ranks: int, chunks: int, as_json: bool, **given: Any) -> None:
    """Compare the schedules, the fastest first.

    \b
    Example:
      luciola dualpipe plan --ranks 8 --chunks 32 --forward 1 --backward 2 --weight 1 --overlap 2.4
    """
    candidates = _compare(ranks, chunks, **given)
    if as_json:
        print_json({"schedules": [_as_json(each) for each in candidates]})
        return
    print_table(
        ("SCHEDULE", "MAKESPAN", "IDLE", "LIVE CHUNKS", "ACTIVATIONS", "PARAMETERS", "NOTE"),
        [_as_row(each) for each in candidates],
        right=(1, 2, 3, 4, 5),
    )


@dualpipe.command()
@click.option("--schedule", "name", default="dualpipe", show_default=True, help="A name that `plan` lists.")
@sizes_and_costs
@click.option("--actions", is_flag=True, help="List every action, transfers too, instead of a timeline.")
def show(name: str, ranks: int, chunks: int, actions: bool, **given: Any) -> None:
    """Print a timeline as text, a line for each rank.

    \b
    Example:
      luciola dualpipe show --ranks 4 --chunks 8
    """
    from .schedule import label
    from .timeline import as_text

    (candidate,) = _compare(ranks, chunks, names=(name,), **given)
    with _usage_errors():
        if candidate.timeline is None:
            raise ValueError(candidate.reason)
        text = None if actions else as_text(candidate.timeline)
    if text is not None:
        click.echo(text)
        return
    for rank, own in enumerate(candidate.timeline.schedule.actions):
        click.echo(f"rank {rank}: " + " ".join(label(each) for each in own))


@contextmanager
def _usage_errors() -> Iterator[None]:
    """Numbers that cannot be are the user's."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise click.UsageError(str(error)) from error


def _compare(
    ranks: int, chunks: int, *, transport: str, names: Sequence[str] = (), **given: float | None
) -> "list[Candidate]":
    from .costs import StageCosts
    from .event_sim import Transport
    from .plan import compare
    from .schedules import SCHEDULES

    with _usage_errors():
        costs = StageCosts(**{name: value for name, value in given.items() if value is not None})
        return compare(
            costs, ranks=ranks, chunks=chunks, names=names or SCHEDULES, transport=Transport(transport)
        )


def _as_row(candidate: "Candidate") -> tuple[str, ...]:
    timeline = candidate.timeline
    if timeline is None:
        return (candidate.name, "-", "-", "-", "-", "-", candidate.reason or "")
    return (
        candidate.name,
        f"{timeline.makespan:.4g}",
        f"{timeline.bubble:.1%}",
        f"{max(timeline.peak_chunks)}",
        f"{max(timeline.peak_activation):.4g}",
        f"{max(timeline.parameters):.4g}",
        "",
    )


def _as_json(candidate: "Candidate") -> dict[str, Any]:
    timeline = candidate.timeline
    found: dict[str, Any] = {"name": candidate.name, "reason": candidate.reason}
    if timeline is not None:
        found |= {
            "makespan": timeline.makespan,
            "bubble": timeline.bubble,
            "idle": timeline.idle,
            "stages": timeline.schedule.stages,
            "peak_chunks": timeline.peak_chunks,
            "peak_activation": timeline.peak_activation,
            "parameters": timeline.parameters,
        }
    return found


__all__ = ["dualpipe"]
