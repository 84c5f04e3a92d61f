"""What programs record is what they did, however often they are killed."""

from pathlib import Path

from nemesis.histories import Recorder, read


def test_each_life_of_a_program_has_a_history_of_its_own(tmp_path: Path) -> None:
    """Though its calls have the same numbers; the call during which it was killed has no outcome."""
    for life in (1, 2, 3):
        recorder = Recorder(tmp_path / "names-python")
        assert recorder.life == life
        recorder.complete(recorder.invoke("0", "create", f"of life {life}"), life)
        recorder.invoke("0", "list", "")
    found = [read(path) for path in sorted(tmp_path.iterdir())]
    assert len(found) == 3
    for life, (operations, failures) in enumerate(found, 1):
        created, listed = operations
        assert (created.process, created.argument, created.result) == (
            "names-python",
            f"of life {life}",
            life,
        )
        assert (listed.kind, listed.returned_ns, failures) == ("list", None, [])
