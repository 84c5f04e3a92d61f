"""The certificates that mgmtd issues: whom it lets have which (wire/certificates.py makes them)."""

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Final

from ..errors import InvalidArgument, PermissionDenied, Unavailable
from ..wire.addresses import parse_address, parse_addresses
from ..wire.certificates import HOLDER_S_MAX, MACHINE_S, Issuer, Subject, require_entitled
from ..wire.cluster import Cluster
from ..wire.pb import mgmtd_pb2 as pb
from ..wire.tls import invitation_name

log = logging.getLogger("luciola.mgmtd")

MANAGER: Final = "mgmtd"


class Certificates:
    """Issues certificates to who may have them. `managers`: addresses of the machines that are to run mgmtd."""

    def __init__(self, cluster_id: str, issuer: Issuer | None, managers: Collection[str]) -> None:
        self._cluster_id = cluster_id
        self._issuer = issuer
        self._managers = managers

    @classmethod
    def of_cluster(cls, cluster: Cluster) -> "Certificates | None":
        """Return what issues for `cluster`; None if it has no certificates. Raises: ConfigError."""
        if not cluster.tls_directory:
            return None
        issuer = Issuer.load(Path(cluster.tls_directory), cluster.cluster_id)
        managers = [parse_address(each)[0] for each in parse_addresses(cluster.mgmtd_grpc)]
        return cls(cluster.cluster_id, issuer, managers)

    def issue(self, request: pb.IssueCertificateRequest, caller: Collection[str]) -> pb.IssueCertificateReply:
        """Return a certificate, if `caller`, the names in the one that was shown, entitle to it.

        Raises: PermissionDenied, InvalidArgument; Unavailable without the authority's key.
        """
        subject = Subject(request.name, request.address, tuple(request.roles))
        if MANAGER in subject.roles and subject.address not in self._managers:
            raise PermissionDenied(
                f"{subject.address} is none of the machines that run mgmtd, which `luciola init --managers` names"
            )
        require_entitled(self._cluster_id, caller, subject)
        if self._issuer is None:
            raise Unavailable(
                "the key of the certificate authority is not where mgmtd runs: copy ca.key from another machine that "
                "runs mgmtd, or from a backup"
            )
        if request.lifetime_s and subject.address:
            raise InvalidArgument("the lifetime of a machine's certificate is not chosen by the machine")
        lifetime_s = (
            min(request.lifetime_s or HOLDER_S_MAX, HOLDER_S_MAX) if not subject.address else MACHINE_S
        )
        certificate = self._issuer.issue(request.request, subject, lifetime_s=lifetime_s)
        log.info("certificate issued to %s for %s", subject.name, describe(subject))
        joins_as_manager = MANAGER in subject.roles and invitation_name(self._cluster_id) in caller
        return pb.IssueCertificateReply(
            certificate=certificate, authority_key=self._issuer.key if joins_as_manager else b""
        )


def describe(subject: Subject) -> str:
    """Return what it entitles to, for the log."""
    return f"{', '.join(subject.roles)} at {subject.address}" if subject.address else "the holder of a token"


__all__ = ["Certificates"]
