"""The namespace as it should be: nodes in memory, written without a look at the service."""

import errno
from dataclasses import dataclass, field


class Refused(Exception):
    def __init__(self, number: int) -> None:
        super().__init__(errno.errorcode[number])
        self.errno = number


@dataclass(eq=False)
class Node:
    kind: str  # "file", "directory", "symlink"
    permissions: int = 0o755
    data: bytes = b""
    target: bytes = b""
    children: dict[bytes, "Node"] = field(default_factory=dict)
    attributes: dict[bytes, bytes] = field(default_factory=dict)


class Model:
    def __init__(self) -> None:
        self.root = Node("directory")

    # Paths.

    def walk(self, path: bytes, *, follow: bool, links: int = 0):
        """(parent, name, node or None)."""
        return self._walk(self.root, [part for part in path.split(b"/") if part], follow, [links])

    def _walk(self, directory, parts, follow, links):
        parent, name = None, b""
        node = directory
        while parts:
            name, *parts = parts
            if node.kind != "directory":
                raise Refused(errno.ENOTDIR)
            parent, node = node, node.children.get(name)
            if node is None:
                if parts:
                    raise Refused(errno.ENOENT)
                return parent, name, None
            if node.kind == "symlink" and (parts or follow):
                links[0] += 1
                if links[0] > 40:
                    raise Refused(errno.ELOOP)
                start = self.root if node.target.startswith(b"/") else parent
                parts = [part for part in node.target.split(b"/") if part] + parts
                node, parent = start, None
        return parent, name, node

    def existing(self, path, *, follow):
        parent, name, node = self.walk(path, follow=follow)
        if node is None:
            raise Refused(errno.ENOENT)
        return parent, name, node

    def free(self, path):
        parent, name, node = self.walk(path, follow=False)
        if node is not None:
            raise Refused(errno.EEXIST)
        return parent, name

    def contains(self, directory, wanted) -> bool:
        return directory is wanted or any(
            self.contains(child, wanted) for child in directory.children.values() if child.kind == "directory"
        )

    # Operations.

    def create(self, path, *, exclusive, truncate, permissions):
        parent, name, node = self.walk(path, follow=not exclusive)
        if node is None:
            node = parent.children[name] = Node("file", permissions)
            return node
        if exclusive:
            raise Refused(errno.EEXIST)
        if node.kind == "symlink":
            raise Refused(errno.ELOOP)
        if node.kind == "directory":
            raise Refused(errno.EISDIR)
        if truncate:
            node.data = b""
        return node

    def mkdir(self, path):
        parent, name = self.free(path)
        parent.children[name] = Node("directory", 0o755 | parent.permissions & 0o2000)

    def make_parents(self, path):
        parts = [part for part in path.split(b"/") if part]
        made = 0
        while True:
            try:
                _, _, node = self.walk(b"/".join(parts[: len(parts) - made]), follow=True)
            except Refused as refused:
                if refused.errno != errno.ENOENT:
                    raise
                node = None
            if node is not None:
                break
            made += 1
        if node.kind != "directory":
            raise Refused(errno.ENOTDIR if made else errno.EEXIST)
        missing = parts[len(parts) - made :]
        if missing and missing[0] in node.children:
            raise Refused(errno.EEXIST)
        for name in missing:
            node.children[name] = Node("directory", 0o755 | node.permissions & 0o2000)
            node = node.children[name]

    def symlink(self, path, target):
        parent, name = self.free(path)
        parent.children[name] = Node("symlink", 0o777, target=target)

    def link(self, source, target):
        _, _, node = self.existing(source, follow=False)
        if node.kind == "directory":
            raise Refused(errno.EPERM)
        parent, name = self.free(target)
        parent.children[name] = node

    def unlink(self, path):
        parent, name, node = self.existing(path, follow=False)
        if node.kind == "directory":
            raise Refused(errno.EISDIR)
        del parent.children[name]
        return node

    def rmdir(self, path):
        parent, name, node = self.existing(path, follow=False)
        if node.kind != "directory":
            raise Refused(errno.ENOTDIR)
        if node.children:
            raise Refused(errno.ENOTEMPTY)
        del parent.children[name]

    def remove_tree(self, path):
        parent, name, _ = self.existing(path, follow=False)
        del parent.children[name]

    def rename(self, source, target, *, no_replace, exchange):  # noqa: C901, the rules in their order
        if no_replace and exchange:
            raise Refused(errno.EINVAL)
        here, name, moved = self.walk(source, follow=False)
        there, other, replaced = self.walk(target, follow=False)
        if moved is None:
            raise Refused(errno.ENOENT)
        if replaced is not None and no_replace:
            raise Refused(errno.EEXIST)
        if replaced is None and exchange:
            raise Refused(errno.ENOENT)
        if moved.kind == "directory" and here is not there and self.contains(moved, there):
            raise Refused(errno.EINVAL)
        if exchange:
            if replaced.kind == "directory" and here is not there and self.contains(replaced, here):
                raise Refused(errno.EINVAL)
            here.children[name], there.children[other] = replaced, moved
            return
        if replaced is moved:
            return
        if replaced is not None:
            if moved.kind == "directory" and replaced.kind != "directory":
                raise Refused(errno.ENOTDIR)
            if moved.kind == "directory" and replaced.children:
                raise Refused(errno.ENOTEMPTY)
            if moved.kind != "directory" and replaced.kind == "directory":
                raise Refused(errno.EISDIR)
        del here.children[name]
        there.children[other] = moved

    def truncate(self, path, length):
        _, _, node = self.existing(path, follow=True)
        if node.kind == "directory":
            raise Refused(errno.EISDIR)
        node.data = node.data[:length].ljust(length, b"\0")

    def chmod(self, path, permissions):
        _, _, node = self.existing(path, follow=True)
        node.permissions = permissions

    def set_attribute(self, path, name, value):
        _, _, node = self.existing(path, follow=True)
        node.attributes[name] = value

    # What is seen.

    def dump(self):
        links: dict[int, int] = {}
        first: dict[int, bytes] = {}

        def count(node):
            for child in node.children.values():
                if child.kind != "directory":
                    links[id(child)] = links.get(id(child), 0) + 1
                count(child)

        count(self.root)
        seen = {}

        def visit(path, node):
            kind = {"file": 1, "directory": 2, "symlink": 3}[node.kind]
            below = sum(child.kind == "directory" for child in node.children.values())
            seen[path] = (
                kind,
                oct(node.permissions),
                (0, 0),
                2 + below if node.kind == "directory" else links[id(node)],
                len(node.target) if node.kind == "symlink" else len(node.data),
                first.setdefault(id(node), path),
                node.target,
                node.data,
                tuple(sorted(node.attributes.items())),
            )
            for name, child in sorted(node.children.items()):
                visit(path + b"/" + name, child)

        visit(b"", self.root)
        return seen
