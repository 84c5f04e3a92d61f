"""`luciola up`, `down`, `status`: a cluster on this machine."""

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Final, Unpack

import click

from ..config import load
from ..errors import Timeout, Unavailable
from ..logfile import rotate_output
from ..mgmtd.placement import REPLICAS_MAX
from . import private_etcd, processes
from .administration import confirm
from .datadir import DataDir, check_shape, choose_shape
from .findings import Found
from .metadata_options import Given, metadata_options, wanted_metadata
from .metadata_switch import finish
from .options import config_option, data_option, json_option, yes_option
from .output import print_json, print_table
from .supervisor import (
    Supervisor,
    clean_stale_mounts,
    end_extra_mounts,
    end_leftovers,
    read_state,
)
from .survey import Report, survey

READY_S: Final = 220.0  # longer than the supervisor itself waits for its services
DOWN_S: Final = 60.0
# What a supervisor in the background reports: lines of a word and a text.
NOTE: Final = "note"
READY: Final = "ready"
FAILED: Final = "failed"
REASON_BYTES_MAX: Final = 4096  # one write to a pipe
PATIENCE_S: Final = 2.0  # after which a command says what it waits for


@click.command()
@data_option(required=True)
@click.option(
    "--storage-nodes",
    type=click.IntRange(1, 64),
    help="Storage nodes of a new cluster, or more than a cluster has.  [default: 3]",
)
@click.option(
    "--replicas",
    type=click.IntRange(1, REPLICAS_MAX),
    help="Copies of every chunk in a new cluster.  [default: 2, or 1 with one storage node]",
)
@click.option(
    "--racks",
    type=click.IntRange(0, 64),
    help="Label the storage nodes as if they stood in so many racks, one after the other: for trials of placement.",
)
@click.option(
    "--mount",
    "mountpoint",
    type=click.Path(path_type=Path, file_okay=False),
    help="Also mount the cluster there.",
)
@metadata_options
@config_option
@click.option(
    "--accept-metadata-loss",
    is_flag=True,
    help="Continue with a metadata store that is older than the cluster, or with an empty one. Asks first.",
)
@click.option(
    "--rebuild-mgmtd",
    is_flag=True,
    help="Make a new store for mgmtd of what the storage nodes remember. Asks first.",
)
@yes_option
@click.option("--detach", is_flag=True, help="Return when everything is usable; the cluster keeps running.")
@click.option("--ready-fd", type=int, hidden=True, help="Where a detached supervisor reports.")
def up(
    data_path: Path,
    storage_nodes: int | None,
    replicas: int | None,
    racks: int | None,
    mountpoint: Path | None,
    config_file: Path | None,
    accept_metadata_loss: bool,
    rebuild_mgmtd: bool,
    yes: bool,
    detach: bool,
    ready_fd: int | None,
    **metadata_given: Unpack[Given],
) -> None:
    """Start a cluster on this machine and keep it running.

    The data directory is created if need be; with the same directory the same cluster comes back. Three storage nodes
    with two copies are the default: every chunk survives the loss of any node, and a third node takes part so that the
    load of a lost one spreads.

    \b
    Example:
      luciola up --data /var/lib/luciola --mount /mnt/luciola
      luciola up --data /var/lib/luciola --metadata etcd
    """
    if config_file is not None:
        load(config_file)  # a mistake is refused before anything is started
    data = DataDir(data_path.absolute())
    metadata = wanted_metadata(metadata_given)
    check_shape(data, storage_nodes=storage_nodes, replicas=replicas, metadata=metadata)
    if metadata.is_private:
        private_etcd.require_programs()
    _confirm_losses(data, rebuild_mgmtd=rebuild_mgmtd, accept_metadata_loss=accept_metadata_loss, yes=yes)
    if detach:
        _detach(data, [*sys.argv[1:], "--yes"])
        return
    from .live_table import LiveTable

    _log_to_stderr()
    if ready_fd is not None:
        rotate_output()
    try:
        data.create()
        with data.supervised(), LiveTable(enabled=ready_fd is None) as view:
            end_leftovers(data)  # which hold the ports that the shape names
            finish(data)  # a migration that was interrupted
            shape = choose_shape(
                data, storage_nodes=storage_nodes, replicas=replicas, racks=racks, metadata=metadata
            )
            if accept_metadata_loss:
                from . import stores

                stores.set_aside_broken_meta(data)
            supervisor = Supervisor(
                data,
                shape,
                accept_metadata_loss=accept_metadata_loss,
                rebuild_mgmtd=rebuild_mgmtd,
                config_file=None if config_file is None else config_file.absolute(),
                mountpoint=None if mountpoint is None else mountpoint.absolute(),
                on_change=view.show,
                on_note=lambda text: _report(ready_fd, NOTE, text),
            )
            asyncio.run(supervisor.run(on_ready=lambda _: _report(ready_fd, READY)))
    except OSError as error:
        _report(ready_fd, FAILED, str(error))
        raise


def _confirm_losses(data: DataDir, *, rebuild_mgmtd: bool, accept_metadata_loss: bool, yes: bool) -> None:
    if not (rebuild_mgmtd or accept_metadata_loss):
        return
    from . import stores

    data.read_shape()
    if rebuild_mgmtd:
        confirm(stores.rebuild_question(data), yes=yes)
    if accept_metadata_loss:
        confirm(stores.META_QUESTION, yes=yes)


@click.command()
@data_option(required=True)
def down(data_path: Path) -> None:
    """Stop the cluster of a data directory and unmount it.

    \b
    Example:
      luciola down --data /var/lib/luciola
    """
    data = DataDir(data_path.absolute())
    data.read_shape()
    was_running = data.is_supervised()
    _end_supervisor(data)
    _await_stop(data)
    end_extra_mounts(data, except_pids=set())
    end_leftovers(data)
    clean_stale_mounts(data)
    click.echo("the cluster is stopped" if was_running else "the cluster was not running")


def _end_supervisor(data: DataDir) -> None:
    """Ask the supervisor to stop everything. One that has just begun writes its id into the lock in a moment."""
    deadline = time.monotonic() + PATIENCE_S
    while data.is_supervised() and not data.signal_supervisor(signal.SIGTERM):
        if time.monotonic() > deadline:
            raise Unavailable(
                "the cluster runs, but not as a process that can be signalled from here: "
                "end `luciola up` where it was started"
            )
        time.sleep(0.05)


def _await_stop(data: DataDir) -> None:
    """Return when the supervisor is gone; print on standard error what it is waiting for."""
    began = time.monotonic()
    is_printed = False
    while data.is_supervised():
        waited_s = time.monotonic() - began
        if waited_s > DOWN_S:
            raise Timeout(f"the cluster has not stopped within {DOWN_S:.0f} s; see {data.root / 'log'}")
        if waited_s > PATIENCE_S and not is_printed:
            is_printed = True
            left = [each for each in read_state(data).get("services", []) if each["pid"]]
            mounts = [each["id"] for each in left if each["kind"] == "mount"]
            what = f"programs that use {', '.join(mounts)}" if mounts else f"{len(left)} services"
            click.echo(f"luciola: waiting for {what}; they will be disconnected", err=True)
        time.sleep(0.05)


@click.command()
@data_option(required=True)
@json_option
def status(data_path: Path, as_json: bool) -> None:
    """Show the services and chains of a cluster on this machine.

    Exits with 0 when everything runs, every chunk has all its copies and every disk takes writes, 1 otherwise.

    \b
    Example:
      luciola status --data /var/lib/luciola
    """
    report = survey(DataDir(data_path.absolute()))
    if as_json:
        print_json(report)
    else:
        _print_status(report)
    if not report["healthy"]:
        sys.exit(1)


def _print_status(report: Report) -> None:
    copies = "one copy" if report["replicas"] == 1 else f"{report['replicas']} copies"
    click.echo(f"cluster {report['cluster_id']}: {report['phase']}, {copies} of every chunk")
    if report["services"]:
        rows = [
            (
                each["kind"],
                each["id"],
                str(each["pid"] or "-"),
                each["state"],
                str(each.get("restarts", 0)),
                each.get("role", ""),
            )
            for each in report["services"]
        ]
        print_table(("SERVICE", "ID", "PID", "STATE", "RESTARTS", "ROLE"), rows, right=(2, 4))
    for service in report["services"]:
        if "channel" in service:
            reason = f" (io_uring: {service['channel_reason']})" if service["channel_reason"] else ""
            click.echo(f"mount {service['id']}: requests by {service['channel']}{reason}")
    for chain in report["chains"]:
        if chain["state"] != "serving":
            members = " → ".join(f"{each['node']} {each['state']}" for each in chain["targets"])
            click.echo(f"chain {chain['id']}: {chain['state']}: {members}")
    serving = sum(chain["state"] == "serving" for chain in report["chains"])
    if report["chains"]:
        click.echo(f"chains: {serving} of {len(report['chains'])} complete")
    for note in report["notes"]:
        click.echo(note)
    if report["findings"]:
        click.echo(f"{_counted(report['findings'])}: luciola health")
    if "error" in report:
        click.echo(f"mgmtd: {report['error']}")


def _counted(findings: list[Found]) -> str:
    counts = Counter(finding["severity"] for finding in findings)
    return ", ".join(
        f"{counts[severity]} {severity}{'s' if counts[severity] > 1 else ''}"
        for severity in ("error", "warning")
        if counts[severity]
    )


def _log_to_stderr() -> None:
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )


def _report(descriptor: int | None, word: str, text: str = "") -> None:
    """Send a line to the command that waits for this one. The log may be on a full disk."""
    if descriptor is not None:
        line = f"{word} {' '.join(text.split())}".encode(errors="surrogateescape")[: REASON_BYTES_MAX - 1]
        with contextlib.suppress(BrokenPipeError):  # it waits no more
            os.write(descriptor, line + b"\n")


def _detach(data: DataDir, arguments: list[str]) -> None:
    """Run this command again in the background and return when it reports that everything is usable."""
    data.create()
    reader, writer = os.pipe()
    log = data.log("supervisor")
    processes.rotate(log)
    start = log.stat().st_size if log.exists() else 0
    rest = [argument for argument in arguments if argument != "--detach"]
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*processes.python("-m", "luciola"), *rest, "--ready-fd", str(writer)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(writer,),
            start_new_session=True,
        )
    os.close(writer)
    try:
        answer = _await_answer(reader, deadline_s=time.monotonic() + READY_S)
        if answer is None:
            return
        process.terminate()
        process.wait(DOWN_S)
    finally:
        os.close(reader)
    said = log.read_bytes()[start:].decode(errors="replace").strip().splitlines()
    reason = next((line for line in reversed(said) if line.startswith("luciola: ")), said[-1] if said else "")
    reason = answer or reason or f"it was not ready within {READY_S:.0f} s"
    where = "" if "(log: " in reason else f" (log: {log})"
    raise Unavailable(f"the cluster did not start: {reason.removeprefix('luciola: ')}{where}")


def _await_answer(reader: int, *, deadline_s: float) -> str | None:
    """Print notes until the supervisor is ready (None) or has failed: the reason, empty if it gave none."""
    os.set_blocking(reader, False)
    received = ""
    while time.monotonic() < deadline_s:
        try:
            data = os.read(reader, REASON_BYTES_MAX)
        except BlockingIOError:
            time.sleep(0.02)
            continue
        if not data:
            break  # it has ended
        received += data.decode(errors="surrogateescape")
        *lines, received = received.split("\n")
        for word, _, text in (line.partition(" ") for line in lines):
            if word == READY:
                return None
            if word == FAILED:
                return text
            click.echo(f"luciola: {text}", err=True)
    return ""


__all__ = ["down", "status", "up"]
