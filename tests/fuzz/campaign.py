"""Fuzz all parsers, those of Rust and of Python, one after the other (`make fuzz MINUTES=…`), and report.

Inputs that reach something new are collected in `core/fuzz/corpus` and `build/fuzz`; the next run begins with them.
With `--keep` those that add to the seeds are copied to them: look at them before a commit. Exit code 1 if an
input broke something; the report says where it is and what runs it again.
"""

import argparse
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
RUST = TREE / "core/fuzz"
HOST = "x86_64-unknown-linux-gnu"
# What `cargo fuzz` gives to rustc, less the sanitizer: that needs a nightly toolchain, and little here is unsafe.
COVERAGE = (
    "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 "
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table "
    "-Cllvm-args=-sanitizer-coverage-trace-compares"
)
INPUT_BYTES_MAX = 4096
KEPT_BYTES_MAX = 2048  # of a seed: the repository keeps hundreds of them


@dataclass(frozen=True)
class Target:
    """A fuzzer: its command, and where its inputs are."""

    name: str
    command: list[str]
    environment: dict[str, str]
    corpus: Path
    seeds: Path
    artifacts: Path

    def run(self, seconds: int) -> tuple[bool, str]:
        """(whether nothing broke, a line of the report)."""
        for directory in (self.corpus, self.seeds, self.artifacts):
            directory.mkdir(parents=True, exist_ok=True)
        options = [
            f"-max_total_time={seconds}",
            f"-max_len={INPUT_BYTES_MAX}",
            "-timeout=20",
            "-print_final_stats=1",
        ]
        options.append(f"-artifact_prefix={self.artifacts}/")
        done = self._call([*options, str(self.corpus), str(self.seeds)])
        runs, cover = (
            _last(pattern, done.stderr) for pattern in (r"number_of_executed_units: (\d+)", r"cov: (\d+)")
        )
        line = f"{self.name:20} {runs:>12} {cover:>9}  {len(list(self.corpus.iterdir())):>7}"
        if done.returncode == 0:
            return True, line
        found = _last(r"Test unit written to (\S+)", done.stderr)
        again = " ".join([*self.command, found])
        return False, f"{line}  BROKEN by {found}\n{done.stderr[-3000:]}\nagain: {again}"

    def keep(self) -> None:
        """Copy to the seeds what adds to them."""
        self._call(
            ["-merge=1", "-use_counters=0", f"-max_len={KEPT_BYTES_MAX}", str(self.seeds), str(self.corpus)]
        )

    def _call(self, arguments: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.command, *arguments],
            capture_output=True,
            cwd=TREE,
            env={**os.environ, **self.environment},
            errors="replace",
            text=True,
            check=False,
        )


def _last(pattern: str, text: str) -> str:
    return (re.findall(pattern, text) or ["?"])[-1]


def build() -> None:
    """Build the fuzzers of Rust."""
    subprocess.run(
        ["cargo", "build", "--release", "--locked", "--quiet", "--target", HOST],
        cwd=RUST,
        env={**os.environ, "RUSTFLAGS": COVERAGE},
        check=True,
    )


def targets() -> list[Target]:
    """All of them: as many as there are directories of seeds."""
    found = []
    for seeds in sorted((RUST / "seeds").iterdir()):
        name = seeds.name
        program = RUST / f"target/{HOST}/release/{name}"
        found.append(
            Target(
                f"rust {name}", [str(program)], {}, RUST / "corpus" / name, seeds, RUST / "artifacts" / name
            )
        )
    for seeds in sorted((TREE / "tests/fuzz/seeds").iterdir()):
        name = seeds.name
        command = [sys.executable, "-m", "fuzz.run", name]
        grown = TREE / "build/fuzz"
        environment = {"PYTHONPATH": str(TREE / "tests")}
        found.append(
            Target(
                f"python {name}",
                command,
                environment,
                grown / "corpus" / name,
                seeds,
                grown / "artifacts" / name,
            )
        )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="for all targets together")
    parser.add_argument(
        "--only", default="", help="targets whose name begins with this, as in 'python' or 'rust frame'"
    )
    parser.add_argument("--keep", action="store_true", help="copy to the seeds what adds to them")
    given = parser.parse_args()
    chosen = [target for target in targets() if target.name.startswith(given.only)]
    if not chosen:
        parser.error(
            f"no target begins with {given.only!r}: {', '.join(target.name for target in targets())}"
        )
    if any(target.name.startswith("rust") for target in chosen):
        build()
    print(f"{'target':20} {'executions':>12} {'coverage':>9}  {'corpus':>7}")
    seconds = max(1, round(given.minutes * 60 / len(chosen)))
    whole = True
    for target in chosen:
        good, line = target.run(seconds)
        whole = whole and good
        print(line, flush=True)
        if given.keep:
            target.keep()
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
