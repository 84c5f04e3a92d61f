"""Processor time of the processes that serve a file system, and how often their threads go to sleep."""

import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

PROC = Path("/proc")
MODULE = re.compile(r"luciola\.(\w+)$")
SCHEDULED_CLOCK = (
    2  # of a process: all its threads, ended ones included, in nanoseconds (glibc's clock_getcpuclockid)
)


@dataclass(frozen=True)
class Usage:
    """Processor time and sleeps of some processes so far."""

    processor_ns: int = 0
    sleeps: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.processor_ns + other.processor_ns, self.sleeps + other.sleeps)

    def __sub__(self, other: "Usage") -> "Usage":
        return Usage(self.processor_ns - other.processor_ns, self.sleeps - other.sleeps)


def usage_of_services(root: Path, *, starter: int | None = None) -> dict[str, Usage]:
    """Return by role what all processes whose command line names something under `root` have used.

    Also those that `starter` has started: some change their command line. This process, `starter` itself and what has
    ended are left out.
    """
    total: dict[str, Usage] = {}
    for entry in PROC.iterdir():
        if not entry.name.isdigit() or int(entry.name) in (os.getpid(), starter):
            continue
        with suppress(OSError):  # it has ended
            words = [os.fsdecode(word) for word in (entry / "cmdline").read_bytes().split(b"\0") if word]
            is_service = names(words, root) or (starter is not None and parent_of(entry) == starter)
            if words and is_service:
                role = role_of(words)
                total[role] = total.get(role, Usage()) + usage(int(entry.name))
    return total


def names(words: Iterable[str], root: Path) -> bool:
    """Whether a command line names `root` or something under it."""
    pattern = re.compile(rf"{re.escape(str(root))}(?:/|$|\s)")
    return any(pattern.search(word) for word in words)


def role_of(words: Sequence[str]) -> str:
    """Return what a command is: the service or command of Luciola, or the program's name."""
    for word, following in pairwise((*words, "")):
        if module := MODULE.match(word):
            return module[1]
        if word == "luciola" or word.endswith("/bin/luciola"):
            return following
    return Path(words[0].rstrip(":")).name


def parent_of(entry: Path) -> int:
    return int((entry / "stat").read_text().rpartition(")")[2].split()[1])


def usage(pid: int) -> Usage:
    """Return what a process has used. Raises: OSError if there is none."""
    sleeps = 0
    for task in (PROC / str(pid) / "task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended
            status = (task / "status").read_text()
            sleeps += int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
    return Usage(time.clock_gettime_ns((~pid << 3) | SCHEDULED_CLOCK), sleeps)


def since(before: Mapping[str, Usage], now: Mapping[str, Usage]) -> dict[str, Usage]:
    """Return by role what was used in between. A role whose processes were started again has no figure."""
    used = {role: usage - before.get(role, Usage()) for role, usage in now.items()}
    return {role: each for role, each in used.items() if each.processor_ns >= 0}
