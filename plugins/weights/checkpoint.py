"""A checkpoint on a location: what tensors it has, and their bytes, or parts of them, into tensors of yours.

C1  Only wanted bytes are read, and gaps of at most `gap_bytes` between them.
C2  Memory is bounded: the targets, and a staging buffer of 16 MiB.
C3  A block whose checksum is wrong raises before the call returns; what the targets hold then is unspecified.
C4  A file that was replaced after the checkpoint was opened is refused, not mixed with the old header.
"""

import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from luciola.client import Location, open_location
from luciola.client.location import AnyFileSystem
from luciola.errors import CorruptData, InvalidArgument, NotFound

from .checksums import SUFFIX, Checksums, parse_checksums
from .dtypes import torch_dtype
from .header import LENGTH_BYTES, Header, TensorInfo, header_length, parse_header
from .plan import BLOCK_BYTES, GAP_BYTES
from .transfer import Part, Transfer, grouped

if TYPE_CHECKING:
    import torch

    from .targets import Index, Placer

INDEX_SUFFIX: Final = ".safetensors.index.json"
FILE_SUFFIX: Final = ".safetensors"
FIRST_BYTES: Final = 256 << 10  # read of a file before its header's length is known: most headers are shorter
OPENED_AT_ONCE: Final = 16  # files, when there are many: hides what the network takes
INDEX_BYTES_MAX: Final = 100_000_000  # as of a header


@dataclass(frozen=True, slots=True)
class Slice:
    """Part of a tensor, and where it goes.

    `index`: a slice or a number for each dimension, from the first; those that are left out are taken whole. Slices
    have step 1 and lie within the tensor: a shard beyond the end is a mistake, not a shorter shard.
    """

    name: str
    target: "torch.Tensor"
    index: "Index" = ()


@dataclass(frozen=True)
class ReadReport:
    """What a call has done, in bytes."""

    needed: int  # of the tensors' parts that were asked for
    read: int  # from the file system
    verified: int  # against checksums beside the files
    reads: int  # operations


@dataclass(frozen=True)
class Damage:
    """A block of a tensor whose bytes do not match its checksum."""

    file: str
    tensor: str
    begin: int  # in the tensor
    end: int

    def __str__(self) -> str:
        return f"tensor {self.tensor!r}: bytes {self.begin} to {self.end} do not match their checksum"


@dataclass(frozen=True)
class _Shard:
    """One file of a checkpoint, as it was when it was opened."""

    header: Header
    checksums: Checksums | None
    identity: tuple[int, int, int]


class Checkpoint:
    """The tensors of one safetensors file, or of many. Holds no open files; may be shared by threads, and pickled.

    `tensors`: name -> TensorInfo, sorted by name. `metadata`: of the files' headers. `files`: paths, in order.
    """

    def __init__(
        self,
        file_system: AnyFileSystem,
        path: str,
        *,
        verify: bool = True,
        files: Sequence[str] | None = None,
    ) -> None:
        """Read the headers. Raises: NotFound, CorruptData. `verify=False` leaves checksums beside the files unread.

        `files`: names of files in the directory `path`, of which only these are opened. Their tensors are called
        FILE/NAME then, because a name may be in several.
        """
        self.file_system = file_system
        self.path = path
        self._arguments: dict[str, Any] = {"verify": verify, "files": files}
        weight_map = None
        if files is None:
            paths, weight_map = _files(file_system, path)
        else:
            paths = [os.path.join(path, file) for file in files]
        self._shards = _read_shards(file_system, paths, verify=verify)
        self.files = tuple(paths)
        self.tensors: dict[str, TensorInfo] = (
            _merge(self._shards, weight_map, path) if files is None else _by_file(self._shards)
        )
        self.metadata: dict[str, str] = {}
        for shard in self._shards:
            self.metadata.update(shard.header.metadata)
        self._file_index = {file: index for index, file in enumerate(self.files)}

    @classmethod
    def open(
        cls,
        location: str | os.PathLike[str] | Location,
        *,
        secret_file: str | os.PathLike[str] | None = None,
        token: str | None = None,
        token_file: str | os.PathLike[str] | None = None,
        verify: bool = True,
    ) -> Self:
        """Open a checkpoint at a location: a .safetensors file, an index of shards (….safetensors.index.json), or a
        directory that has one of the two."""
        return cls(
            *open_location(location, secret_file=secret_file, token=token, token_file=token_file),
            verify=verify,
        )

    def __repr__(self) -> str:
        return f"<Checkpoint {self.path!r}: {len(self.tensors)} tensors in {len(self.files)} files>"

    def file_has_checksums(self, file: str) -> bool:
        """Whether that file has checksums beside it."""
        return self._shards[self._file_index[file]].checksums is not None

    def info(self, name: str) -> TensorInfo:
        """Return what is known of a tensor. Raises: KeyError, which names what is there instead."""
        info = self.tensors.get(name)
        if info is None:
            import difflib

            near = difflib.get_close_matches(name, self.tensors, 1)
            raise KeyError(
                f"no tensor {name!r} in {self.path}" + (f"; did you mean {near[0]!r}?" if near else "")
            )
        return info

    # Reading.

    def read_into(
        self, targets: Mapping[str, "torch.Tensor"], *, convert: bool = False, gap_bytes: int = GAP_BYTES
    ) -> ReadReport:
        """Fill whole tensors. As `read_slices`."""
        slices = [Slice(name, target) for name, target in targets.items()]
        return self.read_slices(slices, convert=convert, gap_bytes=gap_bytes)

    def read_slices(
        self,
        slices: Iterable[Slice],
        *,
        convert: bool = False,
        gap_bytes: int = GAP_BYTES,
        whole_blocks: bool = False,
    ) -> ReadReport:
        """Fill targets with parts of tensors, many reads in flight.

        Contiguous parts go straight into targets in host memory (without a copy where that memory is a
        `luciola.client.Buffer`). The rest passes through staging: small tensors, column shards with
        gaps of at most `gap_bytes`, targets on a device, and other types if `convert` allows them.

        `whole_blocks`: every block of 1 MiB of which something is wanted is read whole, so that its checksum is
        verified, that of an edge or of a column too.

        Raises: KeyError for a name that is not there; ValueError or TypeError for a target that does not fit;
        CorruptData, which names file and tensor; OSError. A target may hold anything after an error.
        """
        if gap_bytes < 0:
            raise ValueError(f"gap_bytes is not negative: {gap_bytes}")
        wanted = list(slices)
        placer = self._placer(wanted, convert=convert, gap_bytes=gap_bytes, whole_blocks=whole_blocks)
        verified = _Verified(self._crcs)
        parts = placer.parts(verified.check_of)
        with self._opened({self.info(each.name).file for each in wanted}) as files:
            transfer = Transfer(self.file_system, files, placer.staging())
            transfer.run(grouped(parts, gap_bytes))
        return ReadReport(placer.needed_bytes, transfer.bytes_read, verified.bytes, transfer.reads)

    def check_slices(self, slices: Iterable[Slice], *, convert: bool = False) -> None:
        """Raise what `read_slices` would for names that are not there and targets that do not fit; read nothing."""
        self._placer(slices, convert=convert, gap_bytes=GAP_BYTES)

    def _placer(
        self, slices: Iterable[Slice], *, convert: bool, gap_bytes: int, whole_blocks: bool = False
    ) -> "Placer":
        from .targets import Placer

        placer = Placer(convert=convert, gap_bytes=gap_bytes, whole_blocks=whole_blocks)
        for each in slices:
            info = self.info(each.name)
            placer.add(info, self._file_index[info.file], each.target, each.index)
        return placer

    def load(
        self, names: Iterable[str] | None = None, *, device: "str | torch.device" = "cpu"
    ) -> dict[str, "torch.Tensor"]:
        """Read into new tensors, all by default."""
        import torch

        infos = [self.info(name) for name in (self.tensors if names is None else names)]
        targets = {
            info.name: torch.empty(info.torch_shape, dtype=torch_dtype(info.dtype), device=device)
            for info in infos
        }
        self.read_into(targets)
        return targets

    # Verifying.

    def verify(self, progress: Callable[[int], object] = lambda _: None) -> list[Damage]:
        """Read everything and return what does not match its checksum; needs no torch.

        Files without checksums are read too: storage nodes verify what they send. Raises: OSError.
        """
        damages: list[Damage] = []

        def look(info: TensorInfo, begin: int, view: memoryview) -> None:
            crc = self._crcs(info)
            if crc is not None and _crc32c(view) != crc[begin // BLOCK_BYTES]:
                damages.append(Damage(info.file, info.name, begin, begin + view.nbytes))
            progress(view.nbytes)

        self._for_each_block(look)
        return sorted(damages, key=lambda damage: (damage.file, damage.tensor, damage.begin))

    def checksums(self, progress: Callable[[int], object] = lambda _: None) -> dict[str, Checksums]:
        """Compute the checksums of each file by reading everything; needs no torch."""
        results = {
            shard.header.file: Checksums(
                shard.header.file_bytes,
                _crc32c(self.file_system.read(shard.header.file, 0, shard.header.data_offset)),
                {name: [0] * -(-info.nbytes // BLOCK_BYTES) for name, info in shard.header.tensors.items()},
            )
            for shard in self._shards
        }

        def note(info: TensorInfo, begin: int, view: memoryview) -> None:
            results[info.file].tensors[info.name][begin // BLOCK_BYTES] = _crc32c(view)
            progress(view.nbytes)

        self._for_each_block(note)
        return results

    def _for_each_block(self, see: Callable[[TensorInfo, int, memoryview], None]) -> None:
        def parts() -> Iterator[Part]:
            for index, shard in enumerate(self._shards):
                for info in sorted(shard.header.tensors.values(), key=lambda info: info.offset):
                    for begin in range(0, info.nbytes, BLOCK_BYTES):
                        yield Part(
                            index,
                            info.offset + begin,
                            min(BLOCK_BYTES, info.nbytes - begin),
                            land=functools.partial(see, info, begin),
                        )

        with self._opened(set(self.files)) as files:
            Transfer(self.file_system, files).run(grouped(parts(), 0))

    def _crcs(self, info: TensorInfo) -> list[int] | None:
        checksums = self._shards[self._file_index[info.file]].checksums
        return None if checksums is None else checksums.tensors[info.name]

    @contextlib.contextmanager
    def _opened(self, wanted: set[str]) -> Iterator[list[Any]]:
        """The files, open where they are wanted, None elsewhere. Raises: InvalidArgument for one that was replaced."""
        with contextlib.ExitStack() as stack:
            files: list[Any] = []
            for shard, path in zip(self._shards, self.files, strict=True):
                if path not in wanted:
                    files.append(None)
                    continue
                file: Any = stack.enter_context(self.file_system.open(path, "rb"))
                if _identity(file.stat()) != shard.identity:
                    raise InvalidArgument(
                        "the file was changed since the checkpoint was opened: open it again", path=path
                    )
                files.append(file)
            yield files

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(type(self), **self._arguments), (self.file_system, self.path)


class _Verified:
    """Checks blocks that arrive, and counts them."""

    def __init__(self, crcs_of: Callable[[TensorInfo], list[int] | None]) -> None:
        self._crcs_of = crcs_of
        self.bytes = 0

    def check_of(self, info: TensorInfo, begin: int, nbytes: int) -> Callable[[memoryview], None] | None:
        """Return the check of bytes of a tensor, if they are one whole block."""
        crcs = self._crcs_of(info)
        if crcs is None or begin % BLOCK_BYTES or nbytes != min(BLOCK_BYTES, info.nbytes - begin):
            return None
        expected = crcs[begin // BLOCK_BYTES]

        def check(view: memoryview) -> None:
            if _crc32c(view) != expected:
                raise CorruptData(str(Damage(info.file, info.name, begin, begin + nbytes)), path=info.file)
            self.bytes += nbytes

        return check


def _crc32c(data: bytes | memoryview) -> int:
    import luciola_core

    return luciola_core.crc32c(data)


# Which files, and what they hold.


def _files(file_system: AnyFileSystem, path: str) -> tuple[list[str], dict[str, str] | None]:
    """Paths, and the map name -> path that an index gives."""
    if path.endswith(INDEX_SUFFIX):
        return _read_index(file_system, path)
    if not file_system.isdir(path):
        return [path], None
    names = sorted(file_system.listdir(path))
    indexes = [name for name in names if name.endswith(INDEX_SUFFIX)]
    if len(indexes) > 1:
        raise InvalidArgument(
            f"several checkpoints in one directory: name one of {', '.join(indexes)}", path=path
        )
    if indexes:
        return _read_index(file_system, os.path.join(path, indexes[0]))
    files = [os.path.join(path, name) for name in names if name.endswith(FILE_SUFFIX)]
    if not files:
        raise NotFound(f"no {FILE_SUFFIX} file and no …{INDEX_SUFFIX} in the directory", path=path)
    return files, None


def _read_index(file_system: AnyFileSystem, path: str) -> tuple[list[str], dict[str, str]]:
    if file_system.stat(path).st_size > INDEX_BYTES_MAX:
        raise CorruptData(f"an index of more than {INDEX_BYTES_MAX} bytes", path=path)
    try:
        weight_map = _weight_map(json.loads(file_system.read(path)))
    except (ValueError, RecursionError) as error:
        raise CorruptData(f"not an index of safetensors files: {error!s:.200}", path=path) from error
    directory = os.path.dirname(path)
    where = {name: os.path.join(directory, file) for name, file in weight_map.items()}
    return sorted(set(where.values())), where


def _weight_map(table: Any) -> dict[str, str]:
    weight_map = table.get("weight_map") if isinstance(table, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError("no weight_map with the tensors' names")
    for name, file in weight_map.items():
        if not isinstance(file, str) or file in {"", ".", ".."} or "/" in file or "\0" in file:
            raise ValueError(
                f"tensor {name!r} is in {file!r}, which is not the name of a file beside the index"
            )
    return weight_map


def _read_shards(file_system: AnyFileSystem, paths: Sequence[str], *, verify: bool) -> list[_Shard]:
    read = functools.partial(_read_shard, file_system, verify=verify)
    if len(paths) == 1:
        return [read(paths[0])]
    with ThreadPoolExecutor(OPENED_AT_ONCE) as threads:
        return list(threads.map(read, paths))


def _read_shard(file_system: AnyFileSystem, path: str, *, verify: bool) -> _Shard:
    opened: Any = file_system.open(path, "rb")
    with opened as file:
        stat = file.stat()
        head = file.read(FIRST_BYTES)
        end = LENGTH_BYTES + header_length(head[:LENGTH_BYTES], stat.st_size, path)
        while len(head) < end:
            more = file.read(end - len(head))
            if not more:
                raise CorruptData(f"the file ends before byte {end}, in its header", path=path)
            head += more
    head = head[:end]
    header = parse_header(head[LENGTH_BYTES:], stat.st_size, path)
    return _Shard(header, _read_checksums(file_system, header, head) if verify else None, _identity(stat))


def _read_checksums(file_system: AnyFileSystem, header: Header, head: bytes) -> Checksums | None:
    path = header.file + SUFFIX
    try:
        text = file_system.read(path)
    except FileNotFoundError:
        return None
    checksums = parse_checksums(text, path)
    checksums.require_match(header, _crc32c(head), path)
    return checksums


def _identity(stat: os.stat_result) -> tuple[int, int, int]:
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _by_file(shards: list[_Shard]) -> dict[str, TensorInfo]:
    return {
        f"{os.path.basename(shard.header.file)}/{name}": info
        for shard in shards
        for name, info in shard.header.tensors.items()
    }


def _merge(shards: list[_Shard], weight_map: dict[str, str] | None, path: str) -> dict[str, TensorInfo]:
    """All tensors. Raises: CorruptData for a name in two files, or one that is not where the index says."""
    if weight_map is not None:
        by_file = {shard.header.file: shard.header.tensors for shard in shards}
        for name, file in weight_map.items():
            if name not in by_file[file]:
                raise CorruptData(
                    f"the index {path!r} says that tensor {name!r} is in this file; it is not", path=file
                )
        return {name: by_file[weight_map[name]][name] for name in sorted(weight_map)}
    found: dict[str, TensorInfo] = {}
    for shard in shards:
        for name, info in shard.header.tensors.items():
            if name in found:
                raise CorruptData(f"tensor {name!r} is also in {found[name].file!r}", path=info.file)
            found[name] = info
    return dict(sorted(found.items()))


__all__ = ["Checkpoint", "Damage", "ReadReport", "Slice"]
