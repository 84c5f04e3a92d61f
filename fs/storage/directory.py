"""The directory of one storage node: whose it is, and which replicas lack what they had.

    DATA/node.json   {"node", "cluster", "engine", "joined", "lost", "partial", "boot", "is_clean", "is_suspect",
                     "incarnations"}
    DATA/chunks/     the engine's; may be a disk of its own
    DATA/quarantine/ chunks that were set aside
    DATA/data.sock   the Unix socket of the shm transport
    DATA/scrub.json  when every chunk was last verified
    DATA/marks       what this node has seen of the stores of mgmtd and meta

A directory that is new while routing already shows replicas on its node is a replaced disk: those replicas are
remembered as lost until they have been brought up to date. The engine has the identity that node.json names, and one
without the other is refused: chunks that are missing while node.json is there are a disk that is not mounted.

A kernel that is another than the one under which the directory was last open has lost what was not synced, unless the
process had ended cleanly. Those replicas are remembered as partial, until they are up to date or serve again.

A directory knows which incarnations it may have served under, of which mgmtd has stored the last: one that does not
know that one is an older copy of the directory that served. mgmtd refuses it, no matter what its replicas seem to have.
"""

import errno
import fcntl
import json
import logging
import mmap
import os
import uuid
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from ..errors import Busy, ConfigError
from ..ids import NodeId, TargetId
from ..states import Data
from .marks import MarkFile

log = logging.getLogger(__name__)

HOST: Final = Path("/proc/sys/kernel/random/boot_id")
NEW: Final = 0  # among incarnations: nothing was served from this directory yet
PROBE_BYTES: Final = 4096  # one block of every device
SOCKET_PATH_BYTES_MAX: Final = 107  # sun_path of Linux, less its final zero


@dataclass(frozen=True, slots=True)
class Record:
    """What node.json says.

    `engine`: the identity of the chunk engine, a UUID in hexadecimal.
    `joined`: routing has been seen with this directory. `boot`: the kernel under which it was opened last; `is_clean`:
    everything was synced when that process ended. `is_suspect`: what was not synced may be missing in every replica
    that routing will show. `incarnations`: the last one that mgmtd acknowledged, or NEW, and all that began since:
    mgmtd may have stored any of them.
    """

    node: int
    cluster: str
    engine: str
    joined: bool = False
    lost: tuple[int, ...] = ()
    partial: tuple[int, ...] = ()
    boot: str = ""
    is_clean: bool = False
    is_suspect: bool = False
    incarnations: tuple[int, ...] = (NEW,)


class Directory:
    """A storage node's directory, opened by one process at a time."""

    def __init__(self, path: Path, *, node: NodeId, cluster_id: str, boot: str = "") -> None:
        """Open the directory, or make a new one. `boot`: the kernel that runs, by default this one.

        Raises: Busy if another process has it, ConfigError if it belongs to another node or cluster.
        """
        self.path: Final = path
        _make(path)
        self._lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._take(node, cluster_id, boot or boot_id())
        except BaseException:
            os.close(self._lock)
            raise

    def disk(self) -> str:
        """Return an id of the file system that it is on, different from those of other hosts."""
        return f"{boot_id()}:{os.fstat(self._lock).st_dev}"

    def _take(self, node: NodeId, cluster_id: str, boot: str) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Busy("another storage process has this directory", path=str(self.path)) from error
        self._record = self._load()
        if self._record is None:
            self._record = Record(node, cluster_id, uuid.uuid4().hex)
            self._save()
        for name, ours, theirs in (
            ("node", node, self._record.node),
            ("cluster", cluster_id, self._record.cluster),
        ):
            if ours != theirs:
                raise ConfigError(f"{self.path}: belongs to {name} {theirs}, not to {name} {ours}")
        self.marks = MarkFile(self.path, node=node)
        self.chunks.mkdir(mode=0o700, exist_ok=True)
        self._note_boot(boot)

    @property
    def chunks(self) -> Path:
        """The engine's directory."""
        return self.path / "chunks"

    @property
    def engine_identity(self) -> int:
        """Which chunk engine must be in `chunks`."""
        assert self._record is not None, "opened"
        return int(self._record.engine, 16)

    @property
    def may_create_engine(self) -> bool:
        """Whether an absent engine is one that was never made: no routing was followed with this directory yet."""
        assert self._record is not None, "opened"
        return not self._record.joined

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
    def data(self) -> dict[TargetId, Data]:
        """Replicas that lack what they had."""
        assert self._record is not None, "opened"
        partial = dict.fromkeys(map(TargetId, self._record.partial), Data.PARTIAL)
        return partial | dict.fromkeys(map(TargetId, self._record.lost), Data.LOST)

    def join(self, targets: Collection[TargetId]) -> None:
        """Routing shows these replicas on this node: if the directory is new, their data is lost."""
        assert self._record is not None, "opened"
        if not self._record.joined:
            self._record = replace(self._record, joined=True, lost=tuple(sorted(targets)), is_suspect=False)
            self._save()
        elif self._record.is_suspect and targets:
            partial = tuple(sorted({*self._record.partial, *targets}))
            self._record = replace(self._record, partial=partial, is_suspect=False)
            self._save()

    @property
    def incarnations(self) -> tuple[int, ...]:
        """What mgmtd may know as the last incarnation that served from this directory; NEW among them: nothing was."""
        assert self._record is not None, "opened"
        return self._record.incarnations

    def begin(self, incarnation: int) -> None:
        """Note an incarnation before mgmtd hears of it: from then on mgmtd may have stored it. Raises: OSError."""
        assert self._record is not None, "opened"
        self._record = replace(self._record, incarnations=(*self._record.incarnations, incarnation))
        self._save()

    def acknowledge(self, incarnation: int) -> None:
        """Note before anything is served that mgmtd has stored this incarnation. Raises: OSError."""
        assert self._record is not None, "opened"
        assert incarnation in self._record.incarnations, "noted before mgmtd could store it"
        if self._record.incarnations != (incarnation,):
            self._record = replace(self._record, incarnations=(incarnation,))
            self._save()

    def restore(self, target: TargetId) -> None:
        """The replica has its data again."""
        assert self._record is not None, "opened"
        lost = tuple(other for other in self._record.lost if other != target)
        partial = tuple(other for other in self._record.partial if other != target)
        self._record = replace(self._record, lost=lost, partial=partial)
        self._save()

    def set_suspect(self) -> None:
        """What was acknowledged may not be on the disk, although no power was lost. Raises: OSError."""
        assert self._record is not None, "opened"
        self._record = replace(self._record, is_suspect=True)
        self._save()

    def set_clean(self) -> None:
        """Everything is synced, and nothing will be written any more."""
        assert self._record is not None, "opened"
        self._record = replace(self._record, is_clean=True)
        self._save()

    def _note_boot(self, boot: str) -> None:
        """Before anything is written: a crash from now on is not a clean end."""
        assert self._record is not None, "taken"
        lost_power = self._record.joined and not self._record.is_clean and self._record.boot != boot
        if lost_power:
            log.warning("machine restarted without a clean stop: what was not synced may be missing")
        self._record = replace(
            self._record, boot=boot, is_clean=False, is_suspect=self._record.is_suspect or lost_power
        )
        self._save()

    def scrubbed_at(self) -> float:
        """Return when every chunk was last verified (unix seconds); 0 if never."""
        try:
            return float(json.loads((self.path / "scrub.json").read_text())["finished_unix_s"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0.0  # a hint only: the price of not knowing is one more scrub

    def set_scrubbed_at(self, unix_s: float) -> None:
        """Remember when every chunk was verified."""
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
        """Let another process open it."""
        os.close(self._lock)

    def _load(self) -> Record | None:
        path = self.path / "node.json"
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
            return Record(
                int(table["node"]),
                str(table["cluster"]),
                uuid.UUID(str(table["engine"])).hex,
                joined=bool(table["joined"]),
                lost=tuple(map(int, table["lost"])),
                partial=tuple(map(int, table["partial"])),
                boot=str(table["boot"]),
                is_clean=bool(table["is_clean"]),
                is_suspect=bool(table["is_suspect"]),
                incarnations=tuple(map(int, table["incarnations"])),
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


def boot_id() -> str:
    """Return the kernel that runs, distinguished from that of every other host and boot."""
    return HOST.read_text(encoding="ascii").strip()


def _make(path: Path) -> None:
    """Make the directory unless it exists, with a name that survives power loss."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.chmod(0o700)
    parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def _write(path: Path, table: dict[str, object]) -> None:
    temporary = path.with_name(path.name + ".new")
    with temporary.open("w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o600)
        json.dump(table, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


__all__ = ["Directory", "Record", "boot_id"]
