"""`luciola flashmla`: files of KV pages."""

import sys
from typing import TYPE_CHECKING, Any

import click

from luciola.cli.options import json_option
from luciola.cli.output import fail, print_json, print_table
from luciola.units import format_bytes

from ..options import location_argument

if TYPE_CHECKING:
    from .paged_kv_file import PagedKVFile


@click.group()
def flashmla() -> None:
    """KV cache pages in files, and attention kernels.

    LOCATION is a plain path, lu:/path (the cluster that LUCIOLA_DATA names, or LUCIOLA_ADDRESS with
    LUCIOLA_TOKEN_FILE or LUCIOLA_SECRET_FILE), luciola://HOST:PORT/path or luciola:///DATA_DIR!/path.

    \b
    Example:
      luciola flashmla show lu:/kv/chat.pages
    """


@flashmla.command()
@json_option
@location_argument
def show(as_json: bool, location: str) -> None:
    """Show what a file of KV pages is made for, and how full it is.

    \b
    Example:
      luciola flashmla show lu:/kv/chat.pages
    """
    with _open(location) as file:
        layout = file.layout
        report: dict[str, Any] = {
            "path": file.path,
            "pages": len(file),
            "capacity": file.capacity,
            "tokens": sum(page.name.tokens for page in file.pages()),
            "kind": layout.kind,
            "layers": layout.layers,
            "page_tokens": layout.page_tokens,
            "kv_heads": layout.kv_heads,
            "record_bytes": layout.record_bytes,
            "file_bytes": file.header.file_bytes,
        }
    if as_json:
        print_json(report)
        return
    page, whole = format_bytes(report["record_bytes"]), format_bytes(report["file_bytes"])
    rows = [
        ("pages", f"{report['pages']} of {report['capacity']}, {report['tokens']} tokens"),
        ("layout", f"{report['layers']} layers of {report['kind']}, {report['page_tokens']} tokens a page"),
        ("page", page),
        ("file", f"{whole} when it is full"),
    ]
    print_table(("WHAT", "VALUE"), rows)


@flashmla.command()
@json_option
@location_argument
def verify(as_json: bool, location: str) -> None:
    """Read every page and compare it with its checksums. Ends with status 1 if one is damaged.

    \b
    Example:
      luciola flashmla verify lu:/kv/chat.pages
    """
    with _open(location) as file:
        count = len(file)
        damages = list(file.verify())
    if as_json:
        found = [{"page": each.slot, "layer": each.layer, "key": each.key.hex()} for each in damages]
        print_json({"path": file.path, "pages": count, "damaged": found})
    else:
        for each in damages:
            click.echo(f"page {each.slot}, layer {each.layer}: the bytes do not match their checksum")
        click.echo(f"{count} pages, {len(damages)} damaged")
    sys.exit(1 if damages else 0)


def _open(location: str) -> "PagedKVFile":
    from .paged_kv_file import PagedKVFile

    try:
        return PagedKVFile.open(location)
    except OSError as error:
        fail(str(error), code=1)


__all__ = ["flashmla"]
