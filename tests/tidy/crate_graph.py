"""Read which file of the crate uses which, from `use` declarations and paths, without compiling.

A name that a file re-exports (`pub use placement::Placement`) counts as used from the file that defines it, and a
re-export is no use. What is compiled only for tests and fuzzers does not count.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

Module = tuple[str, ...]
Graph = Mapping[Module, frozenset[Module]]

_USE: Final = re.compile(r"\b(pub(?:\([^)]*\))? )?use ([^;]+);")
_PATH: Final = re.compile(r"\b(?:crate|super|self)(?:::\w+)+")
_LOCAL_PATH: Final = re.compile(r"(?<![\w:])(?!crate|super|self)[a-z]\w*::\w+")
_TEST_ITEM: Final = re.compile(
    r"#\[cfg\((?:test|any\(test, fuzzing\))\)\]\s*(?:#\[[^\]]*\]\s*)*(?:pub(?:\([^)]*\))? )?mod (\w+)(;| \{)"
)


def read(root: Path) -> dict[Module, str]:
    """Return the production text of each file below `root`, by module path."""
    texts = {
        _module(path.relative_to(root)): _without_comments(path.read_text()) for path in root.rglob("*.rs")
    }
    return {module: _without_tests(text) for module, text in texts.items() if not _is_test(module, texts)}


def graph(texts: Mapping[Module, str]) -> Graph:
    """Return which modules each module uses."""
    exports = {module: dict(_exports(module, text, texts)) for module, text in texts.items()}
    used = {
        module: {_resolve(module, path, texts, exports) for path in _paths(text)}
        for module, text in texts.items()
    }
    # The root only declares modules; a path that ends there names one that is compiled for tests.
    return {module: frozenset(names - {None, (), module}) for module, names in used.items()}  # type: ignore[arg-type]


def circles(edges: Graph) -> list[list[str]]:
    """Return the groups of modules that use one another, directly or not (Tarjan 1972), sorted."""
    order: dict[Module, int] = {}
    low: dict[Module, int] = {}
    stack: list[Module] = []
    found: list[list[str]] = []

    def visit(module: Module) -> None:
        order[module] = low[module] = len(order)
        stack.append(module)
        for used in sorted(edges.get(module, ())):
            if used not in order:
                visit(used)
                low[module] = min(low[module], low[used])
            elif used in stack:
                low[module] = min(low[module], order[used])
        if low[module] == order[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1:
                found.append(sorted("::".join(each) for each in group))

    for module in sorted(edges):
        if module not in order:
            visit(module)
    return sorted(found)


def _module(path: Path) -> Module:
    parts = path.with_suffix("").parts
    return parts[:-1] if parts[-1] in {"mod", "lib"} else parts


def _without_comments(text: str) -> str:
    return re.sub(r"//[^\n]*", "", text)


def _without_tests(text: str) -> str:
    while found := re.search(r"#\[cfg\(test\)\]\s*mod \w+ \{", text):
        depth, end = 1, found.end()
        while depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        text = text[: found.start()] + text[end:]
    return re.sub(r"#\[cfg\(test\)\]\s*(pub(\([^)]*\))? )?(mod|use) [^;]*;", "", text)


def _is_test(module: Module, texts: Mapping[Module, str]) -> bool:
    """Whether a parent declares the module, or one that contains it, for tests alone."""
    for depth in range(len(module)):
        declared = _TEST_ITEM.findall(texts.get(module[:depth], ""))
        if (module[depth], ";") in declared:
            return True
    return False


def _paths(text: str) -> Iterator[str]:
    for public, tree in _USE.findall(text):
        if not public:
            yield from _expand(tree)
    rest = _USE.sub("", text)
    yield from _PATH.findall(rest)
    yield from _LOCAL_PATH.findall(rest)


def _expand(tree: str) -> Iterator[str]:
    """Yield the paths of a `use` tree: `a::{b, c::{d}}` is `a::b` and `a::c::d`."""
    tree = re.sub(r"\s+", " ", tree).strip()
    head, brace, inner = tree.partition("{")
    if not brace:
        yield tree.split(" as ")[0]
        return
    depth, part = 0, ""
    for mark in inner[: inner.rindex("}")] + ",":
        depth += {"{": 1, "}": -1}.get(mark, 0)
        if mark == "," and depth == 0:
            if part.strip():
                yield from (f"{head}{path}" for path in _expand(part))
            part = ""
        else:
            part += mark


def _exports(module: Module, text: str, texts: Mapping[Module, str]) -> Iterator[tuple[str, Module]]:
    for public, tree in _USE.findall(text):
        for path in _expand(tree) if public else ():
            *way, name = path.split("::")
            target = _walk(module, way, texts)
            if target is not None and target != module:
                yield name, target


def _walk(module: Module, way: Iterable[str], texts: Mapping[Module, str]) -> Module | None:
    """Follow path segments from `module` as far as they name files; None if the first one names none."""
    here: Module | None = None
    for segment in way:
        if segment == "crate":
            here = ()
        elif segment == "self":
            here = module if here is None else here
        elif segment == "super":
            here = (module if here is None else here)[:-1]
        elif (base := module if here is None else here) + (segment,) in texts:
            here = (*base, segment)
        else:
            break
    return here


def _resolve(
    module: Module, path: str, texts: Mapping[Module, str], exports: Mapping[Module, Mapping[str, Module]]
) -> Module | None:
    segments = path.split("::")
    here = _walk(module, segments, texts)
    if here is None:
        return None
    name = next(
        (each for each in segments if each not in {"crate", "self", "super"} and each not in here), ""
    )
    seen: set[Module] = set()
    while name in exports.get(here, {}) and here not in seen:
        seen.add(here)
        here = exports[here][name]
    return here
