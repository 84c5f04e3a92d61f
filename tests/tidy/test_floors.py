"""The floors of the crate: which module may use which, and that no files use one another in a circle."""

from pathlib import Path
from typing import Final

import pytest

from . import crate_graph

ROOT: Final = Path(__file__).parents[2]
SOURCES: Final = ROOT / "core" / "src"

# From the ground up. A module uses modules of the floors below its own, and none beside it.
FLOORS: Final = (
    {"types", "clock", "cancel", "schedule", "logged", "panics"},
    {"lock"},
    {"buffer", "craq", "log_rate_limit"},
    {"wire", "chunk"},
    {"error", "rdma"},
    {"net"},
    {"cluster"},
    {"client", "fuse", "storage"},
    {"mount", "ring"},
    {"python"},
    {"fuzz"},
)
# The chain protocol is pure: it knows ids and results, and no lock, clock, byte or socket.
PURE: Final = {"craq": {"types"}}


def floor(module: str) -> int:
    return next(number for number, floor in enumerate(FLOORS) if module in floor)


def wrong_uses(edges: crate_graph.Graph) -> list[str]:
    """Return each use of a module that is not below the one that uses it."""
    return sorted(
        {
            f"{'::'.join(module)} uses {used[0]}"
            for module, all_used in edges.items()
            for used in all_used
            if module
            and module[0] != used[0]
            and (floor(used[0]) >= floor(module[0]) or used[0] not in PURE.get(module[0], {used[0]}))
        }
    )


def test_every_module_of_the_crate_has_a_floor() -> None:
    modules = {path.stem for path in SOURCES.iterdir() if path.stem not in {"lib", "mod"}}
    assert modules == set().union(*FLOORS)


def test_modules_use_only_floors_below() -> None:
    assert wrong_uses(crate_graph.graph(crate_graph.read(SOURCES))) == []


def test_files_use_one_another_in_no_circle() -> None:
    assert crate_graph.circles(crate_graph.graph(crate_graph.read(SOURCES))) == []


def test_a_planted_use_of_a_higher_floor_is_found() -> None:
    texts = crate_graph.read(SOURCES)
    name = ("cluster", "routing")
    texts[name] = f"use crate::client::{{Client, OpenOptions}};\n{texts[name]}"
    assert wrong_uses(crate_graph.graph(texts)) == ["cluster::routing uses client"]


def test_a_planted_use_beside_is_found_without_a_declaration() -> None:
    texts = crate_graph.read(SOURCES)
    texts["fuse", "caller"] += "fn peek() -> usize { crate::storage::COUNT }"
    texts["craq", "view"] += "fn wait(lock: &crate::lock::Mutex<u8>) {}"
    assert wrong_uses(crate_graph.graph(texts)) == ["craq::view uses lock", "fuse::caller uses storage"]


@pytest.mark.parametrize(
    ("file", "used", "circle"),
    [
        (
            ("storage", "peers"),
            "super::send::SendRequest",
            ["storage::node", "storage::peers", "storage::send"],
        ),
        (
            ("client", "open_file", "machine"),
            "super::transitions::fsync::ChainSync",
            ["client::open_file::machine", "client::open_file::transitions::fsync"],
        ),
    ],
)
def test_a_planted_circle_of_files_is_found(file: tuple[str, ...], used: str, circle: list[str]) -> None:
    texts = crate_graph.read(SOURCES)
    texts[file] = f"use {used};\n{texts[file]}"
    found = crate_graph.circles(crate_graph.graph(texts))
    assert [set(circle) <= set(each) for each in found] == [True]


def test_uses_for_tests_and_re_exports_are_no_uses(tmp_path: Path) -> None:
    (tmp_path / "lib.rs").write_text("mod a;\nmod b;\n")
    (tmp_path / "a.rs").write_text("#[cfg(test)]\nmod tests {\n    use crate::b::B;\n}\npub struct A;\n")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mod.rs").write_text("mod inner;\n#[cfg(test)]\nmod fakes;\npub use inner::B;\n")
    (tmp_path / "b" / "inner.rs").write_text("// use super::fakes;\nuse crate::a::A;\npub struct B(A);\n")
    (tmp_path / "b" / "fakes.rs").write_text("use crate::a::A;\n")
    edges = crate_graph.graph(crate_graph.read(tmp_path))
    assert edges == {
        (): frozenset(),
        ("a",): frozenset(),
        ("b",): frozenset(),
        ("b", "inner"): frozenset({("a",)}),
    }
    assert crate_graph.circles(edges) == []
