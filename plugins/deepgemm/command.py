"""`luciola deepgemm`: compile kernels before they are needed."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import IO

import click

from luciola.cli.options import json_option
from luciola.cli.output import print_json, print_table


@click.group()
def deepgemm() -> None:
    """FP8 and BF16 products of mixture-of-experts models.

    \b
    Example:
      luciola deepgemm warm shapes.txt --cache-dir /mnt/luciola/kernels
    """


@deepgemm.command()
@click.argument("shapes", type=click.File())
@click.option(
    "--cache-dir",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory that jobs name by TRITON_CACHE_DIR; may be on a mount, shared.",
)
@click.option(
    "--layer",
    type=click.Choice(["triton", "hopper"]),
    help="Whose kernels: the portable ones, or the fast path where there is one.  [default: what a Hopper card takes]",
)
@click.option(
    "--jobs", type=click.IntRange(min=1), default=os.cpu_count() or 1, help="Processes that compile."
)
@json_option
def warm(shapes: IO[str], cache_dir: Path, layer: str | None, jobs: int, as_json: bool) -> None:
    """Compile the kernels for a list of SHAPES (a file, or - for standard input), for Hopper, without a GPU.

    A line is an operator and its sizes; commas separate several values: `fp8_gemm_nt m=1,128 n=4096 k=7168`.

    \b
    Example:
      echo "fp8_gemm_nt m=1,64,4096 n=4096 k=7168" | luciola deepgemm warm - --cache-dir /mnt/luciola/kernels
      TRITON_CACHE_DIR=/mnt/luciola/kernels torchrun serve.py
    """
    try:
        from .aot_cache import parse
        from .aot_cache import warm as compile_all
    except ImportError as error:
        raise click.ClickException(
            f"{error}: install the plugins' packages, pip install 'luciola[plugins]'"
        ) from error
    try:
        calls = parse(shapes)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="SHAPES") from error
    if not calls:
        raise click.BadParameter("it names no call", param_hint="SHAPES")
    done = list(compile_all(calls, cache_dir, layer=layer, jobs=jobs))
    if as_json:
        print_json([asdict(each) for each in done])
        return
    print_table(
        ("CALL", "KERNELS", "STATE"),
        [
            (each.call, ", ".join(each.kernels), "cached" if each.cached == len(each.kernels) else "compiled")
            for each in done
        ],
    )


__all__ = ["deepgemm"]
