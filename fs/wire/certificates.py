"""A cluster's certificate authority, and the certificates it issues to machines and to holders of tokens.

The authority is made by `luciola init`; its key is kept where mgmtd runs. A machine makes its own key and asks for a
certificate of it: when it joins, with what its invitation holds, later with the certificate that it has. What a
certificate entitles to are its names (`tls.service_name`): one for each role of each machine, so a storage
node's certificate is not mgmtd's, and that of one machine not another's.

    C1  the key of a machine never leaves it; the key of the authority leaves it for machines that join to run mgmtd
    C2  a certificate never outlives the authority, and its names are those that the issuer decided on, whatever the
        request says
"""

import datetime as dt
import ipaddress
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ..errors import ConfigError, InvalidArgument, PermissionDenied
from .atomic_write import write_private
from .tls import AUTHORITY_FILE, Material, Tls, invitation_name, service_name

ROLES: Final = ("mgmtd", "meta", "storage")
# A cluster is to outlive its first disks; replacing the authority of a running one is not built.
AUTHORITY_S: Final = 20 * 366 * 86_400
# Renewed when a third is left: a machine may be switched off for a month.
MACHINE_S: Final = 90 * 86_400
INVITATION_S: Final = 7 * 86_400
HOLDER_S_MAX: Final = 366 * 86_400  # as long as a token may last
BACKDATED_S: Final = 3600  # clocks of machines need not agree
NAME_MAX: Final = 64  # characters of a common name, by X.509
KEY_FILE: Final = "ca.key"

_CURVE: Final = ec.SECP256R1()
_DIGEST: Final = hashes.SHA256()
# What cryptography raises for bytes that are no certificate, request or key; not all of them are a ValueError.
_UNREADABLE: Final = (
    ValueError,
    TypeError,
    InvalidSignature,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


@dataclass(frozen=True)
class Subject:
    """Whom a certificate is for. Without an address it serves nothing."""

    name: str
    address: str = ""
    roles: tuple[str, ...] = ()
    is_invitation: bool = False


class Issuer:
    """The authority of one cluster, with its key."""

    def __init__(self, cluster_id: str, certificate_pem: bytes, key_pem: bytes) -> None:
        """Raises: ConfigError if they are not a certificate and its key."""
        try:
            self._certificate = x509.load_pem_x509_certificate(certificate_pem)
            self._key = _load_key(key_pem)
        except _UNREADABLE as error:
            raise ConfigError(f"the cluster's certificate authority cannot be read: {error}") from error
        if self._certificate.public_key() != self._key.public_key():
            raise ConfigError("the key of the certificate authority is another one than its certificate says")
        self.cluster_id: Final = cluster_id
        self.certificate: Final = certificate_pem
        self.key: Final = key_pem

    @classmethod
    def create(cls, cluster_id: str, *, now: dt.datetime | None = None) -> "Issuer":
        """A new authority."""
        begun = _now(now)
        key = ec.generate_private_key(_CURVE)
        name = x509.Name(
            (
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, f"luciola {cluster_id}"[:NAME_MAX]),
                x509.NameAttribute(NameOID.COMMON_NAME, "certificate authority"),
            )
        )
        usage = x509.KeyUsage(
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        certificate = (
            x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
            .not_valid_before(begun - dt.timedelta(seconds=BACKDATED_S))
            .not_valid_after(begun + dt.timedelta(seconds=AUTHORITY_S))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, _DIGEST)
        )
        return cls(cluster_id, certificate.public_bytes(serialization.Encoding.PEM), _dump_key(key))

    @classmethod
    def load(cls, directory: Path, cluster_id: str) -> "Issuer | None":
        """Return the authority in a directory; None if its key is elsewhere. Raises: ConfigError, OSError."""
        try:
            key = (directory / KEY_FILE).read_bytes()
        except FileNotFoundError:
            return None
        return cls(cluster_id, (directory / AUTHORITY_FILE).read_bytes(), key)

    def save(self, directory: Path) -> None:
        """Write certificate and key, which only the owner may read."""
        directory.mkdir(mode=0o700, exist_ok=True)
        write_private(directory / KEY_FILE, self.key.decode("ascii"))
        write_private(directory / AUTHORITY_FILE, self.certificate.decode("ascii"))

    def issue(
        self,
        request_pem: bytes,
        subject: Subject,
        *,
        lifetime_s: float = MACHINE_S,
        now: dt.datetime | None = None,
    ) -> bytes:
        """Return a certificate of the key in the request, for `subject`. Raises: InvalidArgument."""
        begun = _now(now)
        try:
            request = x509.load_pem_x509_csr(request_pem)
            is_signed = request.is_signature_valid
            key = request.public_key()
        except _UNREADABLE as error:
            raise InvalidArgument(f"not a request for a certificate: {error}") from error
        if not is_signed or not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != _CURVE.name:
            raise InvalidArgument(
                f"a request for a certificate is signed with its key, of curve {_CURVE.name}"
            )
        end = begun + dt.timedelta(seconds=lifetime_s)
        issuer = self._certificate
        certificate = (
            x509.CertificateBuilder(
                issuer.subject, _name(self.cluster_id, subject), key, x509.random_serial_number()
            )
            .not_valid_before(begun - dt.timedelta(seconds=BACKDATED_S))
            .not_valid_after(min(end, issuer.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(_usages(subject)), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            .add_extension(x509.SubjectAlternativeName(_names(self.cluster_id, subject)), critical=False)
            .sign(self._key, _DIGEST)
        )
        return certificate.public_bytes(serialization.Encoding.PEM)

    def equip(
        self, subject: Subject, *, lifetime_s: float = MACHINE_S, now: dt.datetime | None = None
    ) -> Material:
        """Return a new key and its certificate: for this machine, an invitation, or the holder of a token."""
        key, request = create_request()
        certificate = self.issue(request, subject, lifetime_s=lifetime_s, now=now)
        return Material(self.cluster_id, self.certificate, key, certificate)


def create_request() -> tuple[bytes, bytes]:
    """Return a new key and a request for its certificate, both PEM. What the certificate says the issuer decides."""
    key = ec.generate_private_key(_CURVE)
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(())).sign(key, _DIGEST)
    return _dump_key(key), request.public_bytes(serialization.Encoding.PEM)


def require_entitled(cluster_id: str, asker: Collection[str], subject: Subject) -> None:
    """Raises: PermissionDenied if one whose certificate has the names `asker` may not have one for `subject`.

    An invitation lets any machine in; a machine renews what it is, and becomes nothing more.
    """
    if invitation_name(cluster_id) in asker:
        if subject.is_invitation:
            raise PermissionDenied("an invitation invites no others: run `luciola invite` where mgmtd runs")
        return
    wanted = {name.value for name in _names(cluster_id, subject) if isinstance(name, x509.DNSName)}
    if not wanted <= set(asker) | {_holder_name(cluster_id)}:
        raise PermissionDenied(
            f"this machine's certificate is not one of {', '.join(subject.roles) or 'an invitation'} "
            f"at {subject.address or 'any address'}; a machine gets other roles with `luciola invite` and "
            "`luciola join`"
        )


@dataclass(frozen=True)
class About:
    """What a certificate says."""

    name: str
    names: tuple[str, ...]
    begins_unix_s: float
    ends_unix_s: float

    def is_due(self, now_unix_s: float) -> bool:
        """Return whether it is to be renewed: a third of its lifetime is left, or less."""
        return now_unix_s >= self.ends_unix_s - (self.ends_unix_s - self.begins_unix_s) / 3


def describe(certificate_pem: bytes) -> About:
    """Raises: ConfigError if it is no certificate."""
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except (*_UNREADABLE, x509.ExtensionNotFound) as error:
        raise ConfigError(f"a certificate cannot be read: {error}") from error
    return About(
        str(common[0].value) if common else "",
        tuple(names.get_values_for_type(x509.DNSName)),
        certificate.not_valid_before_utc.timestamp(),
        certificate.not_valid_after_utc.timestamp(),
    )


def is_due(tls: Tls, now_unix_s: float) -> bool:
    """Return whether this machine's certificate is to be renewed."""
    return describe(tls.current().certificate).is_due(now_unix_s)


def _name(cluster_id: str, subject: Subject) -> x509.Name:
    return x509.Name(
        (
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, f"luciola {cluster_id}"[:NAME_MAX]),
            x509.NameAttribute(NameOID.COMMON_NAME, (subject.name or "luciola")[:NAME_MAX]),
        )
    )


def _names(cluster_id: str, subject: Subject) -> Sequence[x509.GeneralName]:
    if subject.is_invitation:
        return (x509.DNSName(invitation_name(cluster_id)),)
    if not subject.address:
        return (x509.DNSName(_holder_name(cluster_id)),)
    unknown = [role for role in subject.roles if role not in ROLES]
    if unknown or not subject.roles:
        raise InvalidArgument(f"roles of a machine are some of {', '.join(ROLES)}, not {subject.roles}")
    try:
        address = ipaddress.ip_address(subject.address)
    except ValueError as error:
        raise InvalidArgument(f"an IP address is expected: {subject.address!r}") from error
    roles = [*subject.roles, *(["replicas"] if {"mgmtd", "meta"} & set(subject.roles) else [])]
    names = [x509.DNSName(service_name(role, subject.address, cluster_id)) for role in roles]
    return (*names, x509.IPAddress(address))


def _holder_name(cluster_id: str) -> str:
    """The name of who holds a token and serves nothing."""
    return f"holder.{cluster_id}.luciola"


def _usages(subject: Subject) -> list[x509.ObjectIdentifier]:
    server = [ExtendedKeyUsageOID.SERVER_AUTH] if subject.address and not subject.is_invitation else []
    return [ExtendedKeyUsageOID.CLIENT_AUTH, *server]


def _load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key: PrivateKeyTypes = serialization.load_pem_private_key(pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("not the key of an elliptic curve")
    return key


def _dump_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _now(now: dt.datetime | None) -> dt.datetime:
    return dt.datetime.now(dt.UTC) if now is None else now


__all__ = [
    "HOLDER_S_MAX",
    "INVITATION_S",
    "KEY_FILE",
    "MACHINE_S",
    "ROLES",
    "About",
    "Issuer",
    "Subject",
    "create_request",
    "describe",
    "is_due",
    "require_entitled",
]
