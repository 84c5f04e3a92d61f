"""`luciola rdma`: what this machine has for RDMA, what to do about what is missing, and a test between two machines."""

import sys
from dataclasses import asdict
from typing import Final

import click

from ..errors import Error, Unsupported
from . import rdma_peer
from .options import json_option
from .output import print_json, print_table
from .rdma_findings import Finding, Usable, judge
from .rdma_survey import Survey, survey

ROUNDS: Final = 64
PINGS: Final = 1000
# What devices without a limit of their own say.
ANY: Final = (1 << 64) - 1


@click.group()
def rdma() -> None:
    """Look at RDMA devices, and test them between two machines.

    \b
    Example:
      luciola rdma check
    """


@rdma.command()
@click.option(
    "--device", default="", metavar="DEVICE[:PORT]", help="Only this one, as `mlx5_0` or `mlx5_0:1`."
)
@click.option(
    "--gid-index", type=click.IntRange(0, 255), help="Use this GID instead of the one that is chosen."
)
@click.option("--peer", metavar="HOST[:PORT]", help="Run the test with the machine that listens there.")
@click.option("--listen", is_flag=True, help="Be the other end of tests, one after another, until Ctrl-C.")
@click.option(
    "--listen-address", default=f"0.0.0.0:{rdma_peer.PORT}", show_default=True, metavar="ADDRESS:PORT",
    help="Where --listen does; port 0 takes a free one. `[::]:PORT` for IPv6.",
)  # fmt: skip
@click.option("--rounds", type=click.IntRange(1, 1_000_000), default=ROUNDS, show_default=True,
              help="Times that 4 MiB are written, and read.")  # fmt: skip
@click.option("--pings", type=click.IntRange(1, 1_000_000), default=PINGS, show_default=True,
              help="Messages there and back.")  # fmt: skip
@json_option
def check(
    *,
    device: str,
    gid_index: int | None,
    peer: str | None,
    listen: bool,
    listen_address: str,
    rounds: int,
    pings: int,
    as_json: bool,
) -> None:
    """List devices, ports, addresses and limits, and say what is wrong and what to do about it.

    Exits with 0 if some port can be used and enough memory be locked (and the test with --peer succeeded), else with
    1. The test compares every byte that it moves. It needs `luciola rdma check --listen` on the other machine, which
    lets any program that reaches its TCP port run the test, with access to the test's own buffer and nothing else.

    \b
    Example:
      luciola rdma check
      luciola rdma check --listen                  # on host1
      luciola rdma check --peer host1              # on host2
    """
    if peer and listen:
        raise click.UsageError(
            "--peer and --listen are the two ends of a test: give one of them on each machine"
        )
    where = _address(peer, rdma_peer.PORT) if peer else None
    found = survey()
    findings, usable = judge(found, wanted=device, gid_index=gid_index)
    result: rdma_peer.Result | None = None
    if usable and listen:
        _listen(_address(listen_address, rdma_peer.PORT), found, usable)
    if usable and where is not None:
        assert found.verbs is not None, "what can be used was found with it"
        try:
            result = rdma_peer.run_client(where, found.verbs, usable, rounds=rounds, pings=pings)
        except Error as error:
            what, _, remedy = error.message.partition("; ")
            findings.append(Finding("problem", f"peer {peer}", what, remedy))
    if as_json:
        print_json(_document(found, findings, usable, result))
    else:
        _print(found, findings, usable, result)
    may_not_lock = any(each.about == "memlock" and each.level == "problem" for each in findings)
    if not usable or may_not_lock or (where is not None and result is None):
        sys.exit(1)


def _address(text: str, port: int) -> tuple[str, int]:
    """HOST, HOST:PORT or [HOST]:PORT. Raises: click.UsageError."""
    host, bracket, rest = text.removeprefix("[").partition("]") if text.startswith("[") else ("", "", text)
    if not bracket:
        host, _, number = rest.partition(":") if rest.count(":") <= 1 else (rest, "", "")
    else:
        number = rest.removeprefix(":")
    if not host or (number and not (number.isdecimal() and int(number) <= 65535)):
        raise click.UsageError(f"{text!r} is no HOST[:PORT]; an IPv6 address with a port goes in brackets")
    return host, int(number) if number else port


def _listen(address: tuple[str, int], found: Survey, usable: list[Usable]) -> None:
    """Is the other end of tests until it is interrupted."""
    if found.verbs is None:
        raise Unsupported(found.pyverbs_problem)
    with rdma_peer.listen(address) as listener:
        host, port = listener.getsockname()[:2]
        click.echo(f"listening on {host} port {port}; Ctrl-C ends it")
        while True:
            connection, (name, *_) = listener.accept()
            try:
                click.echo(f"{name}: done, {rdma_peer.serve(connection, found.verbs, usable)}")
            except (Error, OSError) as error:
                click.echo(f"{name}: {error}")


def _document(
    found: Survey, findings: list[Finding], usable: list[Usable], result: rdma_peer.Result | None
) -> dict[str, object]:
    return {
        "usable": [{"port": each.name, "gid_index": each.gid.index, "gid": each.gid.gid} for each in usable],
        "findings": [asdict(each) for each in findings],
        "devices": [asdict(each) for each in found.devices],
        "kernel_devices": found.kernel,
        "memlock_bytes": found.memlock,
        "peer": None if result is None else asdict(result),
    }


def _print(
    found: Survey, findings: list[Finding], usable: list[Usable], result: rdma_peer.Result | None
) -> None:
    chosen = {each.name: each.gid.index for each in usable}
    rows = [
        (
            f"{device.name}:{port.number}",
            port.state,
            port.link,
            str(port.mtu),
            port.interface or "-",
            str(gid.index) + ("*" if chosen.get(f"{device.name}:{port.number}") == gid.index else ""),
            gid.kind,
            gid.text,
        )
        for device in found.devices
        for port in device.ports
        for gid in port.gids
    ]
    if rows:
        print_table(("PORT", "STATE", "LINK", "MTU", "INTERFACE", "GID", "TYPE", "ADDRESS"), rows, right=(3,))
        click.echo("(* is the address that is used)")
        click.echo()
    limits = [
        (device.name, device.firmware or "-", *(str(value) for value in device.limits.values()))
        for device in found.devices
        if device.limits
    ]
    for row, device in zip(limits, found.devices, strict=False):
        shown = {name: "any" if value == ANY else value for name, value in device.limits.items()}
        pairs = " ".join(f"{name}={value}" for name, value in shown.items())
        click.echo(f"{row[0]}: firmware {row[1]}, {pairs}")
    if limits:
        click.echo()
    for finding in findings:
        click.echo(f"{finding.level:8}{finding.about}: {finding.what}")
        if finding.remedy:
            click.echo(f"        -> {finding.remedy}")
    if result is not None:
        click.echo()
        click.echo(f"{result.ours} with {result.theirs}, MTU {result.mtu}; every byte compared")
        click.echo(
            f"ping, {result.pings} times: {result.ping_us_min:.1f} us at least, {result.ping_us_median:.1f} us median"
        )
        click.echo(
            f"{result.bytes >> 20} MiB each way: "
            f"write {result.write_mib_s:.0f} MiB/s, read {result.read_mib_s:.0f} MiB/s"
        )


__all__ = ["check", "rdma"]
