"""What a rank has sent, and that EPLB reads it."""

import pytest
import torch

from luciola.plugins.deepep.traffic import Traffic
from luciola.plugins.eplb import LoadRecorder, Loads

ROUTES = torch.tensor([[0, 1], [1, 3], [-1, 2], [-1, -1], [3, 7]])


def test_tokens_are_counted_once_for_each_rank_or_for_each_expert() -> None:
    traffic = Traffic(ranks=4, experts=8)
    traffic.count(ROUTES, hidden=256)
    assert traffic.to_expert.tolist() == [1, 2, 1, 2, 0, 0, 0, 1]
    assert traffic.to_rank.tolist() == [2, 3, 0, 1]
    assert traffic.bytes_to_rank.tolist() == [2 * 512, 3 * 512, 0, 512]
    traffic.count(ROUTES, hidden=256, kind="fp8", once_per_rank=False)
    assert traffic.to_rank.tolist() == [2 + 3, 3 + 3, 0, 1 + 1]
    assert traffic.bytes_to_rank.tolist() == [2 * 512 + 3 * 264, 3 * 512 + 3 * 264, 0, 512 + 264]
    assert "   1          6         2328   3 (4 tokens)" in traffic.table()
    traffic.reset()
    assert traffic.to_rank.tolist() == [0] * 4


def test_eplb_reads_what_was_counted(tmp_path) -> None:
    """Slots 0 … 7 hold experts 0 … 3 twice; a step is what was counted since the one before."""
    traffic, recorder = Traffic(ranks=4, experts=8), LoadRecorder(2, 4, windows=2, window_steps=1)
    placement = torch.arange(8) % 4
    for turn in range(2):
        for _ in range(turn + 1):
            traffic.count(ROUTES, hidden=128)
        traffic.add_to(recorder, layer=1, expert_of_slot=placement)
        recorder.step()
    path = tmp_path / "loads.safetensors"
    recorder.reduced().save(path)
    assert Loads.load(path).windows[:, 1].tolist() == [[1, 2, 1, 3], [2, 4, 2, 6]]
    assert not Loads.load(path).windows[:, 0].any()


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, 8\); both must be positive, and experts a multiple"):
        Traffic(ranks=3, experts=8)
    traffic = Traffic(ranks=2, experts=8)
    with pytest.raises(TypeError, match=r"it is \(tokens, k\) of integers"):
        traffic.count(torch.zeros(4), hidden=8)
    with pytest.raises(ValueError, match="'fp4'; it must be one of bf16, fp8"):
        traffic.count(ROUTES, hidden=8, kind="fp4")
    with pytest.raises(ValueError, match=r"\(7,\); it must be \(8,\)"):
        traffic.add_to(LoadRecorder(1, 4), layer=0, expert_of_slot=torch.zeros(7))
