"""Which checkpoints a directory has. Reads manifests only, and no torch.

A checkpoint is a directory whose name does not begin with a dot, with a manifest, and with all files that it names, in
their lengths. What is hidden (a save that goes on, or was interrupted) and what has no manifest is not one. A damaged
or incomplete one, as an interrupted copy leaves it, is listed with what is wrong, and never taken for the latest.
"""

import logging
import os
import re
from dataclasses import dataclass, field

from luciola.client import Location, open_location, parse_location
from luciola.client.location import AnyFileSystem
from luciola.errors import CorruptData, InvalidArgument, NotFound

from .manifest import NAME, Manifest, read_manifest

log = logging.getLogger("luciola.checkpoint")


@dataclass(frozen=True)
class Saved:
    """One checkpoint. `problem` says what is wrong with one that cannot be loaded, and is empty otherwise."""

    name: str
    location: Location
    manifest: Manifest | None = field(repr=False)
    problem: str = ""

    @property
    def step(self) -> int | None:
        """The step that was given to the writer, or that the name ends with."""
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
) -> list[Saved]:
    """The checkpoints in a directory, oldest first. Raises: NotFound if there is no such directory."""
    file_system, path = open_location(location, secret_file=secret_file, token=token)
    return find(file_system, path, as_location(location, secret_file=secret_file, token=token))


def latest(
    location: str | os.PathLike[str] | Location,
    *,
    secret_file: str | os.PathLike[str] | None = None,
    token: str | None = None,
) -> Location | None:
    """Where the newest whole checkpoint of a directory is, for a `Reader`; None if it has none, or is not there."""
    file_system, path = open_location(location, secret_file=secret_file, token=token)
    newest = newest_in(file_system, path, as_location(location, secret_file=secret_file, token=token))
    return None if newest is None else newest.location


def newest_in(file_system: AnyFileSystem, path: str, location: Location) -> Saved | None:
    """The newest whole checkpoint in a directory."""
    try:
        found = find(file_system, path, location)
    except FileNotFoundError:
        return None
    for saved in reversed(found):
        if not saved.problem:
            return saved
        log.warning("%s is not taken for the latest checkpoint: %s", saved.location, saved.problem)
    return None


def find(file_system: AnyFileSystem, path: str, location: Location) -> list[Saved]:
    """The checkpoints in the directory `path`, oldest first."""
    names = [name for name in file_system.listdir(path or ".") if not name.startswith(".")]
    found = [_look(file_system, os.path.join(path, name), location.join(name)) for name in names]
    return sorted((saved for saved in found if saved is not None), key=lambda saved: saved.order)


def look(file_system: AnyFileSystem, path: str, location: Location) -> Saved:
    """The checkpoint at `path` itself. Raises: NotFound."""
    saved = _look(file_system, path, location)
    if saved is None:
        read_manifest(file_system, path)
        raise NotFound("not a checkpoint", path=path)
    return saved


def _look(file_system: AnyFileSystem, path: str, location: Location) -> Saved | None:
    name = os.path.basename(path.rstrip("/"))
    try:
        manifest = read_manifest(file_system, path)
    except FileNotFoundError:
        return None
    except CorruptData as error:
        return Saved(name, location, None, str(error))
    return Saved(name, location, manifest, _missing(file_system, path, manifest))


def _missing(file_system: AnyFileSystem, path: str, manifest: Manifest) -> str:
    for file, length in manifest.files.items():
        try:
            found = file_system.stat(os.path.join(path, file)).st_size
        except FileNotFoundError:
            return f"{file} is missing"
        if found != length:
            return f"{file} has {found} bytes, not {length}"
    return ""


def next_serial(file_system: AnyFileSystem, directory: str) -> int:
    """One more than the greatest of a directory's checkpoints."""
    greatest = 0
    for name in file_system.listdir(directory or "."):
        if not name.startswith("."):
            try:
                greatest = max(greatest, read_manifest(file_system, os.path.join(directory, name)).serial)
            except (FileNotFoundError, CorruptData):
                continue
    return greatest + 1


def step_of(name: str) -> int | None:
    """The number that a name ends with."""
    found = re.search(r"\d{1,18}$", name, re.ASCII)
    return None if found is None else int(found[0])


def as_location(
    location: str | os.PathLike[str] | Location,
    *,
    secret_file: str | os.PathLike[str] | None = None,
    token: str | None = None,
) -> Location:
    """The same as a Location, opened with these credentials if any are given."""
    if not isinstance(location, Location):
        location = parse_location(location, os.environ)
    return location.with_credentials(secret_file=secret_file, token=token)


def is_location(text: str | os.PathLike[str]) -> bool:
    """Whether that can name a checkpoint."""
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
    "is_location",
    "latest",
    "list_checkpoints",
    "look",
    "newest_in",
    "next_serial",
    "step_of",
]
