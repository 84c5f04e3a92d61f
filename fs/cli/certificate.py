"""`luciola certificate`, and what gets a machine its certificate: when it joins, and before the one that it has ends.

A machine where mgmtd runs has the key of the authority, and could issue its own; it asks mgmtd like any other, unless
its certificate has ended: no service would listen to it then.
"""

import asyncio
import contextlib
import logging
import socket
import time
from pathlib import Path
from typing import Final

import click

from ..errors import Error, InvalidArgument
from ..wire import Cluster, write_private
from ..wire.certificates import KEY_FILE, ROLES, About, Issuer, Subject, create_request, describe
from ..wire.credentials import format_unix_s
from ..wire.tls import Material, invitation_name, save_material, service_name
from .datadir import DataDir
from .mgmtd_client import MgmtdClient
from .options import data_option, json_option
from .output import print_json

log = logging.getLogger(__name__)

LOOK_S: Final = 3600.0  # between two looks at the certificate: thirty days are left when it is renewed first
LOOKS: Final = 60  # in what is left of a short lifetime


async def renew(manager: MgmtdClient, cluster: Cluster, subject: Subject, authority: bytes) -> None:
    """Make a key, get its certificate and write both. Raises: PermissionDenied, Unavailable, Timeout."""
    key, request = create_request()
    reply = await manager.issue_certificate(request, subject)
    directory = Path(cluster.tls_directory)
    directory.mkdir(mode=0o700, exist_ok=True)
    if reply.authority_key:
        write_private(directory / KEY_FILE, reply.authority_key.decode("ascii"))
    save_material(directory, Material(cluster.cluster_id, authority, key, reply.certificate))


async def keep_certificate(cluster: Cluster, address: str, stopping: asyncio.Event) -> None:
    """Renew this machine's certificate, whenever a third of its lifetime is left, until `stopping`."""
    tls = cluster.tls()
    if tls is None:
        return
    while not stopping.is_set():
        about = describe(tls.current().certificate)
        now = time.time()
        if about.is_due(now):
            try:
                await _renew_here(cluster, address, about, now_unix_s=now)
                about = describe(tls.current().certificate)
                log.info("certificate renewed, valid until %s", format_unix_s(round(about.ends_unix_s)))
            except Error as error:
                log.warning(
                    "this machine's certificate ends at %s and cannot be renewed: %s",
                    *(format_unix_s(round(about.ends_unix_s)), error),
                )
        pause_s = min(LOOK_S, max(1.0, (about.ends_unix_s - now) / LOOKS))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), pause_s)


async def _renew_here(cluster: Cluster, address: str, about: About, *, now_unix_s: float) -> None:
    tls = cluster.tls()
    assert tls is not None, "a cluster of several machines has certificates"
    directory = Path(cluster.tls_directory)
    subject = Subject(
        about.name or socket.gethostname(), address, roles_of(about, address, cluster.cluster_id)
    )
    issuer = Issuer.load(directory, cluster.cluster_id)
    if issuer is not None and now_unix_s >= about.ends_unix_s:
        save_material(directory, issuer.equip(subject))
        return
    async with MgmtdClient.connect(cluster) as manager:
        await renew(manager, cluster, subject, tls.current().authority)


def roles_of(about: About, address: str, cluster_id: str) -> tuple[str, ...]:
    """Return what a certificate entitles to at an address."""
    return tuple(role for role in ROLES if service_name(role, address, cluster_id) in about.names)


def equip_holder(cluster: Cluster, name: str, lifetime_s: int) -> Material:
    """Return a key and its certificate for the holder of a token. Raises: as `renew`, where mgmtd does not run."""
    tls = cluster.tls()
    assert tls is not None, "a cluster of several machines has certificates"
    subject = Subject(name)
    issuer = Issuer.load(Path(cluster.tls_directory), cluster.cluster_id)
    if issuer is not None:
        return issuer.equip(subject, lifetime_s=lifetime_s)
    key, request = create_request()

    async def ask() -> bytes:
        async with MgmtdClient.connect(cluster) as manager:
            return (await manager.issue_certificate(request, subject, lifetime_s=lifetime_s)).certificate

    return Material(cluster.cluster_id, tls.current().authority, key, asyncio.run(ask()))


@click.group()
def certificate() -> None:
    """Look at this machine's certificate, and get another one.

    \b
    Example:
      luciola certificate show --data /var/lib/luciola
    """


@certificate.command()
@data_option(required=True)
@json_option
def show(data_path: Path, *, as_json: bool) -> None:
    """Show what this machine's certificate entitles to, and until when.

    \b
    Example:
      luciola certificate show --data /var/lib/luciola
    """
    cluster, address = _several(data_path)
    tls = cluster.tls()
    assert tls is not None, "looked at above"
    about = describe(tls.current().certificate)
    roles = roles_of(about, address, cluster.cluster_id)
    has_ended = time.time() >= about.ends_unix_s
    if as_json:
        print_json(
            {
                "name": about.name,
                "address": address,
                "roles": list(roles),
                "ends_unix_s": round(about.ends_unix_s),
                "expired": has_ended,
            }
        )
        return
    click.echo(f"machine  {about.name} at {address}")
    click.echo(f"roles    {', '.join(roles) or '-'}")
    ended = " (it has expired)" if has_ended else ""
    click.echo(f"expires  {format_unix_s(round(about.ends_unix_s))}{ended}")


@certificate.command(name="renew")
@data_option(required=True)
@click.option(
    "--token-file",
    "invitation_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="An invitation (`luciola invite`): where the certificate has expired, or is lost.",
)
def renew_command(data_path: Path, *, invitation_file: Path | None) -> None:
    """Get this machine another certificate. `luciola serve` does that by itself before one ends.

    \b
    Example:
      luciola certificate renew --data /var/lib/luciola
      luciola certificate renew --data /var/lib/luciola --token-file invitation
    """
    cluster, address = _several(data_path)
    if invitation_file is None:
        tls = cluster.tls()
        assert tls is not None, "looked at above"
        about = describe(tls.current().certificate)
        asyncio.run(_renew_here(cluster, address, about, now_unix_s=time.time()))
    else:
        _renew_by_invitation(data_path, cluster, address, invitation_file)


def _renew_by_invitation(data_path: Path, cluster: Cluster, address: str, invitation_file: Path) -> None:
    from .host import Invitation  # which uses what is above

    invitation = Invitation.read(invitation_file)
    if invitation.cluster.cluster_id != cluster.cluster_id:
        raise InvalidArgument(
            f"the invitation is to cluster {invitation.cluster.cluster_id}, this is one of {cluster.cluster_id}"
        )
    host = DataDir(data_path.absolute()).read_shape().host
    assert host is not None, "looked at above"
    running = {"mgmtd": host.managers, "meta": host.metas, "storage": host.storage}
    subject = Subject(socket.gethostname(), address, tuple(role for role in ROLES if running[role]))
    tls = invitation.tls()
    assert invitation_name(cluster.cluster_id) in describe(tls.current().certificate).names, "it is one"

    async def ask() -> None:
        async with MgmtdClient.connect(cluster, tls=tls) as manager:
            await renew(manager, cluster, subject, tls.current().authority)

    asyncio.run(ask())


def _several(data_path: Path) -> tuple[Cluster, str]:
    """Return the cluster of this machine, and its address. Raises: InvalidArgument if it has no certificates."""
    shape = DataDir(data_path.absolute()).read_shape()
    if shape.host is None or not shape.cluster.tls_directory:
        raise InvalidArgument(
            "this cluster runs on one machine, or was made by an earlier release: it has no certificates"
        )
    return shape.cluster, shape.host.address


__all__ = ["certificate", "equip_holder", "keep_certificate", "renew", "roles_of"]
