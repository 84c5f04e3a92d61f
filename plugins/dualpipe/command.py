"""`luciola dualpipe`: plan, plot and show schedules."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

import click

from luciola.cli.options import json_option
from luciola.cli.output import print_json, print_table

if TYPE_CHECKING:
    from .costs import StageCosts
    from .plan import Candidate
    from .simulate import Timeline


class Costs(click.ParamType):  # type: ignore[type-arg]
    """A number, or a list of numbers with commas: one a stage."""

    name = "number[,...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            numbers = [float(each) for each in value.split(",")]
        except ValueError:
            self.fail(f"{value!r} is not a number, nor numbers with commas between them", param, ctx)
        return numbers[0] if len(numbers) == 1 else numbers


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
        command = click.option(f"--{name}", type=Costs(), help=text)(command)
    command = click.option(
        "--costs",
        "costs_file",
        type=click.File("rb"),
        help="JSON file with any of the following, as `benchmarks/plugins/dualpipe.py --costs` writes it.",
    )(command)
    command = click.option(
        "--chunks", type=click.IntRange(1), required=True, help="Micro-batches of a step."
    )(command)
    return click.option("--ranks", type=click.IntRange(1), required=True, help="Devices.")(command)


schedule_option = click.option(
    "--schedule", "name", default="dualpipe", show_default=True, help="A name that `plan` lists."
)


@click.group()
def dualpipe() -> None:
    """Pipeline schedules: compare, draw and print them.

    Costs are of one micro-batch in one of RANKS equal parts of the model; a list has one number for each part, and
    may be for twice as many parts.

    \b
    Example:
      luciola dualpipe plan --ranks 8 --chunks 32 --forward 1 --backward 2 --weight 1
    """


@dualpipe.command()
@sizes_and_costs
@click.option("--memory-limit", type=float, help="Most memory of a device, in the unit of the costs.")
@json_option
def plan(ranks: int, chunks: int, memory_limit: float | None, as_json: bool, **given: Any) -> None:
    """Compare the schedules and name the best.

    \b
    Example:
      luciola dualpipe plan --ranks 8 --chunks 32 --forward 1 --backward 2 --weight 1 --overlap 2.4
    """
    from .plan import best_of

    if (
        memory_limit is not None
        and given["costs_file"] is None
        and None in (given["activation"], given["parameters"])
    ):
        raise click.UsageError("--memory-limit needs --activation and --parameters, in the same unit")
    with _usage_errors():
        candidates = _compare(ranks, chunks, memory_max=memory_limit, **given)
        best = best_of(candidates).name
    candidates.sort(key=_makespan)
    if as_json:
        print_json({"best": best, "schedules": [_as_json(each) for each in candidates]})
        return
    print_table(
        ("SCHEDULE", "MAKESPAN", "IDLE", "LIVE CHUNKS", "ACTIVATIONS", "PARAMETERS", "NOTE"),
        [_as_row(each, best=each.name == best) for each in candidates],
        right=(1, 2, 3, 4, 5),
    )


@dualpipe.command()
@click.argument("file")
@schedule_option
@sizes_and_costs
def plot(file: str, name: str, ranks: int, chunks: int, **given: Any) -> None:
    """Draw a timeline into FILE, which ends in .png or .svg and may be on a cluster (lu:/path).

    \b
    Example:
      luciola dualpipe plot dualpipe.png --ranks 8 --chunks 20 --overlap 2.4
    """
    from io import BytesIO

    from luciola.client.location import close_locations, open_location, replacing

    from .timeline import draw, title

    image = file.rpartition(".")[2].lower()
    if image not in ("png", "svg"):
        raise click.UsageError(f"FILE must end in .png or .svg, not {file!r}")
    picture = BytesIO()
    with _usage_errors():
        timeline = _timeline(name, ranks, chunks, **given)
        draw(timeline, picture, image=image)
    file_system, path = open_location(file)
    try:
        with replacing(file_system, path) as target:
            target.write(picture.getvalue())
    finally:
        close_locations()
    click.echo(f"{file}: {title(timeline)}")


@dualpipe.command()
@schedule_option
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

    with _usage_errors():
        timeline = _timeline(name, ranks, chunks, **given)
        text = None if actions else as_text(timeline)
    if text is not None:
        click.echo(text)
        return
    for rank, own in enumerate(timeline.schedule.actions):
        click.echo(f"rank {rank}: " + " ".join(label(each) for each in own))


@contextmanager
def _usage_errors() -> Iterator[None]:
    """Numbers that cannot be are the user's."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise click.UsageError(str(error)) from error


def _costs(costs_file: IO[bytes] | None, **given: Any) -> "StageCosts":
    from dataclasses import fields

    from .costs import StageCosts

    try:
        found: dict[str, Any] = json.load(costs_file) if costs_file is not None else {}
    except ValueError as error:
        raise ValueError(f"the file of costs is not JSON: {error}") from error
    known = {each.name for each in fields(StageCosts)}
    if not isinstance(found, dict) or not found.keys() <= known:
        raise ValueError(
            f"the file of costs must hold one JSON object with keys of {', '.join(sorted(known))}"
        )
    return StageCosts(**found | {name: value for name, value in given.items() if value is not None})


def _compare(
    ranks: int,
    chunks: int,
    *,
    transport: str,
    names: Sequence[str] = (),
    memory_max: float | None = None,
    **given: Any,
) -> "list[Candidate]":
    from .machine import Transport
    from .plan import compare
    from .schedules import SCHEDULES

    return compare(
        _costs(**given),
        ranks=ranks,
        chunks=chunks,
        memory_max=memory_max,
        names=names or tuple(SCHEDULES),
        transport=Transport(transport),
    )


def _timeline(name: str, ranks: int, chunks: int, **given: Any) -> "Timeline":
    (candidate,) = _compare(ranks, chunks, names=(name,), **given)
    if candidate.timeline is None:
        raise ValueError(candidate.reason)
    return candidate.timeline


def _makespan(candidate: "Candidate") -> float:
    return candidate.timeline.makespan if candidate.timeline else float("inf")


def _as_row(candidate: "Candidate", *, best: bool) -> tuple[str, ...]:
    timeline, note = candidate.timeline, candidate.reason or ("best" if best else "")
    if timeline is None:
        return (candidate.name, "-", "-", "-", "-", "-", note)
    return (
        candidate.name,
        f"{timeline.makespan:.4g}",
        f"{timeline.bubble:.1%}",
        f"{max(timeline.peak_chunks)}",
        f"{max(timeline.peak_activation):.4g}",
        f"{max(timeline.parameters):.4g}",
        note,
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
            "memory": candidate.memory,
        }
    return found


__all__ = ["dualpipe"]
