"""Puts mistakes back into the code, one at a time, and reports which suites find them: `make planted`.

    run.py                  every patch beside this file, with its suites
    run.py NAME...          only these patches
    run.py --suite SUITE    only these suites; may be repeated
    run.py --trust          leave out that the suites pass without a patch

Each patch is a mistake that the project once had, or nearly. The tree is copied to a temporary directory, with its own
target directory; there the suites that should find it must pass without the patch, and at least one of them must fail
with it. Building is not counted in the times. Patches must apply to the present code (`tests/tidy/test_planted.py`).
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parent.parent
LIMIT_S: Final = 1800  # for one suite, or one build, on a busy machine
FAILED: Final = re.compile(r"^(?:test (\S+) \.\.\. FAILED|FAILED (\S+))", re.MULTILINE)
ABORTED: Final = "aborted"  # a suite failed and named no test


@dataclass(frozen=True, slots=True)
class Rust:
    """Tests of the crate: `target` is what cargo builds, `filters` are parts of the tests' names."""

    target: tuple[str, ...]
    filters: tuple[str, ...] = ()

    def build(self, tree: "Tree") -> None:
        """Compile the tests."""
        tree.run(("cargo", "test", "--locked", "--no-run", *self.target), cwd=tree.core).check()

    def test(self, tree: "Tree") -> "Result":
        """Run the tests."""
        command = ("cargo", "test", "--locked", *self.target, "--", *self.filters)
        return tree.run(command, cwd=tree.core)


@dataclass(frozen=True, slots=True)
class Python:
    """Tests of pytest. `native`: they need the crate as the patch has it."""

    arguments: tuple[str, ...]
    native: bool = False

    def build(self, tree: "Tree") -> None:
        """Make the native module, if it is needed."""
        if self.native:
            tree.build_native()

    def test(self, tree: "Tree") -> "Result":
        """Run the tests."""
        command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *self.arguments)
        return tree.run(command, cwd=tree.root)


Suite = Rust | Python
MODEL: Final = ("--test", "craq_model")
POWER: Final = ("--test", "power_loss")
# Of each patch, by the name of the suite: the narrowest tests that should find it.
PLAN: Final[dict[str, dict[str, Suite]]] = {
    "staged-by-leaver": {
        "model": Rust(MODEL, ("a_slow_disk_under_a_replica_that_returns", "rotated_to_the_tail")),
        "simulator": Rust(("--test", "craq_simulator"), ("long_random_walks",)),
        "server": Rust(("--test", "storage_server"), ("while_its_replica_is_away",)),
    },
    "compare-index-only": {
        "server": Rust(("--test", "storage_server"), ("the_tail_is_staging",)),
    },
    "one-fallback": {
        "model": Rust(MODEL, ("rounds_of_sync",)),
        "simulator": Rust(("--test", "craq_simulator"), ("long_random_walks",)),
        "engine": Rust(("--lib",), ("chunk::tests::power_loss",)),
        "recorded disk": Rust(POWER, ("chunks",)),
    },
    "file-without-its-name": {
        "recorded disk": Rust(POWER),
    },
    "answer-before-flush": {
        "recorded disk": Rust(POWER),
    },
    "torn-journal": {
        "recorded disk": Rust(POWER, ("chunks",)),
    },
    "rename-without-its-name": {
        "recorded disk": Python(("tests/unit/storage/test_power_loss.py",)),
    },
    "log-before-the-last": {
        "recorded disk": Python(("tests/unit/kv/test_power_loss.py",)),
    },
    "reply-before-flush": {
        "recorded disk": Python(("tests/unit/meta/test_power_loss.py",)),
    },
    "fsync-of-own-writes": {
        "client": Rust(("--lib",), ("client::file_tests::fsync",)),
        "interleavings": Rust(("--lib",), ("client::interleaving_tests",)),
        "mounts": Python(("tests/integration/test_shared_files.py",), native=True),
        "nemesis": Python(("tests/nemesis/test_nemesis.py", "-k", "what_was_synced"), native=True),
    },
    "fsync-beside-another": {
        "client": Rust(("--lib",), ("client::file_tests::fsync",)),
        "interleavings": Rust(("--lib",), ("client::interleaving_tests",)),
    },
    "promoted-unflushed": {
        "recovery": Python(("tests/unit/storage/test_recovery.py",)),
    },
    "named-before-it-is-there": {
        "switch": Python(("tests/unit/cli/test_metadata_switch.py",)),
    },
    "first-that-returns": {
        "table": Python(("tests/unit/mgmtd/test_transitions.py",)),
        "manager": Python(("tests/unit/mgmtd/test_model.py",)),
        "processes": Python(("tests/integration/test_storage_recovery.py", "-k", "lost_power")),
    },
}


@dataclass(frozen=True, slots=True)
class Result:
    """One command, and how it ended."""

    command: tuple[str, ...]
    code: int
    output: str
    took_s: float

    def check(self) -> None:
        """Ends the program if the command failed."""
        if self.code != 0:
            sys.exit(f"{self.output[-8000:]}\nrun.py: {' '.join(self.command)} failed")

    def failures(self) -> list[str]:
        """The tests that failed."""
        if self.code == 0:
            return []
        names = [first or second for first, second in FAILED.findall(self.output)]
        return sorted({name.rsplit("/", 1)[-1] for name in names}) or [ABORTED]


class Tree:
    """A copy of the working tree, with everything that is built of it."""

    def __init__(self, root: Path) -> None:
        self.root = root / "tree"
        self.core = self.root / "core"
        self._native = root / "native"
        self._environment = os.environ | {
            "CARGO_TARGET_DIR": str(root / "target"),
            "PYTHONPATH": f"{self._native}:{self.root / 'src'}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "RUST_BACKTRACE": "0",
        }
        files = subprocess.run(
            ("git", "ls-files", "-coz", "--exclude-standard"), cwd=ROOT, capture_output=True, check=True
        ).stdout
        listed = (
            name for name in files.split(b"\0") if name and os.path.lexists(os.path.join(bytes(ROOT), name))
        )
        copy = ("rsync", "-a", "--from0", "--files-from=-", f"{ROOT}/", f"{self.root}/")
        subprocess.run(copy, input=b"\0".join(listed), check=True)
        for profile in ("debug", "release"):
            self._seed(root / "target" / profile, ROOT / "core" / "target" / profile)

    @staticmethod
    def _seed(target: Path, built: Path) -> None:
        """Copies what the crate needs and is not made of it, so that it need not be compiled again."""
        if not built.exists():
            return
        kinds = [f"--include=*.{kind}" for kind in ("rlib", "rmeta", "so", "d")]
        folders = ("--include=*/", "--include=.fingerprint/**", "--include=build/**")
        ours = ("--exclude=incremental", "--exclude=*luciola*")
        target.mkdir(parents=True)
        command = ("rsync", "-am", *ours, *folders, *kinds, "--exclude=*", f"{built}/", f"{target}/")
        subprocess.run(command, check=True)

    def run(self, command: Sequence[str], *, cwd: Path) -> Result:
        """Runs a command in this tree."""
        started_s = time.monotonic()
        done = subprocess.run(
            command,
            cwd=cwd,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        return Result(tuple(command), done.returncode, done.stdout, time.monotonic() - started_s)

    def build_native(self) -> None:
        """Compiles the native module, and puts it before the installed one."""
        target = Path(self._environment["CARGO_TARGET_DIR"])
        command = ("cargo", "build", "--locked", "--release", "--lib", "--features", "python")
        self.run(command, cwd=self.core).check()
        import luciola_core

        package = Path(luciola_core.__file__).parent
        self._native.mkdir(exist_ok=True)
        subprocess.run(("rsync", "-a", f"{package}/", f"{self._native / 'luciola_core'}/"), check=True)
        (installed,) = (self._native / "luciola_core").glob("*.so")
        built = target / "release" / "libluciola_core.so"
        subprocess.run(("install", "-m", "755", built, installed), check=True)

    @contextmanager
    def planted(self, name: str) -> Iterator[None]:
        """The tree with that patch."""
        patch = HERE / f"{name}.patch"
        subprocess.run(("git", "apply", patch), cwd=self.root, check=True)
        try:
            yield
        finally:
            subprocess.run(("git", "apply", "-R", patch), cwd=self.root, check=True)


def chosen(names: Sequence[str], suites: Sequence[str]) -> dict[str, dict[str, Suite]]:
    """The part of the plan that was asked for."""
    unknown = [name for name in names if name not in PLAN]
    if unknown:
        sys.exit(f"run.py: no patch {', '.join(unknown)}; there are {', '.join(PLAN)}")
    plan = {name: PLAN[name] for name in names or PLAN}
    return {
        name: {suite: what for suite, what in about.items() if not suites or suite in suites}
        for name, about in plan.items()
    }


def check_unplanted(tree: Tree, plan: dict[str, dict[str, Suite]]) -> None:
    """Ends the program if a suite fails without any patch: it would find everything."""
    for about in plan.values():
        for suite, what in about.items():
            what.build(tree)
            result = what.test(tree)
            print(
                f"without a patch: {suite}: {'failed' if result.code else 'passed'}, {result.took_s:.0f} s",
                flush=True,
            )
            result.check()


def plant(tree: Tree, name: str, suites: dict[str, Suite]) -> bool:
    """Whether any of the suites finds the mistake."""
    found = False
    with tree.planted(name):
        for suite, what in suites.items():
            what.build(tree)
            result = what.test(tree)
            failures = result.failures()
            found = found or bool(failures)
            verdict = f"found in {result.took_s:.0f} s by {', '.join(failures)}" if failures else "not found"
            print(f"{name} | {suite} | {verdict}", flush=True)
    return found


def main() -> int:
    """What `make planted` runs."""
    parser = argparse.ArgumentParser(
        description="Put mistakes back into the code, and see which suites find them."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"patches: {', '.join(PLAN)}")
    parser.add_argument("--suite", action="append", default=[], help="only this suite")
    parser.add_argument("--trust", action="store_true", help="leave out that suites pass without a patch")
    given = parser.parse_args()
    plan = chosen(given.names, given.suite)
    with tempfile.TemporaryDirectory(prefix="luciola-planted-") as folder:
        tree = Tree(Path(folder))
        if not given.trust:
            check_unplanted(tree, plan)
        missed = [name for name, suites in plan.items() if suites and not plant(tree, name, suites)]
    if missed:
        print(f"found by no suite: {', '.join(missed)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
