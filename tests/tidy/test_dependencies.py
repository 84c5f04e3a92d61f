"""tests/tidy/dependencies.py finds what breaks its rules; `make check` runs it on what is installed."""

from email.message import Message

import pytest

from tidy import dependencies
from tidy.dependencies import CRATES_IO, TREE, crate_findings, distribution_findings, is_allowed, linked_twice


@pytest.mark.parametrize(
    "expression",
    [
        "MIT",
        "MIT/Apache-2.0",
        "GPL-3.0-only OR MIT",
        "(MIT OR Apache-2.0) AND Unicode-3.0",
        "Apache-2.0 WITH LLVM-exception",
    ],
)
def test_permissive_licences_are_allowed(expression):
    assert is_allowed(expression)


@pytest.mark.parametrize(
    "expression",
    ["", "GPL-3.0-only", "MIT AND GPL-2.0-only", "(MIT OR ISC) AND AGPL-3.0-only", "(MIT", "MIT MIT"],
)
def test_other_licences_are_not(expression):
    assert not is_allowed(expression)


def crate(name, version="1.0.0", *, source=CRATES_IO, licence="MIT", kind="lib"):
    return {
        "id": f"{name}@{version}",
        "name": name,
        "version": version,
        "source": source,
        "license": licence,
        "manifest_path": str(TREE / "core/Cargo.toml"),
        "targets": [{"kind": [kind]}],
    }


def graph(crates, edges):
    """What cargo says of crates and (from, to, kind), where the first crate is the root."""
    nodes = [
        {
            "id": each["id"],
            "deps": [
                {"pkg": to, "dep_kinds": [{"kind": kind}]} for begin, to, kind in edges if begin == each["id"]
            ],
        }
        for each in crates
    ]
    return {"packages": crates, "resolve": {"root": crates[0]["id"], "nodes": nodes}}


def test_crates_from_elsewhere_and_with_other_licences_are_found():
    packages = [
        crate("good"),
        crate("git", source="git+https://example.org/x"),
        crate("own", source=None),
        crate("closed", licence=None),
        crate("copyleft", licence="GPL-3.0-only"),
        crate("outside", source=None) | {"manifest_path": "/elsewhere/Cargo.toml"},
    ]
    found = [each.split()[1] for each in crate_findings("core", {"packages": packages})]
    assert found == ["git", "closed", "copyleft", "outside"]


def test_only_what_is_linked_counts_as_twice():
    crates = [crate("root", source=None), crate("a"), crate("b"), crate("m", kind="proc-macro")]
    crates += [crate(name, version) for name in ("x", "y", "z") for version in ("1.0.0", "2.0.0")]
    edges = [("root@1.0.0", name, None) for name in ("a@1.0.0", "b@1.0.0", "m@1.0.0", "y@1.0.0")]
    edges += [("a@1.0.0", "x@1.0.0", None), ("b@1.0.0", "x@2.0.0", None)]
    edges += [("m@1.0.0", "y@2.0.0", None), ("root@1.0.0", "z@1.0.0", None), ("root@1.0.0", "z@2.0.0", "dev")]
    assert linked_twice(graph(crates, edges)) == {"x": ["1.0.0", "2.0.0"]}


def test_crates_that_are_twice_are_explained_and_no_others():
    known = {name: ["1", "2"] for name in dependencies.TWICE}
    assert list(dependencies.twice_findings(known)) == []
    gone = known.popitem()[0]
    found = list(dependencies.twice_findings({**known, "new": ["1", "2"]}))
    assert [("new" in each, gone in each) for each in found] == [(True, False), (False, True)]


def test_licences_of_distributions_are_read_as_they_are_written():
    def of(**headers):
        message = Message()
        for name, values in headers.items():
            for value in values:
                message[name.replace("_", "-")] = value
        return dependencies.licence_of(message)

    assert of(License_Expression=["MIT AND ISC"], License=["x"]) == "MIT AND ISC"
    assert of(Classifier=["License :: OSI Approved :: BSD License", "Topic :: x"]) == "BSD-3-Clause"
    assert of(License=["Apache 2.0\nall of its text"]) == "Apache-2.0"
    assert of() == ""
    found = list(
        distribution_findings({"good": "MIT", "nvidia-x": "Proprietary", "bad": "", "worse": "GPL-3.0-only"})
    )
    assert [each.split()[0] for each in found] == ["bad", "worse"]


def test_what_luciola_needs_is_followed_through_its_extras():
    plain = dependencies.brought_along("luciola", ())
    assert {"luciola", "luciola-core", "grpcio", "click"} <= plain.keys()
    assert "fsspec" not in plain
    assert "fsspec" in dependencies.brought_along("luciola", ("fsspec",))
