"""Reading everything that backups refer to, and checking it against its checksums."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from ...errors import CorruptData
from .repository import PackReader, Place, Repository, opened

READERS: Final = 2  # as fast as a disk that is read in order
AT_ONCE: Final = 256
PROBLEMS_MAX: Final = 1000  # named; a directory with more is broken as a whole


@dataclass
class Report:
    """`problems`: what is damaged, by backup and in words."""

    backups: int = 0
    chunks: int = 0
    bytes: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, problem: str) -> None:
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(problem)


def verify(repository: Repository, numbers: list[int], *, advance: Callable[[int], None]) -> Report:
    """Read all that these backups refer to, each byte once. `advance` is called with counts of bytes."""
    report, seen = Report(), set[tuple[int, int]]()
    with PackReader(repository) as packs, ThreadPoolExecutor(READERS) as threads:

        def check(place: Place) -> str:
            try:
                packs.read(place)
            except CorruptData as error:
                return str(error)
            return ""

        for number in numbers:
            report.backups += 1
            try:
                manifest = repository.manifest(number)
                repository.check_database(manifest)
            except CorruptData as error:
                report.add(f"backup {number}: {error}")
                continue
            with opened(repository.database(number)) as base:
                query = "SELECT pack, offset, length, crc32c FROM chunk WHERE length ORDER BY pack, offset"
                cursor = base.execute(query)
                while rows := cursor.fetchmany(AT_ONCE):
                    places = [Place(*row) for row in rows if (row[0], row[1]) not in seen]
                    seen.update((place.pack, place.offset) for place in places)
                    for problem in filter(None, threads.map(check, places)):
                        report.add(f"backup {number}: {problem}")
                    report.chunks += len(places)
                    report.bytes += sum(place.length for place in places)
                    advance(sum(place.length for place in places))
    return report


__all__ = ["Report", "verify"]
