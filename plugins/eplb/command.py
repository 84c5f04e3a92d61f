"""`luciola eplb`: make plans from loads, and look at them.

Files are locations: plain paths, lu:/path, luciola://HOST:PORT/path or luciola:///DATA_DIR!/path.
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from luciola.cli.options import json_option
from luciola.cli.output import print_json, print_table
from luciola.errors import Error, InvalidArgument

if TYPE_CHECKING:
    from torch import Tensor

    from .plan_file import LayerBalance

POLICIES: Final = ("reference", "optimal", "optimal-global")  # as in `rebalance`, which brings torch


def machine_options(command: Callable[..., None]) -> Callable[..., None]:
    """What the experts are placed on."""
    for option in (
        click.option("--gpus", type=click.IntRange(1), required=True, help="GPUs in all."),
        click.option("--nodes", type=click.IntRange(1), default=1, show_default=True, help="Servers."),
        click.option(
            "--groups", type=click.IntRange(1), default=1, show_default=True,
            help="Groups of experts, for routing that is limited to groups.",
        ),
        click.option("--replicas", type=click.IntRange(1), required=True, help="Slots for experts on all GPUs."),
    ):  # fmt: skip
        command = option(command)
    return command


@click.group()
def eplb() -> None:
    """Which GPU holds which replicas of which experts: plan from loads, show.

    Loads are files: .safetensors of a LoadRecorder, or .npy with a row a layer. Files are locations: plain
    paths, lu:/path, luciola://HOST:PORT/path or luciola:///DATA_DIR!/path.

    \b
    Example:
      luciola eplb plan loads.npy --replicas 288 --gpus 32 --nodes 4 -o plan.json
    """


@eplb.command()
@click.argument("loads")
@machine_options
@click.option("--policy", type=click.Choice(POLICIES), help="How to place.  [default: optimal]")
@click.option(
    "--current", metavar="PLAN", help="The plan in use: slots that can stay do, and moves are listed."
)
@click.option(
    "--budget", type=click.IntRange(0), help="At most so many moves from --current, all layers together."
)
@click.option("--windows", is_flag=True, help="Plan for the recorded windows too, not for the average alone.")
@click.option("-o", "--output", metavar="PLAN", help="Write the plan here.")
@json_option
def plan(
    loads: str,
    replicas: int,
    groups: int,
    nodes: int,
    gpus: int,
    policy: str | None,
    current: str | None,
    budget: int | None,
    windows: bool,
    output: str | None,
    as_json: bool,
) -> None:
    """Make a plan from the loads in a file.

    \b
    Examples:
      luciola eplb plan loads.npy --replicas 288 --gpus 32 --nodes 4 --groups 8 -o lu:/serving/plan.json
      luciola eplb plan new.npy --replicas 288 --gpus 32 --current plan.json --budget 200 -o next.json
    """
    from .plan_file import Plan, balance_of, bound_nodes, experts_in_order
    from .rebalance import align, moves_between, rebalance_experts, rebalance_incrementally

    if budget is not None and (current is None or policy is not None or windows):
        raise click.UsageError("--budget goes with --current PLAN, and without --policy and --windows")
    name = policy or ("optimal" if budget is None else "incremental")
    with _explained():
        average, weight = _weight(loads, windows=windows)
        bound = bound_nodes(name, groups=groups, nodes=nodes)
        before = None if current is None else _placement_of(current, gpus=gpus, replicas=replicas)
        if budget is None or before is None:
            target = rebalance_experts(weight, replicas, groups, nodes, gpus, policy=name)[0]  # type: ignore[arg-type]
        else:
            target = rebalance_incrementally(weight, before, gpus, budget=budget, num_nodes=bound)[0][0]
        moves = None
        if before is not None:
            target = align(before, target, gpus, num_nodes=bound)
            moves = tuple(tuple(move) for move in moves_between(before, target, gpus))
        made = Plan(name, groups, nodes, gpus, average, target, moves)
        old = experts_in_order(average, replicas, nodes=bound) if before is None else before
        rows = [
            balance_of(dataclasses.replace(made, placement=placement), average) for placement in (old, target)
        ]
    if output is not None:
        made.save(output)
    if as_json:
        print_json(
            {
                "plan": output,
                "before": _summary(rows[0]),
                "after": _summary(rows[1]),
                "moves": None if moves is None else len(moves),
            }
        )
        return
    layers, experts = average.shape
    click.echo(f"{layers} layers, {experts} experts in {replicas} slots on {gpus} GPUs, policy {name}")
    named = "experts in order" if current is None else current
    print_table(
        ("PLACEMENT", "MAX/MEAN", "WORST LAYER", "BOUND"),
        [(each, *_cells(_summary(part))) for each, part in zip((named, output or "plan"), rows, strict=True)],
        right=(1, 2, 3),
    )
    if moves is not None:
        click.echo(f"{len(moves)} experts move to a GPU that has not got them")
    if output is None:
        click.echo("nothing is written: give -o PLAN")


@eplb.command()
@click.argument("plan_location", metavar="PLAN")
@click.option(
    "--loads", metavar="LOADS", help="Measure with these loads, not with those that it was made from."
)
@json_option
def show(plan_location: str, loads: str | None, as_json: bool) -> None:
    """Show how even a plan is: for each layer the most loaded GPU beside the mean and beside the bound.

    \b
    Example:
      luciola eplb show plan.json --loads now.npy
    """
    from .plan_file import Plan, balance_of

    shown = Plan.load(plan_location)
    with _explained():
        weight = shown.loads if loads is None else _weight(loads, windows=False)[0]
        rows = balance_of(shown, weight)
    if as_json:
        print_json(
            {
                "policy": shown.policy,
                "summary": _summary(rows),
                "layers": [dataclasses.asdict(row) for row in rows],
            }
        )
        return
    print_table(
        ("LAYER", "MEAN", "MAX/MEAN", "BOUND", "GPU", "MOST REPLICAS", "DOUBLES"),
        [
            (
                str(row.layer),
                f"{row.mean:.6g}",
                f"{row.ratio:.4f}",
                f"{row.bound:.4f}",
                str(row.gpu),
                str(row.most_replicas),
                str(row.doubles),
            )
            for row in rows
        ],
        right=range(7),
    )
    summary = _summary(rows)
    click.echo(
        f"policy {shown.policy}, {shown.slots} slots on {shown.gpus} GPUs: max/mean {summary['mean']:.4f} on average, "
        f"{summary['worst']:.4f} at worst (layer {summary['worst_layer']}); bound {summary['bound']:.4f}"
    )


@contextmanager
def _explained() -> Iterator[None]:
    """What the numeric functions say of bad arguments becomes one line."""
    try:
        yield
    except Error:
        raise
    except (ValueError, TypeError) as error:
        raise InvalidArgument(str(error)) from error


def _weight(location: str, *, windows: bool) -> "tuple[Tensor, Tensor]":
    """The average, and what is planned for."""
    import torch

    from .load_files import read_loads

    loads = read_loads(location)
    if windows and not len(loads.windows):
        raise InvalidArgument(
            "no windows in this file: record them (LoadRecorder(windows=…)), or omit --windows", path=location
        )
    return loads.average, torch.cat([loads.average[None], loads.windows]) if windows else loads.average


def _placement_of(location: str, *, gpus: int, replicas: int) -> "Tensor":
    """The placement of the plan in use. Raises: InvalidArgument if it is for other GPUs or slots."""
    from .plan_file import Plan

    found = Plan.load(location)
    if (found.gpus, found.slots) != (gpus, replicas):
        raise InvalidArgument(
            f"a plan of {found.slots} slots on {found.gpus} GPUs, not of {replicas} on {gpus}", path=location
        )
    return found.placement


def _summary(rows: "list[LayerBalance]") -> dict[str, Any]:
    worst = max(rows, key=lambda row: row.ratio)
    return {
        "mean": sum(row.ratio for row in rows) / len(rows),
        "worst": worst.ratio,
        "worst_layer": worst.layer,
        "bound": sum(row.bound for row in rows) / len(rows),
    }


def _cells(summary: dict[str, Any]) -> tuple[str, ...]:
    return tuple(f"{summary[name]:.4f}" for name in ("mean", "worst", "bound"))


__all__ = ["eplb"]
