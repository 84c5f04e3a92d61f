"""Check what this release brings along: sources, licences, and crates that are linked twice (`make check`).

- D1 Crates come from crates.io and stand in a lock file, whose checksums cargo compares; nothing comes from elsewhere.
- D2 Each licence is one of LICENCES, also of what is used to build.
- D3 No crate is linked into the native module in two versions but those of TWICE: and so each bug twice.
- D4 What `pip install luciola` brings along, with the extras for users, has a licence of LICENCES or stands in EXTRA.
- D5 What is installed fits together (`pip check`).

Not here: known vulnerabilities, whose data cannot be had without a network (docs/decisions/0057-dependencies.md).
"""

import importlib.metadata
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

TREE = Path(__file__).resolve().parents[2]
LOCKED = ("core", "core/fuzz", "core/protogen")  # workspaces, each with its Cargo.lock
CRATES_IO = "registry+https://github.com/rust-lang/crates.io-index"
# Permissive, and those that only ask that changed files stay open.
LICENCES = {
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CNRI-Python", "ISC", "MIT", "MIT-0", "MIT-CMU",
    "MPL-2.0", "NCSA", "PSF-2.0", "Unicode-3.0", "Unlicense", "Zlib",
}  # fmt: skip
# Crates that are linked twice, and who asks for the older one.
TWICE = {
    "crypto-common": "crc-fast, through digest 0.10",
    "digest": "crc-fast",
    "getrandom": "ring",
    "hashbrown": "fjall, through dashmap",
    "spin": "fjall, through flume",
}
# Python distributions with other terms, and why they may come along.
EXTRA = {"nvidia-": "libraries of CUDA, which torch brings along", "cuda-": "the same"}
EXTRAS_FOR_USERS = ("plugins", "arrow", "fsspec")
# What a classifier, or free text, of a distribution means.
SPELLINGS = {
    "3-clause bsd license": "BSD-3-Clause",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "bsd license": "BSD-3-Clause",
    "bsd": "BSD-3-Clause",
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "python software foundation license": "PSF-2.0",
}


def is_allowed(expression: str) -> bool:
    """Whether a licence expression (SPDX; "/" as older crates write OR) can be met by LICENCES alone."""
    tokens = re.findall(r"[()]|[^\s()]+", expression.replace("/", " OR "))
    value, rest = _either(tokens)
    return value and not rest


def _either(tokens: list[str]) -> tuple[bool, list[str]]:
    value, rest = _all(tokens)
    while rest[:1] == ["OR"]:
        other, rest = _all(rest[1:])
        value = value or other
    return value, rest


def _all(tokens: list[str]) -> tuple[bool, list[str]]:
    value, rest = _one(tokens)
    while rest[:1] == ["AND"]:
        other, rest = _one(rest[1:])
        value = value and other
    return value, rest


def _one(tokens: list[str]) -> tuple[bool, list[str]]:
    if not tokens:
        return False, []
    if tokens[0] == "(":
        value, rest = _either(tokens[1:])
        return value and rest[:1] == [")"], rest[1:]
    # An exception (WITH) only adds to what a licence permits.
    rest = tokens[3:] if tokens[1:2] == ["WITH"] else tokens[1:]
    return tokens[0] in LICENCES, rest


def crate_findings(workspace: str, metadata: Mapping[str, Any]) -> Iterator[str]:
    """Yield what breaks D1 and D2 in the output of `cargo metadata`."""
    for crate in metadata["packages"]:
        name = f"{workspace}: {crate['name']} {crate['version']}"
        if crate["source"] not in (None, CRATES_IO):
            yield f"{name} comes from {crate['source']}: take it from crates.io (D1)"
        if crate["source"] is None and not Path(crate["manifest_path"]).is_relative_to(TREE):
            yield f"{name} is in {crate['manifest_path']}, outside of this repository (D1)"
        if not is_allowed(crate["license"] or ""):
            yield f"{name} has the licence {crate['license']!r}: choose another crate, or add it to LICENCES (D2)"


def linked_twice(metadata: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the crates that the root links in several versions, and these."""
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    crates = {crate["id"]: crate for crate in metadata["packages"]}
    linked, left = set(), [metadata["resolve"]["root"]]
    while left:
        one = left.pop()
        if one in linked or _runs_in_compiler(crates[one]):
            continue
        linked.add(one)
        left += [
            each["pkg"]
            for each in nodes[one]["deps"]
            if any(kind["kind"] is None for kind in each["dep_kinds"])
        ]
    versions: dict[str, list[str]] = {}
    for one in linked:
        versions.setdefault(crates[one]["name"], []).append(crates[one]["version"])
    return {name: sorted(found) for name, found in sorted(versions.items()) if len(found) > 1}


def _runs_in_compiler(crate: Mapping[str, Any]) -> bool:
    return any("proc-macro" in target["kind"] for target in crate["targets"])


def twice_findings(found: Mapping[str, list[str]]) -> Iterator[str]:
    """Yield what breaks D3, and entries of TWICE that are no longer true."""
    for name, versions in found.items():
        if name not in TWICE:
            yield f"core: {name} is linked as {' and '.join(versions)}: agree on one, or say in TWICE who asks (D3)"
    for name in TWICE.keys() - found.keys():
        yield f"core: {name} is no longer linked twice: take it out of TWICE (D3)"


def licence_of(metadata: Mapping[str, Any] | Any) -> str:
    """Return the licence of a Python distribution, as an expression; empty if it names none."""
    if found := metadata.get("License-Expression"):
        return str(found)
    prefix = "License :: "
    classifiers = [each for each in metadata.get_all("Classifier") or () if each.startswith(prefix)]
    names = [each.rpartition(" :: ")[2] for each in classifiers if each != "License :: OSI Approved"]
    if not names and (text := str(metadata.get("License") or "").partition("\n")[0].strip()):
        names = [text]
    return " OR ".join(SPELLINGS.get(name.lower(), name.replace(" ", "-")) for name in names)


def brought_along(name: str, extras: Iterable[str]) -> dict[str, str]:
    """Return the distributions that come with `name` and these extras, and their licences."""
    found: dict[str, str] = {}
    left = [(name, extra) for extra in ("", *extras)]
    seen = set()
    while left:
        one = left.pop()
        if one in seen:
            continue
        seen.add(one)
        try:
            distribution = importlib.metadata.distribution(one[0])
        except importlib.metadata.PackageNotFoundError:
            continue  # of another platform, or not installed: pip check names those that are missing
        found[one[0].lower().replace("_", "-")] = licence_of(distribution.metadata)
        for text in distribution.requires or ():
            wanted = Requirement(text)
            if wanted.marker is None or wanted.marker.evaluate({"extra": one[1]}):
                left += [(wanted.name, extra) for extra in ("", *wanted.extras)]
    return found


def distribution_findings(licences: Mapping[str, str]) -> Iterator[str]:
    """Yield what breaks D4."""
    for name, licence in sorted(licences.items()):
        if not is_allowed(licence) and not name.startswith(tuple(EXTRA)):
            yield f"{name} has the licence {licence!r}: choose another package, or add it to LICENCES or EXTRA (D4)"


def cargo_metadata(workspace: str) -> Mapping[str, Any]:
    """Return what cargo knows of a workspace, for Linux. Raises: CalledProcessError if its lock file is not current."""
    command = [
        "cargo",
        "metadata",
        "--format-version=1",
        "--locked",
        "--filter-platform=x86_64-unknown-linux-gnu",
    ]
    # Features of the crate itself; the other workspaces have none.
    command += ["--all-features"] if workspace == "core" else []
    done = subprocess.run(command, cwd=TREE / workspace, check=True, stdout=subprocess.PIPE)
    result: Mapping[str, Any] = json.loads(done.stdout)
    return result


def main() -> int:
    """Print what breaks a rule. Return 1 if something does."""
    findings: list[str] = []
    for workspace in LOCKED:
        metadata = cargo_metadata(workspace)
        findings += crate_findings(workspace, metadata)
        if workspace == "core":
            findings += twice_findings(linked_twice(metadata))
    findings += distribution_findings(brought_along("luciola", EXTRAS_FOR_USERS))
    print("\n".join(findings), end="\n" if findings else "")
    fits = subprocess.run([sys.executable, "-m", "pip", "check", "--quiet"], check=False).returncode == 0
    return 0 if fits and not findings else 1


if __name__ == "__main__":
    sys.exit(main())
