"""Whom mgmtd gives which certificate, and the key of the authority."""

import time
from pathlib import Path

import pytest

from luciola.errors import InvalidArgument, PermissionDenied, Unavailable
from luciola.mgmtd.certificates import Certificates
from luciola.wire import Cluster
from luciola.wire.certificates import HOLDER_S_MAX, Issuer, Subject, create_request, describe
from luciola.wire.pb import mgmtd_pb2 as pb
from luciola.wire.tls import service_name

CLUSTER = "00112233aabbccdd"
MANAGER, NODE = "10.0.0.1", "10.0.0.2"


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer.create(CLUSTER)


@pytest.fixture
def certificates(issuer: Issuer) -> Certificates:
    return Certificates(CLUSTER, issuer, [MANAGER, "10.0.0.3"])


def names(issuer: Issuer, subject: Subject) -> tuple[str, ...]:
    return describe(issuer.equip(subject).certificate).names


def asked(*roles: str, address: str = "", lifetime_s: int = 0) -> pb.IssueCertificateRequest:
    return pb.IssueCertificateRequest(
        request=create_request()[1], name="a machine", address=address, roles=roles, lifetime_s=lifetime_s
    )


def test_machine_with_an_invitation_gets_its_certificate(certificates: Certificates, issuer: Issuer):
    invitation = names(issuer, Subject("", is_invitation=True))
    reply = certificates.issue(asked("storage", "meta", address=NODE), invitation)
    assert service_name("storage", NODE, CLUSTER) in describe(reply.certificate).names
    assert not reply.authority_key


def test_authoritys_key_goes_to_invited_machines_that_run_mgmtd_alone(
    certificates: Certificates, issuer: Issuer
):
    invitation = names(issuer, Subject("", is_invitation=True))
    assert certificates.issue(asked("mgmtd", address=MANAGER), invitation).authority_key == issuer.key
    with pytest.raises(PermissionDenied, match="--managers"):
        certificates.issue(asked("mgmtd", address=NODE), invitation)
    manager = names(issuer, Subject("", MANAGER, ("mgmtd",)))
    assert not certificates.issue(asked("mgmtd", address=MANAGER), manager).authority_key


def test_node_gets_neither_another_role_nor_another_address(certificates: Certificates, issuer: Issuer):
    node = names(issuer, Subject("", NODE, ("storage",)))
    assert certificates.issue(asked("storage", address=NODE), node).certificate
    for request in (
        asked("mgmtd", address=MANAGER),
        asked("meta", address=NODE),
        asked("storage", address="10.0.0.4"),
    ):
        with pytest.raises(PermissionDenied):
            certificates.issue(request, node)
    with pytest.raises(PermissionDenied):
        certificates.issue(asked("storage", address=NODE), ())  # over a connection without TLS


def test_lifetime_is_a_holders_to_choose(certificates: Certificates, issuer: Issuer):
    node = names(issuer, Subject("", NODE, ("storage",)))
    reply = certificates.issue(asked(lifetime_s=60), node)
    assert abs(describe(reply.certificate).ends_unix_s - time.time() - 60) < 10
    reply = certificates.issue(asked(lifetime_s=1 << 31), node)
    assert describe(reply.certificate).ends_unix_s <= time.time() + HOLDER_S_MAX
    with pytest.raises(InvalidArgument, match="lifetime"):
        certificates.issue(asked("storage", address=NODE, lifetime_s=1 << 31), node)


def test_manager_without_the_key_says_where_it_is(issuer: Issuer, tmp_path: Path):
    cluster = Cluster(CLUSTER, f"{MANAGER}:1", f"{MANAGER}:2", "", tls_directory=str(tmp_path))
    certificates = Certificates.of_cluster(cluster)
    assert certificates is not None
    with pytest.raises(Unavailable, match=r"ca\.key"):
        certificates.issue(asked("storage", address=NODE), names(issuer, Subject("", is_invitation=True)))
    assert Certificates.of_cluster(Cluster(CLUSTER, f"{MANAGER}:1", f"{MANAGER}:2", "")) is None
