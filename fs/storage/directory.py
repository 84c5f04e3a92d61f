"""The directory of one storage node: whose it is, and which replicas a replaced disk has lost.

    DATA/node.json   {"node", "cluster", "joined", "lost"}
    DATA/chunks/     the engine's
    DATA/quarantine/ chunks that were set aside
    DATA/data.sock   the Unix socket of the shm transport
    DATA/scrub.json  when every chunk was last verified
    DATA/marks       what this node has seen of the stores of mgmtd and meta

A directory that is new while routing already shows replicas on its node is a replaced disk: those replicas are
remembered as lost until they have been brought up to date.
"""

import errno
import fcntl
import json
import mmap
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from ..errors import Busy, ConfigError
from ..ids import NodeId, TargetId
from .marks import MarkFile

HOST: Final = Path("/proc/sys/kernel/random/boot_id")
PROBE_BYTES: Final = 4096  # one block of every device
SOCKET_PATH_BYTES_MAX: Final = 107  # sun_path of Linux, less its final zero


@dataclass(frozen=True, slots=True)
class Record:
    """What node.json says. `joined`: routing has been seen with this directory."""

    node: int
    cluster: str
    joined: bool = False
    lost: tuple[int, ...] = ()


class Directory:
    """A storage node's directory, opened by one process at a time."""

    def __init__(self, path: Path, *, node: NodeId, cluster_id: str) -> None:
        """Opens the directory, or makes a new one.

        Raises: Busy if another process has it, ConfigError if it belongs to another node or cluster.
        """
        self.path: Final = path
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
        self._lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._take(node, cluster_id)
        except BaseException:
            os.close(self._lock)
            raise

    def disk(self) -> str:
        """The file system that it lies on, told apart from those of other hosts."""
        return f"{HOST.read_text().strip()}:{os.fstat(self._lock).st_dev}"

    def _take(self, node: NodeId, cluster_id: str) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Busy("another storage process has this directory", path=str(self.path)) from error
        self._record = self._load()
        if self._record is None:
            self._record = Record(node, cluster_id)
            self._save()
        for name, ours, theirs in (
            ("node", node, self._record.node),
            ("cluster", cluster_id, self._record.cluster),
        ):
            if ours != theirs:
                raise ConfigError(f"{self.path}: belongs to {name} {theirs}, not to {name} {ours}")
        self.marks = MarkFile(self.path, node=node)
        self.chunks.mkdir(mode=0o700, exist_ok=True)

    @property
    def chunks(self) -> Path:
        """The engine's directory."""
        return self.path / "chunks"

    @property
    def quarantine(self) -> Path:
        """Where chunks are set aside that their chain never had."""
        return self.path / "quarantine"

    @property
    def socket(self) -> Path | None:
        """Where the data server listens on a Unix socket; None if the path is too long for one."""
        path = self.path.absolute() / "data.sock"
        return path if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX else None

    @property
    def lost(self) -> frozenset[TargetId]:
        """Replicas whose data was on the disk that this one replaced."""
        assert self._record is not None, "opened"
        return frozenset(TargetId(target) for target in self._record.lost)

    def join(self, targets: Iterable[TargetId]) -> None:
        """Routing shows these replicas on this node: if the directory is new, their data is lost."""
        assert self._record is not None, "opened"
        if not self._record.joined:
            self._record = replace(self._record, joined=True, lost=tuple(sorted(targets)))
            self._save()

    def restore(self, target: TargetId) -> None:
        """The replica has its data again."""
        assert self._record is not None, "opened"
        self._record = replace(self._record, lost=tuple(lost for lost in self._record.lost if lost != target))
        self._save()

    def scrubbed_at(self) -> float:
        """When every chunk was last verified (unix seconds); 0 if never."""
        try:
            return float(json.loads((self.path / "scrub.json").read_text())["finished_unix_s"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0.0  # a hint only: the price of not knowing is one more scrub

    def set_scrubbed_at(self, unix_s: float) -> None:
        """Remembers when every chunk was verified."""
        _write(self.path / "scrub.json", {"finished_unix_s": unix_s})

    def probe(self) -> None:
        """Overwrite one block of a file straight on the disk, to see whether it answers; a full disk does.

        Raises: OSError.
        """
        path = self.path / ".probe"
        try:
            if not path.exists() or path.stat().st_size < PROBE_BYTES:
                _write_through(path)  # its block must be there, or every probe would wait for the journal
            try:
                file = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                _write_through(path)  # a file system without direct writes
                return
            try:
                with mmap.mmap(-1, PROBE_BYTES) as block:  # page-aligned, as direct writes want it
                    os.pwrite(file, block, 0)
            finally:
                os.close(file)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise

    def close(self) -> None:
        """Lets another process open it."""
        os.close(self._lock)

    def _load(self) -> Record | None:
        path = self.path / "node.json"
        try:
            table: Any = json.loads(path.read_text(encoding="utf-8"))
            return Record(
                int(table["node"]), str(table["cluster"]), bool(table["joined"]), tuple(table["lost"])
            )
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}: cannot be read: {error!r}") from error

    def _save(self) -> None:
        assert self._record is not None, "opened"
        _write(self.path / "node.json", asdict(self._record))
        os.fsync(self._lock)


def _write_through(path: Path) -> None:
    with path.open("wb") as file:
        file.write(bytes(PROBE_BYTES))
        file.flush()
        os.fsync(file.fileno())


def _write(path: Path, table: dict[str, Any]) -> None:
    temporary = path.with_name(path.name + ".new")
    with temporary.open("w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o600)
        json.dump(table, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


__all__ = ["Directory", "Record"]
