"""The checkpoints of a directory. Reads manifests and lengths only, and does not import torch.

A checkpoint is a directory whose name does not begin with a dot, with a manifest, and with all files that it names, in
their lengths. Hidden directories (of saves that run, or were interrupted) and those without a manifest are none. A
damaged or incomplete one, as an interrupted copy leaves it, is listed with its problem, and is never the latest.
"""

import logging
import operator
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Final, SupportsIndex

from luciola.client import Location, open_location, parse_location
from luciola.client.location import AnyFileSystem
from luciola.errors import CorruptData, InvalidArgument, NotFound

from .manifest import NAME, Manifest, read_manifest

log = logging.getLogger("luciola.checkpoint")

READERS: Final = 16  # manifests read at a time: a directory has some tens, each a round trip or two away


@dataclass(frozen=True)
class Saved:
    """One checkpoint. `problem` is the reason why it cannot be loaded, and empty for a whole one."""

    name: str
    location: Location
    manifest: Manifest | None = field(repr=False)
    problem: str = ""

    @property
    def step(self) -> int | None:
        """The step that was passed to the writer, or that the name ends with."""
        return None if self.manifest is None else self.manifest.step

    @property
    def order(self) -> tuple[int, int, str]:
        """Greater for newer ones."""
        if self.manifest is None:
            return -1, 0, self.name
        return self.manifest.serial, self.manifest.saved_ns, self.name


def list_checkpoints(
    location: str | os.PathLike[str] | Location,
    *,
    secret_file: str | os.PathLike[str] | None = None,
    token: str | None = None,
    token_file: str | os.PathLike[str] | None = None,
) -> list[Saved]:
    """List the checkpoints in a directory, oldest first. Raises: NotFound if there is no such directory."""
    return find(*opened(location, secret_file=secret_file, token=token, token_file=token_file))


def latest(
    location: str | os.PathLike[str] | Location,
    *,
    secret_file: str | os.PathLike[str] | None = None,
    token: str | None = None,
    token_file: str | os.PathLike[str] | None = None,
) -> Location | None:
    """Locate the newest whole checkpoint of a directory, for a `Reader`; None if it has none, or does not exist."""
    newest = newest_in(*opened(location, secret_file=secret_file, token=token, token_file=token_file))
    return None if newest is None else newest.location


def newest_in(file_system: AnyFileSystem, path: str, location: Location) -> Saved | None:
    """Find the newest whole checkpoint in a directory."""
    try:
        found = find_named(file_system, path, location)
    except FileNotFoundError:
        return None
    for saved in reversed(found):
        problem = problem_of(file_system, path, saved)
        if not problem:
            return saved
        log.warning("%s is incomplete: %s; an older checkpoint is the latest", saved.location, problem)
    return None


def find(file_system: AnyFileSystem, path: str, location: Location) -> list[Saved]:
    """List the checkpoints in the directory `path`, oldest first, each with its problem."""
    found = find_named(file_system, path, location)
    return [replace(saved, problem=problem_of(file_system, path, saved)) for saved in found]


def find_named(file_system: AnyFileSystem, path: str, location: Location) -> list[Saved]:
    """List as `find`, by names and manifests alone: files may be missing or cut off (see `problem_of`)."""

    def look_at(name: str) -> Saved | None:
        return _look(file_system, os.path.join(path, name), location.join(name))

    names = [name for name in file_system.listdir(path or ".") if not name.startswith(".")]
    with ThreadPoolExecutor(READERS, "luciola-manifests") as threads:
        found = [saved for saved in threads.map(look_at, names) if saved is not None]
    return sorted(found, key=lambda saved: saved.order)


def problem_of(file_system: AnyFileSystem, path: str, saved: Saved) -> str:
    """Find the problem of a checkpoint in the directory `path`, by the lengths of its files; empty if it is whole."""
    if saved.problem or saved.manifest is None:
        return saved.problem
    return _missing(file_system, os.path.join(path, saved.name), saved.manifest)


def look(file_system: AnyFileSystem, path: str, location: Location) -> Saved:
    """Find the checkpoint at `path` itself. Raises: NotFound."""
    saved = _look(file_system, path, location)
    if saved is None:
        read_manifest(file_system, path)
        raise NotFound("not a checkpoint", path=path)
    return replace(saved, problem=problem_of(file_system, os.path.dirname(path.rstrip("/")), saved))


def _look(file_system: AnyFileSystem, path: str, location: Location) -> Saved | None:
    name = os.path.basename(path.rstrip("/"))
    try:
        return Saved(name, location, read_manifest(file_system, path))
    except FileNotFoundError:
        return None
    except CorruptData as error:
        return Saved(name, location, None, str(error))


def _missing(file_system: AnyFileSystem, path: str, manifest: Manifest) -> str:
    """Compare lengths, by one listing with attributes."""
    listing: Any = file_system.scandir
    try:
        with listing(path) as entries:
            found = {entry.name: entry.stat().st_size for entry in entries if entry.name in manifest.files}
    except FileNotFoundError:
        return "it is being removed"
    for file, length in manifest.files.items():
        if file not in found:
            return f"{file} is missing"
        if found[file] != length:
            return f"{file} has {found[file]} bytes, not {length}"
    return ""


def next_serial(found: Iterable[Saved]) -> int:
    """Return one more than the greatest serial of a directory's checkpoints."""
    return 1 + max((saved.manifest.serial for saved in found if saved.manifest is not None), default=0)


def step_of(name: str) -> int | None:
    """Parse the number that a name ends with."""
    found = re.search(r"\d{1,18}$", name, re.ASCII)
    return None if found is None else int(found[0])


def step_number(step: SupportsIndex) -> int:
    """Convert a step to int: numpy's and torch's integers are steps too. Raises: ValueError."""
    try:
        number = operator.index(step)
    except TypeError:
        number = -1
    if number < 0 or isinstance(step, bool):
        raise ValueError(f"step is a number from 0 on, not {step!r}")
    return number


def as_location(
    location: str | os.PathLike[str] | Location,
    *,
    secret_file: str | os.PathLike[str] | None = None,
    token: str | None = None,
    token_file: str | os.PathLike[str] | None = None,
) -> Location:
    """Convert to a Location, opened with these credentials if any are given."""
    if not isinstance(location, Location):
        location = parse_location(location, os.environ)
    return location.with_credentials(secret_file=secret_file, token=token, token_file=token_file)


def opened(
    location: str | os.PathLike[str] | Location,
    *,
    secret_file: str | os.PathLike[str] | None = None,
    token: str | None = None,
    token_file: str | os.PathLike[str] | None = None,
) -> tuple[AnyFileSystem, str, Location]:
    """Open a location: its file system, its path there, and itself with these credentials if any are given."""
    found = as_location(location, secret_file=secret_file, token=token, token_file=token_file)
    return (*open_location(found), found)


def is_location(text: str | os.PathLike[str]) -> bool:
    """Return whether that can name a checkpoint."""
    try:
        as_location(text)
    except InvalidArgument:
        return False
    return True


__all__ = [
    "NAME",
    "Saved",
    "as_location",
    "find",
    "find_named",
    "is_location",
    "latest",
    "list_checkpoints",
    "look",
    "newest_in",
    "next_serial",
    "opened",
    "problem_of",
    "step_number",
    "step_of",
]
