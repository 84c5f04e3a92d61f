"""What a record of a dump must be to be loaded: whole, possible, and in its place after the one before.

Whether entries, inodes and link counts agree with one another is for `luciola fsck` to say: a dump shows a namespace as
it was, and one that was damaged must not be lost because of it.
"""

from collections.abc import Callable
from typing import Final

from ..errors import InvalidArgument
from ..ids import ROOT_INODE
from ..wire.pb import meta_pb2 as pb
from ..wire.pb.meta_pb2 import DIRECTORY, REGULAR, SYMLINK, DumpHeader, DumpRecord, DumpTrailer, Inode
from .allocator import FIRST_ID
from .context import DIRECTORY_LINKS
from .dump import kind_of
from .layout import INLINE_BYTES_MAX, length_max, validate
from .operations.link import LINKS_MAX
from .operations.xattr import NAME_BYTES_MAX, VALUE_BYTES_MAX
from .permissions import PERMISSION_BITS
from .removal_clock import CHANGE_MAX
from .resolve import PATH_BYTES_MAX, check_name

COUNT_MAX: Final = (1 << 32) - 1


class RecordChecks:
    """Follows the records of one dump, in their order. `is_known`: whether this cluster has a layout's chain table."""

    def __init__(
        self, header: DumpHeader, *, new_contents: bool, is_known: Callable[[pb.Layout], bool]
    ) -> None:
        self._header = header
        self._new_contents = new_contents
        self._is_known = is_known
        self._inode = 0  # that the records before were about
        self._type = 0
        self._attribute = b""  # the last one of that inode
        self._name = b""  # the last entry of that directory
        self.seen = DumpTrailer()
        self.change_max = 0  # of all inodes but directories, whose `change` is a time

    def check(self, record: DumpRecord) -> None:
        """Raises: InvalidArgument."""
        match kind_of(record):
            case "inode":
                self._check_inode(record.inode)
            case "attribute":
                self._check_attribute(record.attribute)
            case "entry":
                self._check_entry(record.entry)
            case other:
                raise InvalidArgument(f"between header and trailer there is no {other or 'such record'}")

    def _check_inode(self, inode: Inode) -> None:
        number = inode.id
        if self._inode == 0:
            _require(
                number == ROOT_INODE and inode.type == DIRECTORY, "the first inode is the root directory, 1"
            )
        else:
            _require(number > self._inode, f"inode {number} comes after {self._inode}: ids grow")
            _require(number >= FIRST_ID, f"no inode but the root has an id below {FIRST_ID}")
        _require(number < self._header.next_inode, "the id is not below next_inode of the header")
        _require(inode.type in pb.FileType.values() and inode.type != pb.TYPE_INVALID, "not a type of inodes")
        _require(inode.permissions <= PERMISSION_BITS, "permissions are at most 7777 (octal)")
        _require(inode.type == REGULAR or not (inode.content or inode.inline_data), "only files have content")
        _require(inode.type == SYMLINK or not inode.symlink_target, "only symbolic links have a target")
        if inode.type == DIRECTORY:
            _require(
                inode.link_count == 0 or DIRECTORY_LINKS <= inode.link_count <= COUNT_MAX,
                "a directory has at least 2 links, or none if it was removed",
            )
        else:
            _require(inode.link_count <= LINKS_MAX, f"a file has at most {LINKS_MAX} links")
            _require(inode.change <= CHANGE_MAX, f"`change` is at most {CHANGE_MAX}")
            self.change_max = max(self.change_max, inode.change)
        if inode.type == SYMLINK:
            target = inode.symlink_target
            _require(0 < len(target) < PATH_BYTES_MAX and b"\0" not in target, "not a target of a link")
            _require(inode.length == len(target), "the length of a link is that of its target")
        if inode.HasField("layout"):
            self._check_layout(inode)
        if inode.type == REGULAR:
            self._check_file(inode)
        self._inode, self._type, self._attribute, self._name = number, inode.type, b"", b""
        self.seen.inodes += 1

    def _check_layout(self, inode: Inode) -> None:
        _require(inode.type in (REGULAR, DIRECTORY), "only files and directories have a layout")
        validate(inode.layout)
        _require(
            self._is_known(inode.layout),
            f"chain table {inode.layout.table}, version {inode.layout.table_version}, is not one of this cluster",
        )

    def _check_file(self, inode: Inode) -> None:
        _require(inode.HasField("layout"), "a file has a layout")
        if self._new_contents:
            _require(not inode.content, "this load gives every file a new content: the record must have none")
        else:
            _require(
                0 < inode.content < self._header.next_content,
                "content is not below next_content of the header",
            )
        _require(inode.length <= length_max(inode.layout), "the file is too long for its layout")
        if inode.is_inline:
            _require(len(inode.inline_data) <= INLINE_BYTES_MAX, f"more than {INLINE_BYTES_MAX} inline bytes")
            _require(len(inode.inline_data) <= inode.length, "more inline bytes than the file is long")
        else:
            _require(not inode.inline_data, "a file in chunks has no inline bytes")

    def _check_attribute(self, attribute: pb.DumpedAttribute) -> None:
        name = attribute.name
        _require(attribute.inode == self._inode, f"the attribute does not follow its inode {attribute.inode}")
        _require(0 < len(name) <= NAME_BYTES_MAX and b"\0" not in name, "not a name of an attribute")
        _require(name > self._attribute, "attributes of an inode come by name, each once")
        _require(not self._name, "attributes come before entries")
        _require(len(attribute.value) <= VALUE_BYTES_MAX, f"a value has at most {VALUE_BYTES_MAX} bytes")
        self._attribute = name
        self.seen.attributes += 1

    def _check_entry(self, scanned: pb.ScannedDentry) -> None:
        entry = scanned.entry
        _require(
            scanned.parent == self._inode and self._type == DIRECTORY,
            f"the entry does not follow its directory {scanned.parent}",
        )
        check_name(entry.name)
        _require(entry.name not in (b".", b".."), "not a file name")
        _require(entry.name > self._name, "entries of a directory come by name, each once")
        _require(
            FIRST_ID <= entry.inode < self._header.next_inode,
            "the inode is not below next_inode of the header",
        )
        _require(
            not entry.cookie or FIRST_ID <= entry.cookie < self._header.next_inode,
            "the cookie is not below next_inode of the header",
        )
        _require(entry.type in pb.FileType.values() and entry.type != pb.TYPE_INVALID, "not a type of inodes")
        self._name = entry.name
        self.seen.entries += 1


def _require(condition: bool, otherwise: str) -> None:  # noqa: FBT001, reads like an assertion
    if not condition:
        raise InvalidArgument(otherwise)


__all__ = ["RecordChecks"]
