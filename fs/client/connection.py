"""Which cluster, in whose name: how a program reaches it, and one native client in each process that does.

C1  A connection is its parameters. The native client belongs to one process; in a child (fork, spawn, pickle) the
    first use reconnects.
C2  A client of another process is never used, closed or freed: its threads do not exist here.
"""

import atexit
import contextlib
import os
import shlex
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import luciola_core

from ..config import ClientConfig, checked, load, rdma_options
from ..errors import Error, InvalidArgument, NotFound, Timeout, Unavailable
from ..wire.cluster import FILE_NAME, load_cluster
from ..wire.credentials import CLIENT, TRUSTED, Token, load_tls
from ..wire.tls import Tls, parse_holding
from ..wire.token_source import Given, Kept, SecretFile, Source, TokenFile
from .renewal import Renewal

if TYPE_CHECKING:
    from .file_system import FileSystem


@dataclass(frozen=True)
class Parameters:
    """What identifies a connection; this is what is pickled."""

    address: str  # data directory, or "host:port" of the lane of mgmtd, several with commas between them
    secret_file: str | None
    token: str | None = field(repr=False)
    config: ClientConfig
    token_file: str | None = None  # read whenever a process connects, and when it changes

    def resolve(self) -> tuple[str, Source]:
        """Address, and where the token comes from.

        Raises: NotFound, InvalidArgument; ConfigError, PermissionDenied for a cluster file that cannot be used;
        Unauthenticated for a token that is none.
        """
        if is_address(self.address):
            return self.address, self._source(self.secret_file)
        data = Path(self.address)
        if not data.is_dir():
            raise NotFound(
                "neither a data directory on this machine nor an address host:port", path=self.address
            )
        cluster = load_cluster(data / FILE_NAME)
        return cluster.mgmtd_lane, self._source(self.secret_file or cluster.secret_file)

    def tls(self) -> Tls | None:
        """Return what protects connections to other machines. Raises: as `resolve`."""
        if not is_address(self.address):
            return load_cluster(Path(self.address) / FILE_NAME).tls()
        if self.token is not None:
            return parse_holding(self.token)
        return None if self.token_file is None else load_tls(Path(self.token_file))

    def token_of_calls(self) -> Kept:
        """Return the token for gRPC, which shows it as it is. Raises: as `resolve`, and what its source does."""
        _, source = self.resolve()
        return Kept(source.short_lived() if isinstance(source, SecretFile) else source)

    def _source(self, secret_file: str | None) -> Source:
        if self.token is not None:
            return Given(Token.parse(self.token))
        if self.token_file is not None:
            return TokenFile(Path(self.token_file))
        if secret_file is None:
            raise InvalidArgument(
                f"connecting to {self.address} needs token_file=PATH (from `luciola token create`), token=TEXT, or "
                "secret_file=PATH (the cluster's secret, DATA/secret)"
            )
        # A holder of the secret may mint any token; root without trust would be squashed to `nobody` (65534).
        role = TRUSTED if os.geteuid() == 0 else CLIENT
        return SecretFile(Path(secret_file), role=role)


def is_address(text: str) -> bool:
    """Return whether `text` is "host:port", or several of those with commas between them, rather than a directory."""
    each = (address.rpartition(":") for address in text.split(","))
    return all(colon and host and port.isdigit() for host, colon, port in each) and "/" not in text


class Connection:
    """The native client of this process, made when it is first needed."""

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        self._lock = threading.Lock()
        self._process = 0
        self._client: luciola_core.Client | None = None
        self._renewal: Renewal | None = None  # of this process's client
        self._closed = False
        _connections.add(self)

    @property
    def client(self) -> luciola_core.Client:
        """Raises: InvalidArgument after `close`; as connecting raises."""
        client = self._client
        if client is not None and self._process == os.getpid():
            return client
        return self._connect()

    def _connect(self) -> luciola_core.Client:
        with self._lock:
            if self._closed:
                raise InvalidArgument("this file system is closed; connect again")
            if self._client is None:
                self._client = self._open()
                self._process = os.getpid()
            return self._client

    def _open(self) -> luciola_core.Client:
        address, source = self.parameters.resolve()
        token, tls = source(), self.parameters.tls()
        with explained(self.parameters.address, address):
            client = _native(address, token, source, self.parameters.config, tls)
        if not isinstance(source, Given):
            # The thread must not keep a connection that is not used any more.
            myself = weakref.ref(self)
            self._renewal = Renewal(
                source,
                token,
                lambda: getattr(myself(), "_client", None),
                tls=tls,
                read_tls=self.parameters.tls,
            )
            self._renewal.start()
        return client

    def close(self) -> None:
        """Write back dirty data and end the session. Raises: the first error of a write-back."""
        with self._lock:
            self._closed = True
            client, self._client = self._client, None
            renewal, self._renewal = self._renewal, None
        if renewal is not None:
            renewal.stop()
        if client is not None:
            client.close()

    def after_fork(self) -> None:
        """In the child: the lock may be held by a thread that is not here, and the client is the parent's."""
        self._lock = threading.Lock()
        if self._client is not None:
            _foreign.append(self._client)
            self._client = self._renewal = None

    @property
    def is_closed(self) -> bool:
        return self._closed


_connections: "weakref.WeakSet[Connection]" = weakref.WeakSet()
_foreign: list[object] = []  # clients of the parent process, kept so that nothing frees them (C2)


def _after_fork() -> None:
    for connection in list(_connections):
        connection.after_fork()


def _at_exit() -> None:
    for connection in list(_connections):
        # No caller is left for the error; the native client has logged it.
        with contextlib.suppress(OSError):
            connection.close()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)


@contextlib.contextmanager
def explained(cluster: str, address: str) -> Iterator[None]:
    """An error of connecting says what to do about a cluster on this machine that does not run."""
    try:
        yield
    except (Unavailable, Timeout) as error:
        advice = "is this the address of mgmtd (mgmtd_lane in cluster.json), and does the cluster run?"
        if not is_address(cluster):
            advice = f"is the cluster running? `luciola up --data {shlex.quote(cluster)}` starts it"
        raise type(error)(f"no answer at {address}: {advice} ({error})") from error


def _native(
    address: str, token: Token, source: Source, config: ClientConfig, tls: Tls | None
) -> luciola_core.Client:
    return luciola_core.Client(
        address.split(","),
        token.claims,
        token.key,
        token_source=None if isinstance(source, Given) else source.name,
        certificates=None if tls is None else tls.current().native(),
        description=f"python {os.getpid()}",
        deadline_ms=config.deadline_ms,
        retry_first_ms=config.retry_first_ms,
        retry_max_ms=config.retry_max_ms,
        connections_per_node=config.connections_per_node,
        write_buffer_bytes=config.write_buffer_bytes,
        read_ahead_bytes=config.read_ahead_bytes,
        attribute_timeout_ms=config.attribute_timeout_ms,
        rdma_transmissions=config.rdma_transmissions or None,
        **rdma_options(config),
    )


def connect(
    address_or_data_dir: str | bytes | os.PathLike[str],
    *,
    secret_file: str | os.PathLike[str] | None = None,
    token: str | None = None,
    token_file: str | os.PathLike[str] | None = None,
    config: ClientConfig | str | os.PathLike[str] | None = None,
) -> "FileSystem":
    """Return the file system of a cluster.

    `address_or_data_dir`: the data directory of a cluster on this machine (`luciola up --data DIR`), whose secret is
    used; or "host:port" of its manager, with `token_file`, a file that holds a token and that you alone may read, with
    the `token` itself, or with the file of its secret. Of several, the token is used, then the token's file.
    `config`: a ClientConfig, or a configuration file, whose [client] table is used.

    Raises: NotFound if there is no such cluster here; InvalidArgument without a secret or token;
    Unauthenticated if they are wrong or have expired; Unavailable if no service answers within `deadline_ms` or 20 s;
    PermissionDenied if the secret is not yours; ConfigError for a setting out of bounds, and for a secret or token in a
    file that others may read.
    """
    from .file_system import FileSystem

    text = os.fsdecode(address_or_data_dir)
    if not is_address(text):
        text = str(Path(text).absolute())
    if isinstance(config, ClientConfig):
        config = checked(config, where="client")
    else:
        config = ClientConfig() if config is None else load(Path(config)).client
    secret, of_token = (
        None if each is None else str(Path(each).absolute()) for each in (secret_file, token_file)
    )
    parameters = Parameters(text, secret, token, config, of_token)
    file_system = FileSystem(Connection(parameters))
    file_system.flush()  # connects: errors belong here, not to the first use
    return file_system


@contextlib.contextmanager
def naming(path: object, second: object = None) -> Iterator[None]:
    """Errors from within name the path, as those of `os` do."""
    try:
        yield
    except Error as error:
        if error.filename is None:
            error.filename = path
            error.filename2 = second
        raise


__all__ = ["Connection", "Parameters", "connect", "explained", "is_address", "naming"]
