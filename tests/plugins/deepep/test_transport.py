"""Bytes reach the right region in order, and no wait is without end."""

import signal
import subprocess
import sys

import pytest
import torch

from expert_inputs import values
from luciola.plugins import deepep
from luciola.plugins.deepep import RanksDisagree
from luciola.plugins.deepep.transport import choose, segment_header
from luciola.plugins.deepep.transport.bootstrap import NotUsable
from luciola.plugins.deepep.transport.device import CudaIpc, Symmetric, require_atomics
from pipeline_ranks import Ranks

pytestmark = pytest.mark.timeout(300)  # torch takes a minute to import on a very busy machine

BACKENDS = ["shared-memory", "collectives"]


@pytest.mark.parametrize("size", [1, 4])
def test_what_was_written_before_a_signal_is_there_after_the_wait(experts: Ranks, size) -> None:
    turns = 100
    seen = values(experts.run("ring", size, name="shared-memory", turns=turns))
    for rank in range(size):
        assert seen[rank] == [turn * 100 + (rank - 1) % size for turn in range(1, turns + 1)]


def test_processes_of_one_host_share_memory(experts: Ranks) -> None:
    assert values(experts.run("described", 2, name="auto")) == [("shared-memory", "")] * 2
    assert values(experts.run("described", 2, name="collectives")) == [("collectives", "")] * 2


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, luciola.plugins.deepep; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "shared-memory, collectives (" in deepep.describe()["transports"]


@pytest.mark.parametrize("name", BACKENDS)
def test_ranks_that_open_regions_of_different_sizes_get_an_error(experts: Ranks, name) -> None:
    for kind, text, _, peer in values(experts.run("disagreeing", 3, name=name)):
        assert (kind, peer) == ("RanksDisagree", 1)
        assert "rank 0 has num_bytes = 4096, rank 1 has 8192" in text


def test_a_killed_rank_is_blamed_everywhere(experts: Ranks) -> None:
    answers = experts.run("lost", 3, name="shared-memory", fault="killed", bad=2)
    assert answers.pop(2).status == signal.SIGKILL
    for kind, text, noticed_by, peer in values(answers):
        assert (kind, peer, noticed_by) == ("PeerLost", 2, 1)
        assert "rank 1, waiting on 1: " in text
        assert "process of rank 2 has ended" in text


def test_a_rank_that_has_closed_its_buffer_is_not_waited_for(experts: Ranks) -> None:
    answers = experts.run("lost", 3, name="shared-memory", fault="closed", bad=1)
    del answers[1]
    for kind, text, noticed_by, peer in values(answers):
        assert (kind, noticed_by, peer) == ("PeerLost", 0, 1)
        assert "rank 1 has closed its buffer" in text


def test_a_stopped_rank_is_waited_for_until_the_timeout(experts: Ranks) -> None:
    answers = experts.run("lost", 3, name="shared-memory", fault="stopped", bad=1, timeout_s=2.0)
    assert answers.pop(1).status == signal.SIGKILL, "by a rank that had the error"
    for kind, text, _, _ in values(answers):
        assert kind == "PeerTimeout"
        assert "within 2 s" in text


@pytest.mark.parametrize(
    ("fault", "kind", "text", "timeout_s"),
    [
        ("killed", "PeerLost", "lost rank 1: ", 60.0),
        ("closed", "PeerLost", "rank 1 has closed its buffer", 60.0),
        ("stopped", "PeerTimeout", "timeout: rank 1 did not come within 2 s", 2.0),
    ],
)
def test_collectives_end_with_the_rank_to_blame(experts: Ranks, fault, kind, text, timeout_s) -> None:
    answers = experts.run("lost", 3, name="collectives", fault=fault, bad=1, timeout_s=timeout_s)
    status = answers.pop(1).status
    assert status == (0 if fault == "closed" else signal.SIGKILL)
    for found, words, _, peer in values(answers):
        assert (found, peer) == (kind, 1), words
        assert text in words


class OnTwoHosts:
    """Members of a group that can say where they are, and nothing else."""

    rank, size, host = 0, 2, ("here", 1)

    def gather(self, value):
        assert value == self.host, "nothing is asked before this"
        return [value, ("there", 1)]


@pytest.mark.parametrize("backend", [Symmetric, CudaIpc])
def test_gpus_of_several_hosts_share_nothing(backend) -> None:
    with pytest.raises(NotUsable, match="ranks are on 2 hosts"):
        backend.open(OnTwoHosts(), 4096, device=torch.device("cuda", 0), timeout_s=1.0)


def test_flags_need_atomic_operations_between_gpus() -> None:
    linked = {(1, 0), (1, 2)}
    require_atomics(1, ["a", "b", "c"], ["a", "b", "c"], lambda *pair: pair in linked)
    with pytest.raises(RuntimeError, match="GPU 0 has no atomic operations on the memory of GPU 1"):
        require_atomics(0, ["a", "b"], ["a", "b"], lambda *pair: pair in linked)
    with pytest.raises(LookupError, match="GPU c is not visible: give all processes all GPUs"):
        require_atomics(0, ["a", "c"], ["a", "b"], lambda *_: True)


@pytest.mark.parametrize("letter", ["a", "é", "\U0001f300", "\x01"])
def test_a_long_reason_of_any_letters_reaches_the_others(letter) -> None:
    facts = segment_header.refusal(ValueError(letter * 1000), rank=1, call="dispatch")
    received = {0: {}, 1: segment_header.unpack(segment_header.pack(facts))}
    with pytest.raises(RanksDisagree) as found:
        segment_header.compare(received, rank=0, call="combine")
    assert (found.value.rank, found.value.peer, found.value.phase) == (1, 1, "dispatch: arguments")
    assert found.value.what.startswith("rank 1 has refused its arguments: ValueError: ")
    assert found.value.what.endswith(letter * 100)


def test_without_variables_the_defaults_hold(monkeypatch) -> None:
    for name in ("TRANSPORT", "TIMEOUT_S"):
        monkeypatch.delenv(f"LUCIOLA_DEEPEP_{name}", raising=False)
    assert (choose.transport_name(), choose.timeout_s()) == ("auto", 100.0)


def test_variables_choose_transport_and_timeout(monkeypatch) -> None:
    monkeypatch.setenv("LUCIOLA_DEEPEP_TRANSPORT", "collectives")
    monkeypatch.setenv("LUCIOLA_DEEPEP_TIMEOUT_S", "2.5")
    assert (choose.transport_name(), choose.timeout_s()) == ("collectives", 2.5)


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf"])
def test_a_timeout_is_a_positive_number(monkeypatch, text) -> None:
    monkeypatch.setenv("LUCIOLA_DEEPEP_TIMEOUT_S", text)
    with pytest.raises(ValueError, match="it must be a positive number of seconds"):
        choose.timeout_s()
