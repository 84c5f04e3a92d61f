"""How connections between machines are protected: TLS 1.3, with certificates of the cluster's own authority.

    DATA/tls/ca.pem     the authority's certificate, which every machine has
    DATA/tls/ca.key     its key, 0600: where mgmtd runs (certificates.py)
    DATA/tls/node.pem   this machine's key and its certificate, 0600; replaced as a whole when it is renewed

Who calls a service expects a name in the certificate that says role, machine and cluster at once: a certificate of
another role, machine or cluster is refused. A cluster of one machine (`luciola up`) has none of this:
it listens on loopback and on sockets of its user alone.
"""

import ipaddress
import os
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from ..errors import ConfigError, NotFound
from .atomic_write import read_private, write_private

if TYPE_CHECKING:
    import grpc

AUTHORITY_FILE: Final = "ca.pem"
MACHINE_FILE: Final = "node.pem"
_CLUSTER: Final = "cluster "  # before its id in a token's file
_SERVICES: Final = {"Mgmtd": "mgmtd", "Meta": "meta", "Storage": "storage", "Replicas": "replicas"}
_KEY: Final = re.compile(rb"-----BEGIN PRIVATE KEY-----.*?-----END PRIVATE KEY-----\s*", re.DOTALL)
_CERTIFICATE: Final = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\s*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Material:
    """What one end of a connection needs, as PEM: whom it trusts, its key, and its certificate."""

    cluster_id: str
    authority: bytes
    key: bytes = field(repr=False)
    certificate: bytes

    def native(self) -> tuple[str, bytes, bytes, bytes]:
        """Return it as the native module takes it."""
        return self.cluster_id, self.authority, self.key, self.certificate


def service_name(role: str, host: str, cluster_id: str) -> str:
    """Return the name by which a certificate entitles to be `role` at the address `host`."""
    address = ipaddress.ip_address(host.partition("%")[0])
    return f"{role}.{re.sub('[:.]', '-', address.exploded)}.{cluster_id}.luciola"


def invitation_name(cluster_id: str) -> str:
    """Return the name by which a certificate lets its holder join."""
    return f"invitation.{cluster_id}.luciola"


class Tls:
    """Protects the connections of one process, with material that `read` returns as it is now."""

    def __init__(self, cluster_id: str, read: Callable[[], Material]) -> None:
        self.cluster_id: Final = cluster_id
        self._read = read
        self._lane: tuple[Material, ssl.SSLContext] | None = None

    def current(self) -> Material:
        """Return the certificates as they are now. Raises: as `read`."""
        return self._read()

    def channel(self) -> "tuple[Material, grpc.ChannelCredentials]":
        """Return what a channel of gRPC shows and trusts, and the material that is of."""
        import grpc

        material = self.current()
        return material, grpc.ssl_channel_credentials(
            material.authority, private_key=material.key, certificate_chain=material.certificate
        )

    def lane(self) -> ssl.SSLContext:
        """Return what a lane server shows; a client without a certificate of this cluster gets no greeting.

        It is the same one until the certificates are renewed. Raises: as `current`; ConfigError.
        """
        material = self.current()
        if self._lane is None or self._lane[0] != material:
            self._lane = material, _lane_context(material)
        return self._lane[1]

    def expected_name(self, service: str, host: str) -> str:
        """Return the name that a gRPC service at the address `host` has to have. Raises: ConfigError for a name."""
        try:
            return service_name(_SERVICES[service], host, self.cluster_id)
        except ValueError as error:
            raise ConfigError(
                f"{host}: certificates are of IP addresses: name the service by the address it listens at"
            ) from error

    def server(self) -> "grpc.ServerCredentials":
        """Return what a gRPC server shows; a client without a certificate of this cluster gets no answer."""
        import grpc

        used = self.current()

        def configuration(material: Material) -> "grpc.ServerCertificateConfiguration":
            return grpc.ssl_server_certificate_configuration(
                [(material.key, material.certificate)], root_certificates=material.authority
            )

        def renewed() -> "grpc.ServerCertificateConfiguration | None":
            nonlocal used
            material = self.current()
            if material == used:
                return None
            used = material
            return configuration(material)

        # None, for "as before", is missing in the stubs.
        fetch = cast("Callable[[], grpc.ServerCertificateConfiguration]", renewed)
        return grpc.dynamic_ssl_server_credentials(
            configuration(used), fetch, require_client_authentication=True
        )


def _lane_context(material: Material) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0  # each would be a message that no client waits for
    # It takes the key from a file alone: from one that has no name, and no longer exists than it is read.
    file = os.memfd_create("certificate", os.MFD_CLOEXEC)
    try:
        with open(file, "wb", closefd=False) as memory:
            memory.write(material.key + material.certificate)
        context.load_cert_chain(f"/proc/self/fd/{file}")
        context.load_verify_locations(cadata=material.authority.decode("ascii"))
    except (ssl.SSLError, UnicodeError) as error:
        raise ConfigError(f"the certificates of this machine cannot be used: {error}") from error
    finally:
        os.close(file)
    return context


class _Files:
    """Reads the certificates in a directory again when they have been replaced."""

    def __init__(self, directory: Path, cluster_id: str) -> None:
        self._directory = directory
        self._cluster_id = cluster_id
        self._seen: tuple[int, ...] = ()
        self._material: Material | None = None

    def __call__(self) -> Material:
        try:
            about = os.stat(self._directory / MACHINE_FILE)
            stamp = about.st_ino, about.st_size, about.st_mtime_ns
            if self._material is None or stamp != self._seen:
                self._material = load_material(self._directory, self._cluster_id)
                self._seen = stamp
        except FileNotFoundError as error:
            if self._material is None:
                raise NotFound(
                    "this machine's certificate is missing; `luciola certificate renew` gets another one",
                    path=str(self._directory),
                ) from error
        return self._material


def load_material(directory: Path, cluster_id: str) -> Material:
    """Return the certificates in a directory. Raises: FileNotFoundError; PermissionDenied, ConfigError."""
    try:
        authority = read_private(directory / AUTHORITY_FILE).encode("ascii")
        key, certificates = split_pem(read_private(directory / MACHINE_FILE).encode("ascii"))
    except UnicodeError as error:
        raise ConfigError(f"{directory}: no certificates: {error}") from error
    if not key or not certificates:
        raise ConfigError(f"{directory / MACHINE_FILE}: a key and its certificate are expected")
    return Material(cluster_id, authority, key, b"".join(certificates))


def save_material(directory: Path, material: Material) -> None:
    """Write the certificates of this machine, as one step for those who read them."""
    directory.mkdir(mode=0o700, exist_ok=True)
    write_private(directory / AUTHORITY_FILE, material.authority.decode("ascii"))
    write_private(directory / MACHINE_FILE, (material.key + material.certificate).decode("ascii"))


def tls_of(directory: Path, cluster_id: str) -> Tls:
    """Return the protection by the certificates in a directory."""
    return Tls(cluster_id, _Files(directory, cluster_id))


def encode_holding(material: Material) -> str:
    """Return what a token's file says after the token: of which cluster it is, and how to reach that."""
    pem = material.authority + material.key + material.certificate
    return f"{_CLUSTER}{material.cluster_id}\n{pem.decode('ascii')}"


def parse_holding(text: str) -> Tls | None:
    """Return what follows a token; None if nothing does. Raises: ConfigError."""
    _, _, rest = text.partition("\n")
    if not rest.strip():
        return None
    first, _, pem = rest.partition("\n")
    key, certificates = split_pem(pem.encode("ascii", "replace"))
    if not first.startswith(_CLUSTER) or not key or len(certificates) != 2:
        raise ConfigError("what follows the token is not as `luciola token create` writes it: make another")
    material = Material(first.removeprefix(_CLUSTER).strip(), certificates[0], key, certificates[1])
    return Tls(material.cluster_id, lambda: material)


def split_pem(pem: bytes) -> tuple[bytes, list[bytes]]:
    """Return the key in a text, empty without one, and its certificates."""
    key = _KEY.search(pem)
    return (b"" if key is None else key[0]), _CERTIFICATE.findall(pem)


__all__ = [
    "AUTHORITY_FILE",
    "MACHINE_FILE",
    "Material",
    "Tls",
    "encode_holding",
    "invitation_name",
    "load_material",
    "parse_holding",
    "save_material",
    "service_name",
    "split_pem",
    "tls_of",
]
