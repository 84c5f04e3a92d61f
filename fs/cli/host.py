"""`luciola init`, `invite`, `join` and `serve`: a cluster of several machines.

Each machine has a data directory, whose cluster.json says where the managers are and what runs here; `serve` runs it
under the same supervisor as `luciola up`. A machine that joins is let in by an invitation: a file with the cluster's
secret, which its services need, and a certificate with which it asks for its own. It is to be carried as that is,
and deleted.
"""

import asyncio
import contextlib
import ipaddress
import json
import logging
import os
import secrets
import socket
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Unpack

import click

from ..config import LABEL_RULE, LABELS, PORT_MAX, is_label, load
from ..errors import AlreadyExists, ConfigError, InvalidArgument, NotFound
from ..ids import MANAGER_NODE, META_NODE, STORAGE_NODE
from ..mgmtd.placement import REPLICAS_MAX
from ..wire import Cluster, Tls, create_secret, encode_cluster, parse_addresses, parse_cluster, write_private
from ..wire.addresses import ADDRESSES_MAX, format_address, parse_address, second_port
from ..wire.certificates import INVITATION_S, Issuer, Subject
from ..wire.pb import mgmtd_pb2 as pb
from ..wire.private_file import read_private_file
from ..wire.tls import encode_holding, parse_holding, save_material
from .audit import note
from .certificate import renew
from .datadir import KINDS, PORTS_EACH, DataDir, Host, Shape, metadata_at
from .metadata_options import Given, access_options, wanted_metadata
from .mgmtd_client import MgmtdClient
from .options import Decorator, config_option, data_option
from .supervisor import Supervisor, end_leftovers

BASE_PORT: Final = 7410
ROLES: Final = KINDS


def parse_roles(_: click.Context, __: click.Parameter, text: str) -> tuple[str, ...]:
    """Return kinds of services, which commas separate, in the order of ROLES. Raises: click.BadParameter."""
    given = text.split(",")
    if unknown := [role for role in given if role not in ROLES]:
        raise click.BadParameter(f"{unknown[0]!r} is none of {', '.join(ROLES)}")
    return tuple(role for role in ROLES if role in given)


def parse_labels(
    _: click.Context, __: click.Parameter, texts: tuple[str, ...]
) -> tuple[tuple[str, str], ...]:
    """Return each LEVEL=NAME as (level, name). Raises: click.BadParameter."""
    labels = tuple((level, name) for level, _, name in (text.partition("=") for text in texts))
    if any(level not in LABELS or not is_label(name) for level, name in labels):
        levels = " or ".join(f"{each}=NAME" for each in LABELS)
        raise click.BadParameter(f"{levels} is expected, where NAME is {LABEL_RULE}")
    if len(dict(labels)) < len(labels):
        raise click.BadParameter("a machine stands in one room, one rack and one host")
    return labels


address_option: Final = click.option(
    "--address", required=True, metavar="IP", help="Of this machine: where others reach its services."
)
label_option: Final = click.option(
    "--label",
    "labels",
    metavar="LEVEL=NAME",
    callback=parse_labels,
    multiple=True,
    help="Room, rack or host that the machine stands in: copies keep apart (repeat).",
)
insecure_option: Final = click.option(
    "--insecure",
    is_flag=True,
    help='Listen for other machines though bytes are not protected ([storage] wire = "none"): for a trusted network.',
)


def roles_option(default: str) -> Decorator:
    """--roles: what runs on this machine."""
    return click.option(
        "--roles",
        metavar="ROLE,…",
        callback=parse_roles,
        default=default,
        show_default=True,
        help="Services of this machine, of mgmtd, meta and storage.",
    )


@dataclass(frozen=True)
class Invitation:
    """What a machine that joins has to know of a cluster."""

    cluster: Cluster
    secret: str = field(repr=False)
    replicas: int
    holding: str = field(repr=False)  # certificates, as in a token's file

    def write(self, path: Path) -> None:
        cluster = encode_cluster(replace(self.cluster, secret_file="", tls_directory=""))
        record = {
            "cluster": cluster,
            "secret": self.secret,
            "replicas": self.replicas,
            "holding": self.holding,
        }
        write_private(path, json.dumps(record, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> "Invitation":
        """Raises: NotFound; PermissionDenied if others may read it; ConfigError if it is not one."""
        try:
            text = read_private_file(path, what="an invitation")
        except FileNotFoundError as error:
            raise NotFound("no invitation here; `luciola invite` writes one", path=str(path)) from error
        return cls.parse(path, text)

    @classmethod
    def parse(cls, path: Path, text: str) -> "Invitation":
        """Return the invitation in `text`, the content of the file at `path`. Raises: ConfigError if it is none."""
        try:
            record = json.loads(text)
            secret, replicas = str(record["secret"]), int(record["replicas"])
            cluster, holding = parse_cluster(path, record["cluster"]), str(record["holding"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise ConfigError(
                f"{path}: not an invitation, as `luciola invite` of this release writes it"
            ) from error
        return cls(cluster, secret, replicas, holding)

    def tls(self) -> Tls:
        """Return what protects the connection over which this machine gets its own certificate."""
        found = parse_holding(f"\n{self.holding}")
        if found is None:
            raise ConfigError("an invitation without a certificate: `luciola invite` writes another")
        return found


@click.command()
@data_option(required=True)
@address_option
@click.option(
    "--managers",
    "manager_hosts",
    metavar="IP,…",
    help="Machines that are to run mgmtd, this one first; several need --metadata.  [default: this machine]",
)
@roles_option("mgmtd,meta,storage")
@click.option(
    "--storage-nodes",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Over how many storage nodes the cluster is laid out, when they are there. More may come later.",
)
@click.option(
    "--replicas",
    type=click.IntRange(1, REPLICAS_MAX),
    default=2,
    show_default=True,
    help="Copies of every chunk.",
)
@click.option(
    "--base-port",
    type=click.IntRange(1, PORT_MAX + 1 - PORTS_EACH * len(KINDS)),
    default=BASE_PORT,
    show_default=True,
    help="The first port of services, on each machine of the cluster: mgmtd has two, then meta, then storage.",
)
@label_option
@access_options
@insecure_option
def init(
    data_path: Path,
    *,
    address: str,
    manager_hosts: str | None,
    roles: tuple[str, ...],
    storage_nodes: int,
    replicas: int,
    base_port: int,
    labels: tuple[tuple[str, str], ...],
    insecure: bool,
    **metadata_given: Unpack[Given],
) -> None:
    """Make a cluster of several machines, on the first of them. `luciola serve` runs it.

    Others join with an invitation (`luciola invite`, `luciola join`). With the metadata in an etcd, and mgmtd and meta
    on several machines, the cluster survives the loss of any of them.

    \b
    Example:
      luciola init --data /var/lib/luciola --address 10.0.0.1
      luciola init --data /var/lib/luciola --address 10.0.0.1 --managers 10.0.0.1,10.0.0.2,10.0.0.3 \\
        --metadata etcd://10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379
    """
    data = DataDir(data_path.absolute())
    managers = (manager_hosts or address).split(",")
    for each in (address, *managers):
        _check_address(each)
    wanted = wanted_metadata({**metadata_given, "metas": None, "managers": None})
    if wanted.is_private:
        raise InvalidArgument("several machines share an etcd of their own: --metadata etcd://HOST:PORT,…")
    if len(managers) > ADDRESSES_MAX or len(set(managers)) < len(managers):
        raise InvalidArgument(f"--managers: up to {ADDRESSES_MAX} machines, each once")
    if len(managers) > 1 and not wanted.where:
        raise InvalidArgument("several managers need replicated metadata: --metadata etcd://HOST:PORT,…")
    if managers[0] != address or not {"mgmtd", "meta"} <= set(roles):
        raise InvalidArgument(
            "a cluster begins on a machine that runs mgmtd and meta, the first of --managers"
        )
    if replicas > storage_nodes:
        raise InvalidArgument(f"{replicas} copies of a chunk need as many storage nodes, not {storage_nodes}")
    _check_unused(data)
    data.create()
    with contextlib.suppress(AlreadyExists):  # of an attempt that ended here
        create_secret(data.secret)
    cluster = Cluster(
        cluster_id=secrets.token_hex(8),
        mgmtd_lane=",".join(format_address(each, base_port) for each in managers),
        mgmtd_grpc=",".join(format_address(each, second_port(base_port)) for each in managers),
        secret_file=str(data.secret),
        metadata=metadata_at(wanted, wanted.addresses) if wanted.where else None,
        tls_directory=str(data.tls),
    )
    issuer = Issuer.create(cluster.cluster_id)
    issuer.save(data.tls)
    save_material(data.tls, issuer.equip(Subject(socket.gethostname(), address, roles)))
    host = Host(
        address,
        managers=(MANAGER_NODE,),
        metas=(META_NODE,),
        storage=(STORAGE_NODE,) if "storage" in roles else (),
        labels=labels,
        insecure=insecure,
        first_storage=storage_nodes,
        base_port=base_port,
    )
    data.write_shape(Shape(cluster, len(host.storage), replicas, host=host))
    click.echo(f"cluster {cluster.cluster_id}: luciola serve --data {data.root} runs what is on this machine")


@click.command()
@data_option(required=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="File to write it to, which only you may read then.",
)
def invite(data_path: Path, *, out: Path) -> None:
    """Write an invitation, with which other machines join the cluster of this one, where mgmtd runs.

    It holds the cluster's secret: copy it over an encrypted connection, and delete it when the machines have joined.
    Machines may join with it for 7 days. One that only mounts the cluster needs a token instead (`luciola token create
    --role trusted`).

    \b
    Example:
      luciola invite --data /var/lib/luciola --out invitation
    """
    data = DataDir(data_path.absolute())
    shape = data.read_shape()
    if shape.host is None:
        raise InvalidArgument(
            "this cluster was made by `luciola up`, and listens on this machine alone; "
            "`luciola init` makes one of several"
        )
    issuer = Issuer.load(data.tls, shape.cluster.cluster_id)
    if issuer is None:
        raise InvalidArgument(
            "machines are invited where mgmtd runs, which has the key of the cluster's certificate authority",
            path=str(data.tls),
        )
    holding = encode_holding(issuer.equip(Subject("invitation", is_invitation=True), lifetime_s=INVITATION_S))
    Invitation(shape.cluster, shape.cluster.secret().hex(), shape.replicas, holding).write(out)
    note(data, "invite", {"out": str(out.absolute())})


@click.command()
@click.argument("manager", metavar="ADDRESS")
@click.option(
    "--token-file",
    "invitation_file",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The invitation (`luciola invite`).",
)
@data_option(required=True)
@address_option
@roles_option("storage")
@label_option
@insecure_option
def join(
    manager: str,
    *,
    invitation_file: Path,
    data_path: Path,
    address: str,
    roles: tuple[str, ...],
    labels: tuple[tuple[str, str], ...],
    insecure: bool,
) -> None:
    """Make this machine one of a cluster, whose mgmtd at ADDRESS gives its services their numbers.

    \b
    Example:
      luciola join 10.0.0.1 --token-file invitation --data /var/lib/luciola --address 10.0.0.2
    """
    invitation = Invitation.read(invitation_file)
    _check_address(address)
    data = DataDir(data_path.absolute())
    _check_unused(data)
    cluster = replace(invitation.cluster, secret_file=str(data.secret), tls_directory=str(data.tls))
    managers = _managers_at(cluster, address) if "mgmtd" in roles else ()
    _, base_port = parse_address(parse_addresses(cluster.mgmtd_lane)[0])
    if "meta" in roles and cluster.metadata is None:
        raise InvalidArgument("this cluster has its metadata in one store, which runs on one machine")
    data.create()
    write_private(data.secret, invitation.secret + "\n")
    asked_first = _with_port(manager, second_port(base_port))
    known = [each for each in parse_addresses(cluster.mgmtd_grpc) if each != asked_first]
    asked = replace(cluster, mgmtd_grpc=",".join([asked_first, *known][:ADDRESSES_MAX]))
    host = Host(address, managers=managers, labels=labels, insecure=insecure, base_port=base_port)
    host = asyncio.run(_admitted(host, asked, roles, invitation.tls()))
    data.write_shape(Shape(cluster, len(host.storage), invitation.replicas, has_stores=True, host=host))
    click.echo(
        f"joined cluster {cluster.cluster_id}: luciola serve --data {data.root} runs what is on this machine"
    )


@click.command()
@data_option(required=True)
@config_option
def serve(data_path: Path, *, config_file: Path | None) -> None:
    """Run the services of this machine, of a cluster of several, until SIGTERM: what the systemd unit starts.

    \b
    Example:
      luciola serve --data /var/lib/luciola
    """
    if config_file is not None:
        load(config_file)  # a mistake is refused before anything is started
    data = DataDir(data_path.absolute())
    shape = data.read_shape()
    if shape.host is None:
        raise InvalidArgument(
            f"this cluster was made by `luciola up`, which runs it: luciola up --data {data.root}",
            path=str(data.root),
        )
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    data.create()
    with data.supervised():
        end_leftovers(data)
        supervisor = Supervisor(
            data, shape, config_file=None if config_file is None else config_file.absolute()
        )
        asyncio.run(supervisor.run(on_ready=lambda _: _notify_ready()))


def _notify_ready() -> None:
    """Report to systemd, if that started this process (sd_notify(3))."""
    logging.getLogger(__name__).info("the services of this machine run")
    place = os.environ.get("NOTIFY_SOCKET", "")
    if not place:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notifier:
        notifier.sendto(b"READY=1", "\0" + place[1:] if place.startswith("@") else place)


async def _admitted(host: Host, asked: Cluster, roles: tuple[str, ...], tls: Tls) -> Host:
    """Get this machine its certificate; return the host with numbers of its services.

    Raises: InvalidArgument if another cluster answers; PermissionDenied, Unavailable.
    """
    async with MgmtdClient.connect(asked, tls=tls) as manager:
        routing = await manager.routing()
        if routing.cluster_id != asked.cluster_id:
            raise InvalidArgument(
                f"cluster {routing.cluster_id} answers at {asked.mgmtd_grpc}, the invitation is to {asked.cluster_id}"
            )
        name = socket.gethostname()
        await renew(manager, asked, Subject(name, host.address, roles), tls.current().authority)
        kinds = {"meta": pb.NODE_META, "storage": pb.NODE_STORAGE}
        numbers = {
            role: (await manager.reserve_node(kind, host=name),)
            for role, kind in kinds.items()
            if role in roles
        }
    return replace(host, metas=numbers.get("meta", ()), storage=numbers.get("storage", ()))


def _check_unused(data: DataDir) -> None:
    """Raises: AlreadyExists if the directory is one of a cluster."""
    if data.cluster.exists():
        raise AlreadyExists("this directory belongs to a cluster; name another one", path=str(data.root))


def _check_address(address: str) -> None:
    """Raises: InvalidArgument if it is no address of a machine."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError as error:
        raise InvalidArgument(
            f"an IP address is expected, by which other machines reach it: {address!r}"
        ) from error
    if found.is_unspecified or found.is_multicast:
        raise InvalidArgument(f"other machines cannot reach a machine as {address}")


def _managers_at(cluster: Cluster, address: str) -> tuple[int, ...]:
    """Return the number of the manager on the machine with that address. Raises: InvalidArgument."""
    for number, known in enumerate(parse_addresses(cluster.mgmtd_lane), MANAGER_NODE):
        if ipaddress.ip_address(parse_address(known)[0]) == ipaddress.ip_address(address):
            return (number,)
    raise InvalidArgument(
        f"{address} is none of the machines that run mgmtd, which `luciola init --managers` names: {cluster.mgmtd_lane}"
    )


def _with_port(manager: str, port: int) -> str:
    """Return the gRPC address of a manager that is named with its port or without: at `port`."""
    with contextlib.suppress(ValueError):
        return format_address(str(ipaddress.ip_address(manager)), port)
    parse_address(manager)
    return manager


__all__ = ["init", "invite", "join", "serve"]
