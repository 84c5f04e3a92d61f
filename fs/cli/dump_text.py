"""Dumps as text: one JSON object a line (docs/formats.md, "A dump of the namespace").

Bytes (names, targets, values, the bytes of small files) are a string where they are UTF-8, and {"base64": "…"} where
they are not. Numbers beyond 2^53, which many readers of JSON round, are strings: times in seconds with nine digits
after the point, `change` in decimal, `seed` and `store` in hexadecimal.
"""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from typing import BinaryIO, Final, TypeVar

from ..errors import InvalidArgument
from ..meta.dump import kind_of
from ..wire.pb import meta_pb2 as pb

LINE_BYTES_MAX: Final = 1 << 20  # 64 KiB of inline bytes take up to 6 characters each
NS_PER_S: Final = 1_000_000_000
TIME: Final = re.compile(r"(-?)([0-9]{1,11})\.([0-9]{9})", re.ASCII)
DIGITS: Final = {  # of numbers that are strings, by their base
    8: re.compile("[0-7]{1,5}", re.ASCII),
    10: re.compile("[0-9]{1,20}", re.ASCII),
    16: re.compile("[0-9a-f]{1,16}", re.ASCII),
}
TYPES: Final = {number: name.lower() for name, number in pb.FileType.items() if number}
NUMBERS: Final = {name: number for number, name in TYPES.items()}
COUNTED: Final = {"inode": "inodes", "attribute": "attributes", "entry": "entries"}
COUNTS: Final = tuple(COUNTED.values())
HEADER: Final = ("format", "cluster", "generation", "position", "next_inode", "next_content", "inode_count")

Fields = dict[str, object]
Value = TypeVar("Value", bound=object)


# Writing.


class TextWriter:
    """Writes the records of one dump."""

    def __init__(self, output: BinaryIO) -> None:
        self._output = output
        self._sum = hashlib.sha256()

    def write(self, record: pb.DumpRecord) -> None:
        """Write the next record; the trailer is the last one, and brings the checksum of all lines before it."""
        fields = ENCODERS[kind_of(record)](record)
        if fields["record"] == "trailer":
            fields["sha256"] = self._sum.hexdigest()
        line = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        self._sum.update(line)
        self._output.write(line)


def _encode_header(record: pb.DumpRecord) -> Fields:
    header = record.header
    fields: Fields = {"record": "header"} | {name: getattr(header, name) for name in HEADER}
    return fields | {"moment": _time(header.moment_ns), "store": f"{header.store:016x}"}


def _encode_inode(record: pb.DumpRecord) -> Fields:
    inode = record.inode
    fields: Fields = {
        "record": "inode",
        "inode": inode.id,
        "type": TYPES[inode.type],
        "mode": f"{inode.permissions:04o}",
        "uid": inode.uid,
        "gid": inode.gid,
        "links": inode.link_count,
        "length": inode.length,
        "atime": _time(inode.atime_ns),
        "mtime": _time(inode.mtime_ns),
        "ctime": _time(inode.ctime_ns),
        "birth": _time(inode.birth_ns),
        "change": str(inode.change),
    }
    if inode.type == pb.DIRECTORY:
        fields |= {"parent": inode.parent, "name": _text(inode.name)}
    elif inode.parent:
        fields |= {"parent": inode.parent, "cookie": inode.cookie}
    if inode.type == pb.REGULAR:
        fields |= {"content": inode.content, "truncate_version": inode.truncate_version}
    elif inode.type == pb.SYMLINK:
        fields["target"] = _text(inode.symlink_target)
    if inode.device:
        fields["device"] = inode.device
    if inode.HasField("layout"):
        fields["layout"] = _encode_layout(inode.layout)
    if inode.is_inline:
        fields["inline"] = _text(inode.inline_data)
    if inode.open_for_writing:
        fields["writing"] = True
    return fields


def _encode_layout(layout: pb.Layout) -> Fields:
    """Return the fields that are set."""
    fields: Fields = {field.name: value for field, value in layout.ListFields()}
    if "seed" in fields:
        fields["seed"] = f"{layout.seed:016x}"
    return fields


def _encode_attribute(record: pb.DumpRecord) -> Fields:
    attribute = record.attribute
    return {
        "record": "attribute",
        "inode": attribute.inode,
        "name": _text(attribute.name),
        "value": _text(attribute.value),
    }


def _encode_entry(record: pb.DumpRecord) -> Fields:
    entry = record.entry.entry
    fields: Fields = {
        "record": "entry",
        "directory": record.entry.parent,
        "name": _text(entry.name),
        "inode": entry.inode,
        "type": TYPES[entry.type],
    }
    if entry.cookie:
        fields["cookie"] = entry.cookie
    return fields


def _encode_trailer(record: pb.DumpRecord) -> Fields:
    return {"record": "trailer"} | {name: getattr(record.trailer, name) for name in COUNTS}


ENCODERS: Final[dict[str, Callable[[pb.DumpRecord], Fields]]] = {
    "header": _encode_header,
    "inode": _encode_inode,
    "attribute": _encode_attribute,
    "entry": _encode_entry,
    "trailer": _encode_trailer,
}


def _text(value: bytes) -> str | Fields:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


def _time(time_ns: int) -> str:
    seconds, rest = divmod(abs(time_ns), NS_PER_S)
    return f"{'-' if time_ns < 0 else ''}{seconds}.{rest:09d}"


# Reading.


class TextReader:
    """Reads the records of one dump, and refuses what is not one, or not whole."""

    def __init__(self, lines: BinaryIO) -> None:
        self._input = lines
        self._sum = hashlib.sha256()
        self._seen = pb.DumpTrailer()
        self.line = 0  # of the record that was given out last, from 1

    def __iter__(self) -> Iterator[pb.DumpRecord]:
        """Raises: InvalidArgument with the number of the line."""
        kind = ""
        while kind != "trailer":
            line = self._input.readline(LINE_BYTES_MAX + 1)
            self.line += 1
            try:
                fields, record = _decode(line)
                kind = _next_kind(self.line, fields)
                if kind == "trailer":
                    self._check_end(fields, record.trailer)
            except InvalidArgument as error:
                raise InvalidArgument(f"line {self.line} of the dump: {error.message}") from error
            self._sum.update(line)
            if kind in COUNTED:
                setattr(self._seen, COUNTED[kind], getattr(self._seen, COUNTED[kind]) + 1)
            yield record

    def _check_end(self, fields: Fields, trailer: pb.DumpTrailer) -> None:
        if fields["sha256"] != self._sum.hexdigest():
            raise InvalidArgument(
                "the checksum does not fit the lines before: the dump is damaged, or was changed without a new checksum"
            )
        if trailer != self._seen:
            raise InvalidArgument("the trailer counts other records than came before it")
        if self._input.read(1):
            raise InvalidArgument("something follows the trailer")


def _next_kind(line: int, fields: Fields) -> str:
    kind = str(fields["record"])
    if (kind == "header") != (line == 1):
        raise InvalidArgument("a dump begins with its header" if line == 1 else "a second header")
    return kind


def _decode(line: bytes) -> tuple[Fields, pb.DumpRecord]:
    """Return the fields of a line and the record that they are. Raises: InvalidArgument."""
    if not line.endswith(b"\n"):
        if len(line) > LINE_BYTES_MAX:
            raise InvalidArgument(f"longer than {LINE_BYTES_MAX} bytes")
        raise InvalidArgument("the dump ends here, before its trailer: it was cut off")
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"not JSON ({error})") from error
    kind = fields.get("record") if isinstance(fields, dict) else None
    if not isinstance(kind, str) or kind not in DECODERS:
        raise InvalidArgument(f'"record" must be one of {", ".join(DECODERS)}')
    record = pb.DumpRecord()
    left = dict(fields)
    del left["record"]
    try:
        DECODERS[kind](_Fields(left), record)
    except ValueError as error:  # a number that its field cannot hold
        raise InvalidArgument(str(error)) from error
    if left:
        raise InvalidArgument(f"unknown fields of {kind}: {', '.join(sorted(left))}")
    return fields, record


class _Fields:
    """Takes the fields of a line one by one. Every method raises InvalidArgument."""

    def __init__(self, left: Fields) -> None:
        self._left = left

    def has(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str, kind: type[Value]) -> Value:
        value = self._left.pop(name, None)
        if type(value) is not kind:  # True is no number here
            wanted = {int: "a number", str: "a string", bool: "true or false", dict: "an object"}[kind]
            raise InvalidArgument(f"{name!r} must be {wanted}")
        return value

    def number(self, name: str) -> int:
        return self.take(name, int)

    def string(self, name: str) -> str:
        return self.take(name, str)

    def bytes(self, name: str) -> bytes:
        value = self._left.pop(name, None)
        try:
            if isinstance(value, str):
                return value.encode()
            if isinstance(value, dict) and value.keys() == {"base64"}:
                return base64.b64decode(value["base64"], validate=True)
        except (UnicodeEncodeError, binascii.Error, TypeError) as error:
            raise InvalidArgument(f"{name!r}: {error}") from error
        raise InvalidArgument(f'{name!r} must be a string or {{"base64": "…"}}')

    def time_ns(self, name: str) -> int:
        found = TIME.fullmatch(self.string(name))
        if found is None:
            raise InvalidArgument(f"{name!r} must be seconds with nine digits after the point, as a string")
        sign, seconds, rest = found.groups()
        return (-1 if sign else 1) * (int(seconds) * NS_PER_S + int(rest))

    def written(self, name: str, base: int) -> int:
        """Return a number that is written as a string."""
        text = self.string(name)
        if not DIGITS[base].fullmatch(text):
            raise InvalidArgument(f"{name!r} must be digits, as a string")
        return int(text, base)

    def type(self) -> "pb.FileType":
        name = self.string("type")
        if name not in NUMBERS:
            raise InvalidArgument(f"'type' must be one of {', '.join(NUMBERS)}")
        return NUMBERS[name]  # type: ignore[return-value] # an enum's number


def _decode_header(fields: _Fields, record: pb.DumpRecord) -> None:
    header = record.header
    for name in HEADER:
        setattr(header, name, fields.string(name) if name == "cluster" else fields.number(name))
    header.store = fields.written("store", 16)
    header.moment_ns = fields.time_ns("moment")


def _decode_inode(fields: _Fields, record: pb.DumpRecord) -> None:
    inode = record.inode
    inode.id = fields.number("inode")
    inode.type = fields.type()
    inode.permissions = fields.written("mode", 8)
    inode.uid, inode.gid = fields.number("uid"), fields.number("gid")
    inode.link_count, inode.length = fields.number("links"), fields.number("length")
    inode.atime_ns, inode.mtime_ns = fields.time_ns("atime"), fields.time_ns("mtime")
    inode.ctime_ns, inode.birth_ns = fields.time_ns("ctime"), fields.time_ns("birth")
    inode.change = fields.written("change", 10)
    if inode.type == pb.DIRECTORY:
        inode.parent, inode.name = fields.number("parent"), fields.bytes("name")
    elif fields.has("parent"):
        inode.parent, inode.cookie = fields.number("parent"), fields.number("cookie")
    if inode.type == pb.REGULAR:
        inode.content = fields.number("content")
        inode.truncate_version = fields.number("truncate_version")
    elif inode.type == pb.SYMLINK:
        inode.symlink_target = fields.bytes("target")
    if fields.has("device"):
        inode.device = fields.number("device")
    if fields.has("layout"):
        _decode_layout(fields.take("layout", dict), inode.layout)
    if fields.has("inline"):
        inode.is_inline, inode.inline_data = True, fields.bytes("inline")
    if fields.has("writing"):
        inode.open_for_writing = fields.take("writing", bool)


def _decode_layout(values: Fields, layout: pb.Layout) -> None:
    layout.SetInParent()
    fields = _Fields(values)
    for name in tuple(values):
        if name not in layout.DESCRIPTOR.fields_by_name:
            raise InvalidArgument(f"unknown field of 'layout': {name}")
        setattr(layout, name, fields.written(name, 16) if name == "seed" else fields.number(name))


def _decode_attribute(fields: _Fields, record: pb.DumpRecord) -> None:
    attribute = record.attribute
    attribute.inode = fields.number("inode")
    attribute.name, attribute.value = fields.bytes("name"), fields.bytes("value")


def _decode_entry(fields: _Fields, record: pb.DumpRecord) -> None:
    record.entry.parent = fields.number("directory")
    entry = record.entry.entry
    entry.name, entry.inode, entry.type = fields.bytes("name"), fields.number("inode"), fields.type()
    if fields.has("cookie"):
        entry.cookie = fields.number("cookie")


def _decode_trailer(fields: _Fields, record: pb.DumpRecord) -> None:
    record.trailer.SetInParent()
    for name in COUNTS:
        setattr(record.trailer, name, fields.number(name))
    fields.string("sha256")


DECODERS: Final[dict[str, Callable[[_Fields, pb.DumpRecord], None]]] = {
    "header": _decode_header,
    "inode": _decode_inode,
    "attribute": _decode_attribute,
    "entry": _decode_entry,
    "trailer": _decode_trailer,
}


__all__ = ["LINE_BYTES_MAX", "TextReader", "TextWriter"]
