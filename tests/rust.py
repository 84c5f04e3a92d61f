"""Runs the Rust tests, and what failed once more (`make test-rust`).

- A test that fails is run again, alone, and passes if it passes then: both attempts are shown, and its name at the end.
- Tests whose subject is lost or wrong data are never run again, and of more than three failures none is.
- A binary that ends before its tests are counted has not passed, whatever it printed.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

CORE = Path(__file__).parents[1] / "core"
RUN_AGAIN_MAX = 3

# Beginnings of "target::test"; the crate's own tests have the target "lib".
INTEGRITY = (
    "chunk_concurrency::",
    "chunk_crash::",
    "chunk_disk_full::",
    "chunk_model::",
    "craq_model::",
    "craq_simulator::",
    "data::a_file_reads_back_like_a_vector",
    "data::an_update_whose_answer_was_lost_happens_once",
    "fuse_session::a_file_is_written_and_read_back",
    "lib::buffer::",
    "lib::chunk::",
    "lib::client::dirty::",
    "lib::client::file_tests::",
    "lib::client::inline::",
    "lib::craq::",
    "lib::server::tests::",
    "lib::wire::",
    "net::a_buffer_of_a_timed_out_read",
    "net::an_update_that_was_given_up",
    "net::damage_on_the_way",
    "net::memory_lent_on",
    "net::what_is_written_is_read_back",
    "storage_server::",
    "wire::",
)


@dataclass
class Outcome:
    """What one run of cargo printed."""

    failed: list[str] = field(default_factory=list)
    passed_count: int = 0
    # Targets that have begun and whose tests have not been counted.
    open: list[str] = field(default_factory=list)

    def may_run_again(self) -> bool:
        """Whether what went wrong is a few failed tests, none of them about lost or wrong data."""
        few = 0 < len(self.failed) <= RUN_AGAIN_MAX
        return few and not self.open and not any(name.startswith(INTEGRITY) for name in self.failed)


def outcome(lines: Iterable[str]) -> Outcome:
    """Reads what `cargo test` prints: targets, lists of failures, counts.

    What tests print themselves comes between, so failures are those of the list right before the counts.
    """
    seen = Outcome()
    failed: list[str] = []
    for line in lines:
        if begun := re.match(r"     Running (?:unittests )?(\S+) \(", line) or re.match(
            r"   (Doc-tests) ", line
        ):
            target = Path(begun[1]).stem
            seen.open.append(target)
        elif line.rstrip() == "failures:":
            failed = []
        elif one := re.match(r"    (\S+)$", line):
            failed.append(one[1])
        elif counts := re.match(r"test result: (\w+)\. (\d+) passed; (\d+) failed", line):
            if not seen.open:
                continue
            target = seen.open.pop()
            seen.passed_count += int(counts[2])
            names = failed[len(failed) - int(counts[3]) :]
            seen.failed += [f"{target}::{name}" for name in names]
            # A list that was garbled names too few.
            if len(names) != int(counts[3]):
                seen.open.append(target)
            failed = []
    return seen


def cargo_test(*options: str) -> tuple[int, Outcome]:
    """Runs cargo and shows what it prints."""
    command = ["cargo", "test", "--locked", *options]
    environment = {**os.environ, "CARGO_TERM_COLOR": "never"}
    lines = []
    with subprocess.Popen(
        command,
        cwd=CORE,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None, "it was asked for"
        for line in process.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            lines.append(line)
    return process.returncode, outcome(lines)


def run_again(name: str) -> bool:
    """Runs one test alone."""
    target, _, test = name.partition("::")
    which = ["--lib"] if target == "lib" else ["--test", target]
    code, seen = cargo_test(*which, "--", "--exact", test)
    return code == 0 and seen.passed_count == 1


def main(options: Sequence[str]) -> int:
    """The exit code: 0 if every test has passed, some perhaps only when it was run again."""
    code, seen = cargo_test("--no-fail-fast", *options)
    if code == 0:
        return 0
    if not seen.may_run_again():
        for name in seen.failed:
            print(f"failed, not run again: {name}")
        for target in seen.open:
            print(f"did not count its tests: {target}")
        return code
    passed = [run_again(name) for name in seen.failed]
    for name, has_passed in zip(seen.failed, passed, strict=True):
        print(f"failed once, passed when run again: {name}" if has_passed else f"failed twice: {name}")
    return 0 if all(passed) else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
