"""Options of `luciola up` about replicated metadata: what they give, and what is refused."""

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from luciola.cli.metadata_options import Given, MetadataWanted, metadata_options, wanted_metadata
from luciola.errors import InvalidArgument


def _parse(*arguments: str) -> MetadataWanted:
    """Return what a command with these arguments gets. Raises: InvalidArgument."""

    @click.command()
    @metadata_options
    def command(**given: object) -> MetadataWanted:
        return wanted_metadata(Given(**given))

    result = CliRunner().invoke(command, arguments, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    wanted: MetadataWanted = result.return_value
    return wanted


def test_nothing_is_wanted_without_options() -> None:
    assert _parse() == MetadataWanted()
    assert not _parse().is_private
    assert _parse().addresses == ()


def test_private_etcd_with_counts() -> None:
    wanted = _parse("--metadata", "etcd", "--metas", "3", "--managers", "4")
    assert wanted.is_private
    assert (wanted.metas, wanted.managers, wanted.addresses) == (3, 4, ())


def test_addresses_and_files_of_an_etcd_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ca", "certificate", "key", "password"):
        Path(name).write_text("x")
    wanted = _parse(
        *("--metadata", "etcd://one:2379,[::1]:2379/"),
        *("--metadata-ca", "ca", "--metadata-certificate", "certificate", "--metadata-key", "key"),
        *("--metadata-user", "luciola", "--metadata-password-file", "password"),
    )
    assert wanted.addresses == ("one:2379", "[::1]:2379")
    files = (wanted.ca_file, wanted.certificate_file, wanted.key_file, wanted.password_file)
    assert files == tuple(str(tmp_path / name) for name in ("ca", "certificate", "key", "password"))
    assert wanted.user == "luciola"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--metadata", "zookeeper"], "--metadata is 'etcd' or 'etcd://HOST:PORT"),
        (["--metadata", "etcd://host"], "host:port is expected"),
        (["--metadata", "etcd://a:1,"], "host:port is expected"),
        (["--metadata", "etcd", "--metas", "1"], "--metas is at least 2"),
        (["--metadata", "etcd", "--managers", "1"], "--managers is at least 2"),
        (["--metadata", "etcd", "--metadata-ca", __file__], "etcd that runs elsewhere"),
        (["--metadata-user", "name"], "etcd that runs elsewhere"),
        (["--metadata", "etcd://a:1", "--metadata-user", "name"], "given together"),
        (["--metadata", "etcd://a:1", "--metadata-key", __file__], "given together"),
        (
            ["--metadata", "etcd://a:1", "--metadata-key", __file__, "--metadata-certificate", __file__],
            "needs --metadata-ca",
        ),
        (["--metadata", "etcd://a:1", "--metadata-ca", "/no/such/file"], "no such file"),
    ],
)
def test_contradictions_are_refused(arguments: list[str], reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        _parse(*arguments)
