"""A recorded disk whose power is cut: `core/examples/power_disk` as a process that is driven by lines.

A workload runs in a *recorded* volume, and notes with `position` what it was promised and when. Then `states`
gives, for every change of the recording, directories as the disk may have been left if power was lost before that
change. `core/examples/power_disk/crash.rs` says what a disk may leave. `LUCIOLA_SEED` chooses among what is
left to chance.
"""

import itertools
import os
import subprocess
import threading
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

CORE: Final = Path(__file__).parents[1] / "core"
TARGET: Final = Path(os.environ.get("CARGO_TARGET_DIR") or CORE / "target")
BINARY: Final = TARGET / "debug/examples/power_disk"
# Kinds of metadata and data that survive: these at every cut, and one of those by turns.
FIXED: Final = (("nothing", "nothing"), ("all", "nothing"), ("nothing", "all"))
BY_TURNS: Final = (
    ("journal", "pages"),
    ("separate", "torn"),
    ("all", "all"),
    ("separate", "pages"),
    ("journal", "torn"),
)


def can_mount() -> bool:
    """Whether this machine can mount the recorded disk."""
    return os.geteuid() == 0 and Path("/dev/fuse").exists()


@dataclass(frozen=True)
class State:
    """What may be left when power is lost before change number `cut`, in the directory `path`."""

    cut: int
    metadata: str
    data: str
    seed: int
    path: Path


class PowerDisk:
    """A mounted disk in memory. Close it, or use it in a `with` statement. From any thread."""

    def __init__(self, mountpoint: Path) -> None:
        """Mount. The program has been built: `pytest.mark.crate`."""
        self._mountpoint = mountpoint
        mountpoint.mkdir()
        self._process = subprocess.Popen(
            [BINARY, mountpoint], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._lock = threading.Lock()
        self._names = itertools.count()
        assert self._read() == "ready"

    def record(self, name: str) -> Path:
        """An empty volume whose changes are recorded from now on."""
        self._do("record", name)
        return self._mountpoint / name

    def position(self, name: str) -> int:
        """Changes recorded so far: all that came before this call, nothing that comes after it."""
        return int(self._do("position", name))

    def finish(self, name: str) -> int:
        """End a recording; changes in all."""
        return int(self._do("finish", name))

    def describe(self, name: str, cut: int) -> str:
        """What change number `cut` is, for people."""
        return self._do("kind", name, cut)

    def states(
        self, name: str, *, seed: int, promises: Callable[[int], Hashable], fixed: bool = True
    ) -> Iterator[State]:
        """Every cut of a finished recording, several states of each; each is removed when the next is asked for.

        States of successive cuts that are equal come once, where `promises` of both cuts is equal too.
        """
        last: dict[tuple[str, str], Hashable] = {}
        for cut in range(self._changes(name) + 1):
            kinds = (*(FIXED if fixed else ()), BY_TURNS[cut % len(BY_TURNS)])
            for metadata, data in kinds:
                new = f"{name}-{next(self._names)}"
                answer = self._do("crash", name, cut, metadata, data, seed, new)
                is_same = answer == "same" and last.get((metadata, data)) == promises(cut)
                if answer == "same" and not is_same:
                    self._do("again", name, metadata, data, new)
                last[metadata, data] = promises(cut)
                if is_same:
                    continue
                yield State(cut, metadata, data, seed, self._mountpoint / new)
                self._do("remove", new)

    def record_state(self, name: str, state: State) -> tuple[str, Path]:
        """The same state as a recorded volume: its name and directory."""
        new = f"{name}-{next(self._names)}"
        self._do("crash", name, state.cut, state.metadata, state.data, state.seed, new, "record")
        return new, self._mountpoint / new

    def remove(self, name: str) -> None:
        """Remove a volume."""
        self._do("remove", name)

    def close(self) -> None:
        """Unmount. What still has files open there gets errors."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._mountpoint.rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _changes(self, name: str) -> int:
        return int(self._do("changes", name))

    def _do(self, *words: object) -> str:
        with self._lock:
            assert self._process.stdin is not None
            self._process.stdin.write(" ".join(map(str, words)) + "\n")
            self._process.stdin.flush()
            answer = self._read()
        assert not answer.startswith("cannot do"), answer
        return answer

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().rstrip("\n")


@dataclass
class Report:
    """What was tried."""

    cuts: int = 0
    states: int = 0
    recoveries: int = 0


def every_state(
    disk: PowerDisk,
    name: str,
    check: Callable[[Path, int], None],
    *,
    promises: Callable[[int], Hashable],
    recover: Callable[[Path], None] | None = None,
    recoveries_every: int = 40,
) -> Report:
    """Call `check` with every state of a recording and its cut.

    With `recover`, which opens a directory as the next start does, power is lost again at every change that this makes,
    for one state in `recoveries_every`. Raises: AssertionError, with what was cut where.
    """
    seed = int(os.environ.get("LUCIOLA_SEED") or "1")
    report = Report(cuts=disk.finish(name) + 1)
    for state in disk.states(name, seed=seed, promises=promises):
        report.states += 1
        _check(disk, name, state, partial_check(check, state.cut))
        if recover is not None and report.states % recoveries_every == 0:
            again, path = disk.record_state(name, state)
            recover(path)
            report.cuts += disk.finish(again) + 1
            for second in disk.states(again, seed=seed, promises=lambda _: None, fixed=False):
                report.states += 1
                _check(disk, again, second, partial_check(check, state.cut))
            disk.remove(again)
            report.recoveries += 1
    return report


def partial_check(check: Callable[[Path, int], None], cut: int) -> Callable[[Path], None]:
    """`check` for one cut."""
    return lambda path: check(path, cut)


def _check(disk: PowerDisk, name: str, state: State, check: Callable[[Path], None]) -> None:
    try:
        check(state.path)
    except Exception as error:
        what = f"power lost before change {state.cut} of {name} ({disk.describe(name, state.cut)}), {state}"
        raise AssertionError(f"{what}: {error!r}") from error


__all__ = ["PowerDisk", "Report", "State", "can_mount", "every_state"]
