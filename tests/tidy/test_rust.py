"""`make test-rust` runs what failed once more, under the rules of tests/rust.py; cargo is a script here."""

import os
import stat
import textwrap
from pathlib import Path

import pytest

import rust

PASSED = """\
   Compiling luciola-core v0.1.0 (/core)
    Finished `test` profile [unoptimized + debuginfo] target(s) in 1.00s
     Running unittests src/lib.rs (target/debug/deps/luciola_core-f95897bd3da25884)

running 2 tests
test net::budget::tests::a_share_is_given_back ... ok
test client::names::tests::one ... ok

test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s

   Doc-tests luciola_core

running 0 tests

test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s

"""


def failed_in(target: str, *names: str, of: int = 9) -> str:
    """What cargo prints of a target some of whose tests fail."""
    stdout = "\n".join(f"---- {name} stdout ----\n    left\nassertion failed\n" for name in names)
    listed = "\n".join(f"    {name}" for name in names)
    counts = f"{of - len(names)} passed; {len(names)} failed; 0 ignored; 0 measured"
    return (
        f"     Running {target} (target/debug/deps/x-1)\n\nrunning {of} tests\n\nfailures:\n\n{stdout}\n\n"
        f"failures:\n{listed}\n\ntest result: FAILED. {counts}; 0 filtered out; finished in 1.0s\n\n"
        f"error: test failed, to rerun pass `--test x`\n"
    )


def cargo(directory: Path, monkeypatch: pytest.MonkeyPatch, first: str, *again: tuple[str, bool]) -> Path:
    """Puts a cargo in the path that prints `first` and fails, and then ends as `again` says of each test."""
    (directory / "first").write_text(first)
    for name, passes in again:
        count = "1 passed; 0 failed" if passes else "0 passed; 1 failed"
        listed = "" if passes else f"failures:\n    {name}\n\n"
        text = f"     Running tests/x.rs (target/x-1)\n\n{listed}test result: so. {count}; 0 ignored\n"
        (directory / name.replace("::", "__")).write_text(text)
        (directory / f"{name.replace('::', '__')}.code").write_text("0" if passes else "101")
    program = directory / "cargo"
    program.write_text(
        textwrap.dedent(f"""\
        #!/bin/bash
        echo "$*" >> {directory}/calls
        if [[ "$*" != *--exact* ]]; then cat {directory}/first; exit 101; fi
        name="${{@: -1}}"; name="${{name//::/__}}"
        cat "{directory}/$name"; exit "$(cat "{directory}/$name.code")"
        """)
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{directory}{os.pathsep}{os.environ['PATH']}")
    return directory / "calls"


def test_what_passed_is_counted_and_nothing_is_left_open() -> None:
    assert rust.outcome(PASSED.splitlines()) == rust.Outcome(passed_count=2)


def test_failures_are_those_listed_before_the_counts() -> None:
    lines = (
        PASSED + failed_in("tests/net.rs", "one", "two") + failed_in("unittests src/lib.rs", "a::b")
    ).splitlines()
    seen = rust.outcome(lines)
    assert seen.failed == ["net::one", "net::two", "lib::a::b"]
    assert seen.passed_count == 2 + 7 + 8
    assert seen.may_run_again()


def test_a_binary_that_dies_gets_no_second_try() -> None:
    crash = (
        "     Running tests/lane.rs (target/x-1)\n\nrunning 9 tests\ntest one ... ok\nerror: test failed\n"
    )
    seen = rust.outcome((failed_in("tests/net.rs", "one") + crash).splitlines())
    assert seen.open == ["lane"]
    assert not seen.may_run_again()


def test_a_list_that_lacks_a_name_gets_no_second_try() -> None:
    text = failed_in("tests/net.rs", "one").replace("\n    one\n", "\nnoise    one\n")
    assert not rust.outcome(text.splitlines()).may_run_again()


def test_what_does_not_compile_gets_no_second_try() -> None:
    assert not rust.outcome(["error: could not compile `luciola-core`"]).may_run_again()


def test_what_fails_once_passes_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = failed_in("unittests src/lib.rs", "client::names::tests::one") + failed_in("tests/net.rs", "two")
    again = [("client::names::tests::one", True), ("two", True)]
    calls = cargo(tmp_path, monkeypatch, first, *again)
    assert rust.main(["--features", "x"]) == 0
    said = capsys.readouterr().out
    assert "failed once, passed when run again: lib::client::names::tests::one\n" in said
    assert "failed once, passed when run again: net::two\n" in said
    assert "---- two stdout ----" in said
    assert calls.read_text().splitlines() == [
        "test --locked --no-fail-fast --features x",
        "test --locked --lib -- --exact client::names::tests::one",
        "test --locked --test net -- --exact two",
    ]


def test_what_fails_twice_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cargo(tmp_path, monkeypatch, failed_in("tests/net.rs", "one", "two"), ("one", True), ("two", False))
    assert rust.main([]) == 101
    said = capsys.readouterr().out
    assert "passed when run again: net::one" in said
    assert "failed twice: net::two" in said


def test_a_second_try_that_runs_nothing_has_not_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cargo(tmp_path, monkeypatch, failed_in("tests/net.rs", "one"), ("one", True))
    (tmp_path / "one").write_text(
        "     Running tests/net.rs (x)\n\ntest result: ok. 0 passed; 0 failed; 0 ignored\n"
    )
    assert rust.main([]) == 101


@pytest.mark.parametrize(
    ("target", "names"),
    [
        ("tests/net.rs", ["one", "two", "three", "four"]),
        ("tests/chunk_crash.rs", ["what_was_acknowledged_survives_kill_9"]),
        ("unittests src/lib.rs", ["chunk::tests::one"]),
    ],
    ids=["more than three", "integrity", "integrity in the library"],
)
def test_nothing_is_run_again(
    target: str,
    names: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls = cargo(tmp_path, monkeypatch, failed_in(target, *names))
    assert rust.main([]) == 101
    assert calls.read_text().count("\n") == 1
    assert capsys.readouterr().out.count("failed, not run again: ") == len(names)


@pytest.mark.parametrize("beginning", rust.INTEGRITY)
def test_what_is_never_run_again_is_there(beginning: str) -> None:
    target, _, rest = beginning.partition("::")
    modules, name = rest.split("::")[:-1], rest.split("::")[-1]
    if target == "lib":
        places = [rust.CORE / "src" / "/".join(modules)] + [
            (rust.CORE / "src" / "/".join(modules[: len(modules) - gone])).with_suffix(".rs")
            for gone in (0, 1)
        ]
        assert any(place.exists() for place in places)
    else:
        assert f"fn {name}" in (rust.CORE / "tests" / f"{target}.rs").read_text()
