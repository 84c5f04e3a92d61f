"""What programs record is what they did, however often they are killed; errors have a fault that explains them."""

import errno
from dataclasses import replace
from pathlib import Path

from nemesis.faults import PowerLoss
from nemesis.histories import Failure, Recorder, read
from nemesis.run import is_explained


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


def test_an_open_file_that_is_gone_is_explained_by_a_loss_of_names_alone() -> None:
    loss = PowerLoss("names", began_ns=5 * 10**9, ended_ns=6 * 10**9)
    failed_at = {
        began_s: Failure("log-python", "append", errno.ENOENT, "", began_s * 10**9, 1.0)
        for began_s in (1, 4, 9, 30)
    }
    explained = [began_s for began_s, each in failed_at.items() if is_explained(each, {"blackout"}, [loss])]
    assert explained == [4, 9]
    assert not is_explained(failed_at[4], {"blackout"}, [replace(loss, what="chunks")])
