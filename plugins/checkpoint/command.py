"""`luciola checkpoint`: list, show, verify and prune checkpoints. Does not import torch."""

import os
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import click

from luciola.cli.options import json_option
from luciola.cli.output import print_json, print_table
from luciola.errors import CorruptData, NotFound
from luciola.units import format_bytes

from ..options import location_argument, progress_bar, progress_option

if TYPE_CHECKING:
    from .catalog import Saved

REAL = {"F64": "C128", "F16": "C32"}  # complex types that files hold as pairs


@click.group()
def checkpoint() -> None:
    """Checkpoints of training jobs: list, show, verify, prune.

    LOCATION is a directory of checkpoints, or a checkpoint: a plain path, lu:/path (the cluster that LUCIOLA_DATA
    names, or LUCIOLA_ADDRESS with LUCIOLA_TOKEN_FILE or LUCIOLA_SECRET_FILE), luciola://HOST:PORT/path or
    luciola:///DATA_DIR!/path.

    \b
    Example:
      luciola checkpoint list lu:/runs/7
    """


@checkpoint.command(name="list")
@location_argument
@json_option
def list_(location: str, as_json: bool) -> None:
    """List the checkpoints of a directory, oldest first, and saves that run or were interrupted.

    \b
    Example:
      luciola checkpoint list lu:/runs/7
    """
    from .catalog import find, opened
    from .commit import leftovers

    file_system, path, where = opened(location)
    found = find(file_system, path, where)
    hidden = leftovers(file_system, path)
    if as_json:
        print_json(
            {
                "checkpoints": [_describe(saved) for saved in found],
                "unfinished": [{"path": each.path, "name": each.name, "kind": each.kind} for each in hidden],
            }
        )
        return
    rows = [_row(saved) for saved in found]
    print_table(("NAME", "STEP", "SAVED", "RANKS", "TENSORS", "SIZE", "STATE"), rows, right=(1, 3, 4, 5))
    for each in hidden:
        what = "being saved, or interrupted" if each.kind == "part" else "being removed"
        click.echo(f"{_printable(each.name)}: {what} ({each.path})")


def _describe(saved: "Saved") -> dict[str, Any]:
    manifest = saved.manifest
    facts = {} if manifest is None else asdict(manifest)
    for name in ("files", "metadata"):
        facts.pop(name, None)
    state = "damaged" if saved.problem else "complete"
    return {
        "name": saved.name,
        "location": str(saved.location),
        "state": state,
        "problem": saved.problem,
        **facts,
    }


def _row(saved: "Saved") -> tuple[str, ...]:
    manifest = saved.manifest
    if manifest is None:
        return _printable(saved.name), "", "", "", "", "", saved.problem
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(manifest.saved_ns / 1e9))
    step = "" if manifest.step is None else str(manifest.step)
    size = format_bytes(manifest.data_bytes)
    state = saved.problem or "complete"
    return _printable(saved.name), step, when, str(manifest.ranks), str(manifest.tensors), size, state


def _printable(name: str) -> str:
    return name if name.isprintable() else ascii(name)


@dataclass
class _Tensor:
    """One tensor of a checkpoint, of all its files."""

    name: str
    dtype: str
    shape: list[int]
    form: str
    bytes: int = 0
    parts: list[dict[str, Any]] = field(default_factory=list)


@checkpoint.command()
@location_argument
@json_option
@click.option("--match", default="*", help="Only names that match this pattern (as of the shell).")
def show(location: str, as_json: bool, match: str) -> None:
    """Show the tensors of a checkpoint, their shapes and shards. Of a directory, its newest.

    \b
    Example:
      luciola checkpoint show lu:/runs/7/step-000001000 --match "model.layers.0.*"
    """
    import fnmatch

    saved = _one(location)
    tensors = [tensor for tensor in _tensors(saved) if fnmatch.fnmatchcase(tensor.name, match)]
    if as_json:
        print_json({**_describe(saved), "tensors": [asdict(tensor) for tensor in tensors]})
        return
    rows = [
        (_printable(each.name), each.dtype, _shape(each), str(each.bytes), str(len(each.parts)))
        for each in tensors
    ]
    print_table(("NAME", "DTYPE", "SHAPE", "BYTES", "PARTS"), rows, right=(3, 4))
    click.echo(f"{saved.location}: {len(tensors)} of {_row(saved)[4]} tensors, {_row(saved)[6]}")


def _shape(tensor: _Tensor) -> str:
    if tensor.form == "bytes":
        return "object"
    return "×".join(map(str, tensor.shape)) or "scalar"


def _tensors(saved: "Saved") -> list[_Tensor]:
    from luciola.client import open_location

    from ..weights.checkpoint import Checkpoint
    from .entries import parse_parts
    from .verification import FILE_SUFFIX

    assert saved.manifest is not None, "it is a checkpoint"
    file_system, path = open_location(saved.location)
    found: dict[str, _Tensor] = {}
    for file in sorted(name for name in saved.manifest.files if name.endswith(FILE_SUFFIX)):
        opened = Checkpoint(file_system, path, verify=False, files=[file])
        infos = {info.name: info for info in opened.tensors.values()}
        for entry, part in parse_parts(opened.metadata, infos, os.path.join(path, file)).items():
            info = infos[entry]
            dtype = REAL[info.dtype] if part.form == "real" else info.dtype
            tensor = found.setdefault(part.tensor, _Tensor(part.tensor, dtype, list(part.size), part.form))
            tensor.bytes += info.nbytes
            tensor.parts.append(
                {"file": file, "entry": entry, "offsets": list(part.offsets), "shape": list(info.shape)}
            )
    return [found[name] for name in sorted(found)]


def _one(location: str) -> "Saved":
    """Find the checkpoint that a location names, or the newest in a directory."""
    from .catalog import look, newest_in, opened

    where = opened(location)
    try:
        return look(*where)
    except NotFound:
        newest = newest_in(*where)
        if newest is None:
            raise
        return newest


@checkpoint.command()
@location_argument
@json_option
@progress_option
def verify(location: str, as_json: bool, progress: bool | None) -> None:
    """Read a checkpoint, or all of a directory, and compare every byte with its checksum. Exit code 1 for damage.

    \b
    Example:
      luciola checkpoint verify lu:/runs/7
    """
    from .catalog import find, look, opened
    from .verification import verify_at

    file_system, path, where = opened(location)
    try:
        chosen = [look(file_system, path, where)]
    except NotFound:
        chosen = find(file_system, path, where) if file_system.isdir(path) else []
        if not chosen:
            raise
    total = sum(saved.manifest.data_bytes for saved in chosen if saved.manifest is not None)
    damages = {}
    with progress_bar("verifying", total, shown=progress, as_json=as_json) as advance:
        for saved in chosen:
            damages[saved.name] = verify_at(file_system, saved.location.path, advance)
    found = [damage for each in damages.values() for damage in each]
    if as_json:
        print_json(
            {
                "checkpoints": len(chosen),
                "bytes": total,
                "damages": {name: [asdict(damage) for damage in each] for name, each in damages.items()},
            }
        )
    else:
        for damage in found:
            click.echo(str(damage))
        click.echo(f"read {len(chosen)} checkpoints, {format_bytes(total)}: {len(found)} damages")
    if found:
        raise CorruptData(f"{len(found)} damages", path=path)


@checkpoint.command()
@location_argument
@json_option
@click.option("--keep-last", type=click.IntRange(1), help="How many of the newest stay.")
@click.option("--keep-every", type=click.IntRange(1), help="Those whose step is a multiple of this stay too.")
@click.option("--keep-best", type=click.IntRange(1), help="How many of the best stay, by --metric.")
@click.option("--metric", help="The metric of the saves that --keep-best compares.")
@click.option(
    "--mode", type=click.Choice(["min", "max"]), default="min", show_default=True, help="Which is the best."
)
@click.option(
    "--interrupted", is_flag=True, help="Remove all saves that are not complete: no job may be saving."
)
@click.option("--dry-run", is_flag=True, help="Only print what would be removed.")
def prune(
    location: str,
    as_json: bool,
    keep_last: int | None,
    keep_every: int | None,
    keep_best: int | None,
    metric: str | None,
    mode: Literal["min", "max"],
    interrupted: bool,
    dry_run: bool,
) -> None:
    """Remove old checkpoints of a directory. The newest whole one always stays.

    \b
    Example:
      luciola checkpoint prune lu:/runs/7 --keep-last 3 --keep-every 1000
    """
    from luciola.client import open_location

    from .commit import leftovers
    from .retention import Keep
    from .retention import prune as remove

    if keep_last is None and not interrupted:
        raise click.UsageError("give --keep-last N, --interrupted or both")
    if (keep_best is None) != (metric is None):
        raise click.UsageError("--keep-best and --metric go together")
    keep = Keep(keep_last, keep_every, keep_best, metric, mode)
    removed = [saved.name for saved in remove(location, keep, dry_run=dry_run)]
    file_system, path = open_location(location)
    parts = leftovers(file_system, path) if interrupted else []
    if not dry_run:
        for part in parts:
            file_system.rmtree(part.path)
    if as_json:
        print_json({"removed": removed, "interrupted": [part.path for part in parts], "dry_run": dry_run})
        return
    word = "would remove" if dry_run else "removed"
    for name in (*removed, *(part.path for part in parts)):
        click.echo(f"{word} {_printable(name)}")
    click.echo(f"{word} {len(removed)} checkpoints" + (f", {len(parts)} unfinished" if interrupted else ""))


__all__ = ["checkpoint"]
