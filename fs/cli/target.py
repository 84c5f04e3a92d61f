"""Which cluster a command speaks to, and which file on it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..errors import InvalidArgument
from .datadir import running_shape
from .options import NO_CREDENTIAL, Credential, address_option, is_on_this_machine, target_options

if TYPE_CHECKING:
    from ..client import FileSystem

PREFIX: Final = "lu:"


@dataclass(frozen=True)
class FilesTarget:
    """A cluster as somebody names it who wants its files."""

    data_path: Path | None = None
    address: str | None = None
    credential: Credential = NO_CREDENTIAL

    def open(self) -> "FileSystem":
        """Return its file system. Raises: click.UsageError when none or two clusters are named; as `connect`."""
        from ..client import connect

        token_file = self.credential.token_file
        if is_on_this_machine(self.data_path, address=self.address):
            assert self.data_path is not None, "a named option was given"
            running_shape(self.data_path)
            return connect(str(self.data_path), token_file=token_file)
        assert self.address is not None, "a named option was given"
        return connect(self.address, secret_file=self.credential.secret_file, token_file=token_file)


cluster_options: Final = target_options(FilesTarget, address_option, "address", where="before --secret-file")


def cluster_path(text: str) -> str:
    """Return the absolute path on the cluster that `text` names, with or without the prefix.

    Raises: InvalidArgument for a relative path.
    """
    path = text.removeprefix(PREFIX)
    if not path.startswith("/"):
        raise InvalidArgument("paths on the cluster are absolute: write /dir/file", path=text)
    return path


__all__ = ["PREFIX", "FilesTarget", "cluster_options", "cluster_path"]
