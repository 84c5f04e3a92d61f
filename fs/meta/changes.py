"""What an operation has changed, as users see it, found from its writes alone (kv/record.py).

    C1  one change for each name that came, moved or went, and one for each other inode that was stored and has a name
    C2  the changes of an operation depend on nothing but its writes: every reader of the log finds the same ones

A write says what is there now, never what was there before. The rest follows from how operations write (`operations/`):
one takes at most one name away, gives an inode its first name only when it makes it, and stores every inode whose
names it changes. What the collector does below a removed directory cannot be reached by a path, and is left out by
`feed`. Not done here: paths, and who may see what.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from ..kv.record import Operation
from ..wire.pb import meta_pb2 as pb
from . import schema

RESET: Final = -1  # in place of a kind: the namespace was replaced by that of a dump


class Name(NamedTuple):
    """A name in a directory. It keeps its cookie when it is changed, and no other has it."""

    directory: int
    name: bytes
    cookie: int = 0  # 0: not known


class Change(NamedTuple):
    """One change. `at` is the name that it leaves, `before` the one that it takes away."""

    kind: int  # a ChangeKind, or RESET
    inode: int = 0  # 0: not known
    type: int = 0
    at: Name | None = None
    before: Name | None = None
    replaced: int = 0
    parent: int = 0  # CHANGE_ATTRIBUTES: what the inode says of its name
    cookie: int = 0
    name: bytes = b""
    exchanged: bool = False  # CHANGE_RENAME: `replaced` has the name that was taken away
    is_shown: bool = True  # False: the other half of an exchange


def changes_of(operation: Operation) -> Sequence[Change]:
    """Return what the operation has changed, in the order in which it was done. Raises: CorruptData."""
    named: dict[Name, schema.Entry] = {}
    unnamed: list[tuple[int, bytes]] = []
    freed: dict[int, int] = {}
    inodes: dict[int, pb.Inode] = {}
    for key, value in operation.writes.items():
        kind = key[:1]
        if kind == b"D":
            directory, name = schema.split_one(key)
            if value is None:
                unnamed.append((directory, name))
            else:
                entry = schema.decode_entry(value)
                named[Name(directory, name, entry.cookie)] = entry
        elif kind == b"C" and value is None:
            directory, cookie = schema.split_two(key)
            freed[directory] = cookie
        elif kind == schema.INODES and value is not None:
            inode = schema.decode_inode(value)
            inodes[inode.id] = inode
        elif kind == schema.LOAD:
            return (Change(RESET),)
    if unnamed:
        changes = _names_gone([Name(*each, freed.get(each[0], 0)) for each in unnamed], named, inodes)
    else:
        changes = _names_made(named, inodes)
    touched = {number for change in changes for number in (change.inode, change.replaced)}
    others = (inode for inode in inodes.values() if inode.id not in touched and inode.link_count)
    return (*changes, *map(_stored, others))


def _names_gone(
    unnamed: Sequence[Name], named: Mapping[Name, schema.Entry], inodes: Mapping[int, pb.Inode]
) -> list[Change]:
    if len(unnamed) == 1 and len(named) == 1:  # a move
        ((at, entry),) = named.items()
        before = unnamed[0]._replace(
            cookie=unnamed[0].cookie or at.cookie
        )  # in one directory it keeps its cookie
        others = [number for number in inodes if number != entry.inode]
        replaced = others[0] if len(others) == 1 else 0
        return [Change(pb.CHANGE_RENAME, entry.inode, entry.type, at, before, replaced)]
    # More than one at a time go only where no path leads.
    victim = next(iter(inodes.values())) if len(inodes) == len(unnamed) == 1 else pb.Inode()
    return [Change(pb.CHANGE_REMOVE, victim.id, victim.type, before=place) for place in unnamed]


def _names_made(named: Mapping[Name, schema.Entry], inodes: Mapping[int, pb.Inode]) -> list[Change]:
    known = [
        (at, entry)
        for at, entry in named.items()
        if entry.inode in inodes and not _is_first(entry, inodes[entry.inode])
    ]
    if len(known) == len(named) == 2:  # an exchange
        (first, one), (second, other) = known
        return [
            Change(pb.CHANGE_RENAME, one.inode, one.type, first, second, other.inode, exchanged=True),
            Change(
                pb.CHANGE_RENAME,
                other.inode,
                other.type,
                second,
                first,
                one.inode,
                exchanged=True,
                is_shown=False,
            ),
        ]
    links = {at for at, _ in known}
    return [
        Change(pb.CHANGE_LINK if at in links else pb.CHANGE_CREATE, entry.inode, entry.type, at)
        for at, entry in named.items()
    ]


def _is_first(entry: schema.Entry, inode: pb.Inode) -> bool:
    """Return whether the inode was made with this name: every change of it since would have set its ctime."""
    is_its_own = inode.type == pb.DIRECTORY or entry.cookie == (inode.cookie or inode.id)
    return is_its_own and inode.ctime_ns == inode.birth_ns


def _stored(inode: pb.Inode) -> Change:
    return Change(
        pb.CHANGE_ATTRIBUTES,
        inode.id,
        inode.type,
        parent=inode.parent,
        cookie=inode.cookie or inode.id,
        name=inode.name,
    )


__all__ = ["RESET", "Change", "Name", "changes_of"]
