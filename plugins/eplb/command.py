"""`luciola eplb plan`: make a plan from loads, or look at what one would give.

Files are locations: plain paths, lu:/path, luciola://HOST:PORT/path or luciola:///DATA_DIR!/path.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import click

from luciola.cli.options import json_option
from luciola.cli.output import print_json, print_table
from luciola.errors import Error, InvalidArgument

if TYPE_CHECKING:
    from torch import Tensor

POLICIES: Final = ("reference", "optimal")  # as in `rebalance`, which brings torch


@click.group()
def eplb() -> None:
    """Which GPU holds which replicas of which experts.

    \b
    Example:
      luciola eplb plan loads.safetensors --replicas 288 --gpus 32 --nodes 4 -o plan.json
    """


@eplb.command()
@click.argument("loads")
@click.option("--replicas", type=click.IntRange(1), required=True, help="Slots for experts on all GPUs.")
@click.option(
    "--groups", type=click.IntRange(1), default=1, show_default=True,
    help="Groups of experts, for routing that is limited to groups.",
)  # fmt: skip
@click.option("--nodes", type=click.IntRange(1), default=1, show_default=True, help="Servers.")
@click.option("--gpus", type=click.IntRange(1), required=True, help="GPUs in all.")
@click.option("--policy", type=click.Choice(POLICIES), help="How to place.  [default: optimal]")
@click.option("--current", metavar="PLAN", help="The plan in use: slots that can stay do.")
@click.option(
    "--budget", type=click.IntRange(0), help="At most so many moves from --current, all layers together."
)
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
    output: str | None,
    as_json: bool,
) -> None:
    """Make a plan from LOADS, a file of a LoadRecorder, and show how even it is, layer by layer.

    BEFORE is the plan in use, or experts in order; BOUND no plan can go below. Ratios are to the mean GPU load. The
    policy optimal plans for the windows in the file too. Without -o nothing is written.

    \b
    Examples:
      luciola eplb plan loads.safetensors --replicas 288 --gpus 32 --nodes 4 --groups 8 -o lu:/serving/plan.json
      luciola eplb plan new.safetensors --replicas 288 --gpus 32 --current plan.json --budget 200 -o next.json
    """
    import torch

    from .plan_file import Plan
    from .rebalance import (
        align,
        imbalance,
        lower_bound,
        moves_between,
        rebalance_experts,
        rebalance_incrementally,
    )
    from .recorder import Loads

    if budget is not None and (current is None or policy is not None):
        raise click.UsageError("--budget goes with --current PLAN, and without --policy")
    name = policy or ("optimal" if budget is None else "incremental")
    bound_nodes = nodes if groups % nodes == 0 else 1
    with _explained():
        recorded = Loads.load(loads)
        weight = recorded.average
        layers, experts = weight.shape
        in_order = (torch.arange(replicas) % experts).expand(layers, replicas)
        before = in_order if current is None else _placement_of(current, gpus=gpus, replicas=replicas)
        if budget is not None:
            made = rebalance_incrementally(weight, before, gpus, budget=budget, num_nodes=bound_nodes)[0][0]
        else:
            patterns = torch.cat([weight[None], recorded.windows]) if name == "optimal" else weight
            made = rebalance_experts(patterns, replicas, groups, nodes, gpus, policy=name)[0]  # type: ignore[arg-type]
        moves = None
        if current is not None:
            made = align(before, made, gpus, num_nodes=bound_nodes)
            moves = len(moves_between(before, made, gpus))
        mean = weight.sum(-1) / gpus
        bound = torch.where(mean > 0, lower_bound(weight, replicas, gpus) / mean, 1.0)
        ratios = {
            "before": imbalance(weight, before, gpus),
            "after": imbalance(weight, made, gpus),
            "bound": bound,
        }
    if output is not None:
        Plan(name, groups, nodes, gpus, made).save(output)
    if as_json:
        layers_of = {key: values.tolist() for key, values in ratios.items()}
        print_json({"plan": output, "policy": name, "moves": moves, **layers_of})
        return
    _print_balance(ratios)
    click.echo(f"policy {name}: {experts} experts in {replicas} slots on {gpus} GPUs")
    if moves is not None:
        click.echo(f"{moves} experts move to a GPU that does not hold them")
    if output is None:
        click.echo("nothing is written: give -o PLAN")


def _print_balance(ratios: "dict[str, Tensor]") -> None:
    def row(name: str, values: "list[Tensor]") -> tuple[str, ...]:
        return name, *(f"{float(each):.4f}" for each in values)

    columns = list(ratios.values())
    rows = [row(str(layer), list(values)) for layer, values in enumerate(zip(*columns, strict=True))]
    rows += [row("mean", [each.mean() for each in columns]), row("worst", [each.max() for each in columns])]
    print_table(("LAYER", *(name.upper() for name in ratios)), rows, right=range(1, 4))


@contextmanager
def _explained() -> Iterator[None]:
    """Turn what the numeric functions say of bad arguments into one line."""
    try:
        yield
    except Error:
        raise
    except (ValueError, TypeError) as error:
        raise InvalidArgument(str(error)) from error


def _placement_of(location: str, *, gpus: int, replicas: int) -> "Tensor":
    """The placement of the plan in use. Raises: InvalidArgument if it is for other GPUs or slots."""
    from .plan_file import Plan

    found = Plan.load(location)
    slots = found.physical_to_logical_map.shape[1]
    if (found.gpus, slots) != (gpus, replicas):
        raise InvalidArgument(
            f"a plan of {slots} slots on {found.gpus} GPUs, not of {replicas} on {gpus}", path=location
        )
    return found.physical_to_logical_map


__all__ = ["eplb"]
