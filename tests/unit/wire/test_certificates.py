"""What certificates say, judged by openssl too, and whom the authority gives which."""

import base64
import datetime as dt
import subprocess
import time
from pathlib import Path

import pytest

from luciola.errors import ConfigError, InvalidArgument, NotFound, PermissionDenied
from luciola.wire.certificates import (
    AUTHORITY_S,
    MACHINE_S,
    Issuer,
    Subject,
    create_request,
    describe,
    require_entitled,
)
from luciola.wire.tls import (
    Material,
    encode_holding,
    invitation_name,
    parse_holding,
    save_material,
    service_name,
    split_pem,
    tls_of,
)

from .tls_world import CLUSTER, World

DAY_S = 86_400


def openssl(*arguments: str | Path, expected: int = 0) -> str:
    done = subprocess.run(
        ["openssl", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == expected, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_openssl_finds_what_was_issued_valid_and_a_strangers_not(tmp_path: Path):
    material = World().machine("mgmtd", "storage", address="10.0.0.1")
    save_material(tmp_path, material)
    authority, certificate = tmp_path / "ca.pem", tmp_path / "certificate.pem"
    certificate.write_bytes(material.certificate)
    for purpose in ("sslserver", "sslclient"):
        openssl("verify", "-x509_strict", "-purpose", purpose, "-CAfile", authority, certificate)
    text = openssl("x509", "-in", certificate, "-noout", "-text")
    assert "IP Address:10.0.0.1" in text
    assert f"DNS:mgmtd.10-0-0-1.{CLUSTER}.luciola" in text
    assert f"DNS:storage.10-0-0-1.{CLUSTER}.luciola" in text
    assert "meta." not in text
    assert "P-256" in text
    (tmp_path / "stranger.pem").write_bytes(World().machine("mgmtd", address="10.0.0.1").certificate)
    openssl("verify", "-CAfile", authority, tmp_path / "stranger.pem", expected=2)
    assert (tmp_path / "node.pem").stat().st_mode & 0o077 == 0


def test_holder_and_invitation_serve_nothing(tmp_path: Path):
    world = World()
    (tmp_path / "ca.pem").write_bytes(world.issuer.certificate)
    for material in (world.holder(), world.invitation()):
        (tmp_path / "held.pem").write_bytes(material.certificate)
        verify = ("verify", "-CAfile", tmp_path / "ca.pem", "-purpose")
        openssl(*verify, "sslclient", tmp_path / "held.pem")
        openssl(*verify, "sslserver", tmp_path / "held.pem", expected=2)


def test_authority_is_read_back_and_its_key_is_private(tmp_path: Path):
    issuer = World().issuer
    issuer.save(tmp_path / "tls")
    assert (tmp_path / "tls" / "ca.key").stat().st_mode & 0o077 == 0
    found = Issuer.load(tmp_path / "tls", CLUSTER)
    assert found is not None
    assert (found.certificate, found.key) == (issuer.certificate, issuer.key)
    assert Issuer.load(tmp_path, CLUSTER) is None
    with pytest.raises(ConfigError, match="another one"):
        Issuer(CLUSTER, issuer.certificate, World().issuer.key)
    with pytest.raises(ConfigError, match="cannot be read"):
        Issuer(CLUSTER, b"noise", issuer.key)


def test_no_certificate_outlives_the_authority():
    begun = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=AUTHORITY_S - DAY_S)
    issuer = Issuer.create(CLUSTER, now=begun)
    about = describe(issuer.equip(Subject("late", "10.0.0.1", ("meta",))).certificate)
    assert 0 < about.ends_unix_s - time.time() <= DAY_S


def test_names_of_the_request_are_not_looked_at(tmp_path: Path):
    wanted = f"DNS:{service_name('mgmtd', '10.0.0.1', CLUSTER)}"
    openssl(
        *("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-subj", "/CN=mgmtd", "-addext", f"subjectAltName={wanted}", "-addext", "basicConstraints=CA:TRUE"),
        *("-keyout", tmp_path / "key", "-out", tmp_path / "request"),
    )
    subject = Subject("a machine", "10.0.0.9", ("storage",))
    certificate = World().issuer.issue((tmp_path / "request").read_bytes(), subject)
    assert describe(certificate).names == (service_name("storage", "10.0.0.9", CLUSTER),)
    (tmp_path / "certificate").write_bytes(certificate)
    assert "CA:FALSE" in openssl("x509", "-in", tmp_path / "certificate", "-noout", "-text")


def test_request_or_certificate_of_another_version_is_refused():
    issuer, (_, request) = World().issuer, create_request()
    certificate = issuer.issue(request, Subject("a machine"))

    def as_version(pem: bytes, number: int) -> bytes:
        first, *lines, last = pem.splitlines(keepends=True)
        encoded = base64.b64decode(b"".join(lines))
        at = encoded.index(b"\x02\x01", 4) + 2
        return first + base64.encodebytes(encoded[:at] + bytes([number]) + encoded[at + 1 :]) + last

    with pytest.raises(InvalidArgument, match="2 is not a valid CSR version"):
        issuer.issue(as_version(request, 2), Subject("a machine"))
    with pytest.raises(ConfigError, match="9 is not a valid X509 version"):
        describe(as_version(certificate, 9))


def test_request_that_is_none_is_refused(tmp_path: Path):
    issuer, subject = World().issuer, Subject("a machine", "10.0.0.1", ("meta",))
    with pytest.raises(InvalidArgument, match="not a request"):
        issuer.issue(b"noise", subject)
    _, request = create_request()
    lines = request.splitlines(keepends=True)
    lines[-2] = lines[-2].swapcase()  # of the signature
    with pytest.raises(InvalidArgument):
        issuer.issue(b"".join(lines), subject)
    openssl(
        *("req", "-new", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x"),
        *("-keyout", tmp_path / "key", "-out", tmp_path / "request"),
    )
    with pytest.raises(InvalidArgument, match="secp256r1"):
        issuer.issue((tmp_path / "request").read_bytes(), subject)
    with pytest.raises(InvalidArgument, match="roles"):
        issuer.issue(request, Subject("a machine", "10.0.0.1", ("king",)))
    with pytest.raises(InvalidArgument, match="IP address"):
        issuer.issue(request, Subject("a machine", "first.example", ("meta",)))


def test_machine_renews_what_it_is_and_becomes_nothing_more():
    world = World()
    node = describe(world.machine("storage", "meta", address="10.0.0.2").certificate).names
    for roles in (("storage",), ("meta",), ("meta", "storage")):
        require_entitled(CLUSTER, node, Subject("", "10.0.0.2", roles))
    require_entitled(CLUSTER, node, Subject("for a token"))
    for subject in (
        Subject("", "10.0.0.2", ("mgmtd",)),
        Subject("", "10.0.0.2", ("storage", "mgmtd")),
        Subject("", "10.0.0.1", ("storage",)),
        Subject("", is_invitation=True),
    ):
        with pytest.raises(PermissionDenied):
            require_entitled(CLUSTER, node, subject)
    holder = describe(world.holder().certificate).names
    with pytest.raises(PermissionDenied):
        require_entitled(CLUSTER, holder, Subject("", "10.0.0.2", ("storage",)))


def test_invitation_lets_machines_in_and_invites_no_others():
    invitation = describe(World().invitation().certificate).names
    assert invitation == (invitation_name(CLUSTER),)
    require_entitled(CLUSTER, invitation, Subject("", "10.0.0.2", ("mgmtd", "storage")))
    with pytest.raises(PermissionDenied):
        require_entitled(CLUSTER, invitation, Subject("", is_invitation=True))
    with pytest.raises(PermissionDenied):
        require_entitled("another", invitation, Subject("", "10.0.0.2", ("storage",)))


def test_certificate_is_renewed_when_a_third_is_left():
    about = describe(World().machine("meta", lifetime_s=MACHINE_S).certificate)
    assert not about.is_due(time.time())
    assert not about.is_due(about.ends_unix_s - 31 * DAY_S)
    assert about.is_due(about.ends_unix_s - 29 * DAY_S)


def test_replaced_certificate_is_read_again(tmp_path: Path):
    world = World()
    first, second = world.machine("meta"), world.machine("meta")
    save_material(tmp_path, first)
    found = tls_of(tmp_path, CLUSTER)
    assert found.current() == first
    save_material(tmp_path, second)
    assert found.current() == second
    (tmp_path / "node.pem").unlink()
    assert found.current() == second  # what a process has it keeps
    with pytest.raises(NotFound, match="luciola certificate renew"):
        tls_of(tmp_path, CLUSTER).current()
    (tmp_path / "node.pem").write_text("noise")
    with pytest.raises(ConfigError, match="a key and its certificate"):
        tls_of(tmp_path, CLUSTER).current()


def test_what_follows_a_token_is_read_back():
    material = World().holder()
    found = parse_holding(f"a.token\n{encode_holding(material)}")
    assert found is not None
    assert found.current() == material
    assert parse_holding("a.token\n") is None
    with pytest.raises(ConfigError, match="make another"):
        parse_holding("a.token\nnoise")


def test_names_of_ipv6_machines_are_names():
    name = service_name("meta", "fd00::1%eth0", CLUSTER)
    assert name == f"meta.fd00-0000-0000-0000-0000-0000-0000-0001.{CLUSTER}.luciola"
    key, certificates = split_pem(World().machine("meta", address="fd00::1").certificate)
    assert not key
    assert describe(certificates[0]).names[0] == name


def test_material_shows_no_key():
    material = World().holder()
    assert isinstance(material, Material)
    assert "PRIVATE KEY" not in repr(material)
