"""`luciola dataset`: pack files into data sets, index, look at and verify them, and measure how fast they are read."""

from typing import TYPE_CHECKING, Any, Final

import click

from luciola.cli.options import json_option
from luciola.cli.output import print_json, print_table
from luciola.errors import CorruptData
from luciola.units import format_bytes, parse_bytes

from ..options import progress_bar, progress_option

if TYPE_CHECKING:
    from .records import Records

FORMATS: Final = (
    "ffrecord",
    "tokens",
    "tar",
    "jsonl",
    "parquet",
    "arrow",
)  # as in `open`, which imports numpy
PACKED: Final = ("ffrecord", "tokens", "tar")
SCANNED: Final = ("tar", "jsonl")

format_option = click.option(
    "--format", "format_", type=click.Choice(FORMATS), help="[default: by the names]"
)
locations_argument = click.argument("locations", nargs=-1, required=True)


@click.group()
def dataset() -> None:
    """Data sets for training: pack, info, index, verify, bench.

    LOCATIONS are files or directories: plain paths, lu:/path (the cluster that LUCIOLA_DATA names, or LUCIOLA_ADDRESS
    with LUCIOLA_TOKEN_FILE or LUCIOLA_SECRET_FILE), luciola://HOST:PORT/path or luciola:///DATA_DIR!/path. Formats are
    FFRecord (*.ffr), Megatron's tokens (*.bin, *.idx), tar shards named as WebDataset does (*.tar), JSON lines
    (*.jsonl), Parquet (*.parquet) and Arrow (*.arrow, *.feather, *.ipc).

    \b
    Example:
      luciola dataset pack photos/ --to lu:/data/photos
    """


@dataset.command()
@locations_argument
@click.option("--to", "target", required=True, metavar="DIRECTORY", help="A location; it is made.")
@click.option("--format", "format_", type=click.Choice(PACKED), default="ffrecord", show_default=True)
@click.option("--part-size", default="1GiB", show_default=True, help="About so much in each file.")
@click.option(
    "--labels", is_flag=True, help="Of tar: directories are classes; each sample gets its number, `cls`."
)
@click.option("--dtype", help="Of tokens: uint8, uint16, int32, …  [default: that of the first file]")
@progress_option
@json_option
def pack(
    locations: tuple[str, ...],
    target: str,
    format_: str,
    part_size: str,
    labels: bool,
    dtype: str | None,
    progress: bool | None,
    as_json: bool,
) -> None:
    """Pack files, and all files below directories, into the files of a data set, in the order of their names.

    ffrecord: each file is a record. tar: files are parts of samples (0001.jpg and 0001.cls are two of "0001"). tokens:
    each file is a document, of integers in .npy, or of the bytes of any other file.

    \b
    Examples:
      luciola dataset pack photos/ --to lu:/data/photos --format tar --labels
      luciola dataset pack texts/ --to lu:/data/texts --format tokens --dtype uint16
    """
    from .packing import find_sources, pack_files

    part_bytes = _parsed(part_size)
    if dtype is not None and format_ != "tokens":
        raise click.UsageError("--dtype goes with --format tokens")
    if labels and format_ != "tar":
        raise click.UsageError("--labels goes with --format tar, which keeps names and parts of samples")
    sources = find_sources(list(locations))
    with progress_bar("packing", sources.bytes, shown=progress, as_json=as_json) as advance:
        report = pack_files(
            sources, target, format=format_, part_bytes=part_bytes, dtype=_known(dtype), advance=advance,
            labels=labels,
        )  # fmt: skip
    if as_json:
        print_json(
            {
                "format": format_,
                "records": report.records,
                "bytes": report.bytes,
                "files": report.files,
                "labels": report.labels,
            }
        )
    else:
        files = len(report.files)
        click.echo(f"wrote {report.records} records, {format_bytes(report.bytes)}, in {files} files")


@dataset.command()
@locations_argument
@format_option
@progress_option
@json_option
def info(locations: tuple[str, ...], format_: str | None, progress: bool | None, as_json: bool) -> None:
    """Show records, bytes and files of a data set. The index of a tar shard is made if there is none.

    \b
    Example:
      luciola dataset info lu:/data/photos
    """
    from .verify import info as describe

    found = describe(_open(locations, format_, progress=progress, as_json=as_json))
    if as_json:
        print_json(found)
        return
    rows = [(file["path"], str(file["records"]), format_bytes(file["bytes"])) for file in found["files"]]
    print_table(("FILE", "RECORDS", "SIZE"), rows, right=(1, 2))
    sizes = found["record_bytes"]
    click.echo(
        f"{found['records']} records of {found['format']}, {format_bytes(found['bytes'])}: "
        f"{format_bytes(sizes['least'])} to {format_bytes(sizes['most'])}, median {format_bytes(sizes['median'])}, "
        f"{'with' if found['checksums'] else 'without'} checksums"
    )


@dataset.command()
@locations_argument
@progress_option
@json_option
def index(locations: tuple[str, ...], progress: bool | None, as_json: bool) -> None:
    """Make the indexes of tar shards or files of JSON lines that have none or an old one.

    A job that opens such shards makes them too, one process for each shard while the others wait: run this before it.

    \b
    Example:
      luciola dataset index lu:/data/photos
    """
    records = _open(locations, None, progress=progress, as_json=as_json)
    if records.format not in SCANNED:
        raise click.UsageError(f"files of {records.format} have their indexes in them")
    if as_json:
        print_json({"records": len(records), "files": [file.path for file in records.files]})
    else:
        click.echo(f"{len(records)} records in {len(records.files)} files have an index")


@dataset.command()
@locations_argument
@format_option
@progress_option
@json_option
def verify(locations: tuple[str, ...], format_: str | None, progress: bool | None, as_json: bool) -> None:
    """Read every record, and compare it with its checksum. Exit code 1 if something is damaged.

    Token files have no checksums: their structure is checked, and storage nodes verify what they send.

    \b
    Example:
      luciola dataset verify lu:/data/photos
    """
    from dataclasses import asdict

    from .verify import verify as check

    records = _open(locations, format_, progress=progress, as_json=as_json)
    total = sum(file.identity.size for file in records.files)
    with progress_bar("verifying", total, shown=progress, as_json=as_json) as advance:
        damages = check(records, advance)
    if as_json:
        print_json(
            {"records": len(records), "bytes": total, "damages": [asdict(damage) for damage in damages]}
        )
    else:
        for damage in damages:
            click.echo(f"{damage.file}: {damage.reason}")
        click.echo(f"read {len(records)} records in {len(records.files)} files, {format_bytes(total)}")
    if damages:
        raise CorruptData(f"{len(damages)} damaged records or files", path=damages[0].file)


@dataset.command()
@locations_argument
@format_option
@click.option("--batch", type=click.IntRange(1), default=64, show_default=True, help="Samples of a batch.")
@click.option("--workers", type=click.IntRange(0), default=0, show_default=True, help="Processes that read.")
@click.option("--seconds", type=click.FloatRange(0.1), default=5.0, show_default=True, help="How long.")
@click.option("--window", type=click.IntRange(1), help="Of tokens: samples of so many, and one.")
@click.option("--check/--no-check", default=True, show_default=True, help="Compare with checksums.")
@click.option("--in-order", is_flag=True, help="In the order of the files, not shuffled.")
@json_option
def bench(
    locations: tuple[str, ...],
    format_: str | None,
    batch: int,
    workers: int,
    seconds: float,
    window: int | None,
    check: bool,
    in_order: bool,
    as_json: bool,
) -> None:
    """Measure how fast a training job could read a data set, in random order.

    \b
    Example:
      luciola dataset bench lu:/data/photos --batch 128 --workers 4
    """
    import time

    from .datasets import MapDataset
    from .loader import Loader
    from .open import open_records

    options: dict[str, Any] = {} if window is None else {"window": window}
    data = MapDataset(open_records(list(locations), format=format_, **options), check=check)
    batch = min(batch, len(data))
    if not batch:
        raise click.UsageError("the data set has no records")
    loader = Loader(
        data,
        global_batch_size=batch,
        rank=0,
        ranks=1,
        num_workers=workers,
        persistent_workers=workers > 0,
        shuffle=not in_order,
        collate_fn=_whole,
    )
    _read_for(loader, 0)  # opens files, starts workers
    data.metrics.reset()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        _read_for(loader, until)
    found = {"batch": batch, "workers": workers, **data.metrics.snapshot().to_dict()}
    del loader
    data.close()
    if as_json:
        print_json(found)
        return
    waited = found["wait_s"] / found["seconds"]
    click.echo(f"{found['samples_per_s']:,.0f} samples/s, {format_bytes(found['bytes_per_s'])}/s")
    click.echo(f"the consumer waited {waited:.0%} of the time")
    latency = ", ".join(f"{name} {1e3 * value:.2f} ms" for name, value in found["latency_s"].items())
    click.echo(f"a batch of {batch}: {latency}")


def _whole(samples: Any) -> Any:
    """Return the batch as workers would send it, if it is one tensor."""
    return len(samples) if samples.tensor is None else samples.tensor


def _read_for(loader: Any, until: float) -> None:
    """Read batches to the end of an epoch, or until that moment; at least one."""
    import time

    for _ in loader:
        if time.monotonic() >= until:
            return


def _open(
    locations: tuple[str, ...], format_: str | None, *, progress: bool | None, as_json: bool
) -> "Records":
    from .open import kind_of, open_records

    format_ = format_ or kind_of(list(locations)).format
    if format_ not in SCANNED:
        return open_records(list(locations), format=format_)
    with progress_bar("making the index", None, shown=progress, as_json=as_json) as advance:
        return open_records(list(locations), format=format_, progress=advance)


def _parsed(size: str) -> int:
    try:
        return parse_bytes(size)
    except ValueError as error:
        raise click.UsageError(f"--part-size: {error}") from error


def _known(dtype: str | None) -> str | None:
    import numpy as np

    if dtype is not None:
        try:
            np.dtype(dtype)
        except TypeError as error:
            raise click.UsageError(
                f"--dtype: not a type, {dtype!r} (write uint8, uint16, int32, …)"
            ) from error
    return dtype


__all__ = ["dataset"]
