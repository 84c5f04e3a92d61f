"""`luciola weights`: what a checkpoint holds, whether it is whole, and checksums beside its files. None needs torch."""

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from luciola.cli.options import json_option
from luciola.cli.output import print_json, print_table
from luciola.errors import CorruptData
from luciola.units import format_bytes

from ..options import location_argument, progress_bar, progress_option

if TYPE_CHECKING:
    from .checkpoint import Checkpoint
    from .header import TensorInfo


@click.group()
def weights() -> None:
    """Checkpoints in safetensors format: list, verify, add checksums.

    LOCATION is a file, an index of shards or a directory with one of the two: a plain path, lu:/path (the cluster that
    LUCIOLA_DATA names, or LUCIOLA_ADDRESS with LUCIOLA_TOKEN_FILE or LUCIOLA_SECRET_FILE), luciola://HOST:PORT/path or
    luciola:///DATA_DIR!/path.

    \b
    Example:
      luciola weights ls lu:/models/m
    """


@weights.command()
@json_option
@location_argument
@click.option("--match", default="*", help="Only names that match this pattern (as of the shell).")
def ls(as_json: bool, location: str, match: str) -> None:
    """List tensors: name, type, shape, bytes and file.

    \b
    Example:
      luciola weights ls lu:/models/m --match "model.layers.0.*"
    """
    import fnmatch

    checkpoint = _open(location)
    chosen = [info for name, info in checkpoint.tensors.items() if fnmatch.fnmatchcase(name, match)]
    if as_json:
        print_json(
            {
                "path": checkpoint.path,
                "files": list(checkpoint.files),
                "metadata": checkpoint.metadata,
                "tensors": [_describe(info) for info in chosen],
            }
        )
        return
    rows = [
        (_printable(info.name), info.dtype, _shape(info), str(info.nbytes), info.file.rpartition("/")[2])
        for info in chosen
    ]
    print_table(("NAME", "DTYPE", "SHAPE", "BYTES", "FILE"), rows, right=(3,))
    total = format_bytes(sum(info.nbytes for info in chosen))
    click.echo(f"{len(chosen)} of {len(checkpoint.tensors)} tensors, {total}, {len(checkpoint.files)} files")


def _describe(info: "TensorInfo") -> dict[str, Any]:
    return {
        "name": info.name,
        "dtype": info.dtype,
        "shape": list(info.shape),
        "bytes": info.nbytes,
        "file": info.file,
        "offset": info.offset,
    }


def _shape(info: "TensorInfo") -> str:
    return "×".join(map(str, info.shape)) or "scalar"


def _printable(name: str) -> str:
    return name if name.isprintable() else ascii(name)


@weights.command()
@location_argument
@json_option
@progress_option
def verify(location: str, as_json: bool, progress: bool | None) -> None:
    """Read everything, and compare it with the checksums beside the files. Exit code 1 if something is damaged.

    Files without checksums are read too: storage nodes verify what they send.

    \b
    Example:
      luciola weights verify lu:/models/m
    """
    checkpoint = _open(location)
    with progress_bar("verifying", _data_bytes(checkpoint), shown=progress, as_json=as_json) as advance:
        damages = checkpoint.verify(advance)
    unchecked = [file for file in checkpoint.files if not checkpoint.file_has_checksums(file)]
    if as_json:
        print_json(
            {
                "bytes": _data_bytes(checkpoint),
                "files": len(checkpoint.files),
                "files_without_checksums": unchecked,
                "damages": [dataclasses.asdict(damage) for damage in damages],
            }
        )
    else:
        for damage in damages:
            click.echo(f"{damage.file}: {damage}")
        for file in unchecked:
            click.echo(f"{file}: read, but no checksums beside it (luciola weights checksum makes them)")
        click.echo(f"read {format_bytes(_data_bytes(checkpoint))} in {len(checkpoint.files)} files")
    if damages:
        raise CorruptData(f"{len(damages)} damaged blocks", path=checkpoint.path)


@weights.command()
@location_argument
@click.option(
    "--force", is_flag=True, help="Replace checksums that are there: what is read now counts as right."
)
@progress_option
def checksum(location: str, force: bool, progress: bool | None) -> None:
    """Write FILE.crc32c beside each file of a checkpoint; loading verifies them from then on.

    \b
    Example:
      luciola weights checksum lu:/models/m
    """
    from .checksums import SUFFIX, write_checksums

    checkpoint = _open(location, verify=False)
    fs = checkpoint.file_system
    there = [file for file in checkpoint.files if fs.exists(file + SUFFIX)]
    if there and not force:
        raise click.UsageError(
            f"{there[0]}{SUFFIX} exists: give --force to replace it, or `luciola weights verify`"
        )
    with progress_bar("reading", _data_bytes(checkpoint), shown=progress) as advance:
        results = checkpoint.checksums(advance)
    for file, sums in results.items():
        write_checksums(fs, file, sums)
    click.echo(f"wrote checksums of {format_bytes(_data_bytes(checkpoint))} beside {len(results)} files")


def _open(location: str, *, verify: bool = True) -> "Checkpoint":
    from .checkpoint import Checkpoint

    return Checkpoint.open(location, verify=verify)


def _data_bytes(checkpoint: "Checkpoint") -> int:
    return sum(info.nbytes for info in checkpoint.tensors.values())


__all__ = ["weights"]
