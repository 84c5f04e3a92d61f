"""Fuzz one target: python -m fuzz.run TARGET [options of libFuzzer] DIRECTORY…

The first directory gets what reaches something new; an input that breaks something is written where `-artifact_prefix`
says. With `-runs=0` the inputs are only run.
"""

import sys

import atheris

with atheris.instrument_imports(include=["luciola"], enable_loader_override=False):
    from fuzz.targets import TARGETS


def main() -> None:
    name = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if name not in TARGETS:
        sys.exit(f"which target? One of {', '.join(TARGETS)}")
    # What libFuzzer has a shell run where it works with several processes (-merge=1).
    sys.argv[0] = f"{sys.executable} -m fuzz.run {name}"
    atheris.Setup(sys.argv, TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
