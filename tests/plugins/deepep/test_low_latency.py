"""Low-latency mode between real processes, against loops over the inputs of all ranks."""

import signal

import pytest

from expert_inputs import Call, values, varied
from pipeline_ranks import Ranks

pytestmark = pytest.mark.timeout(300)  # several runs of real processes


@pytest.mark.parametrize("size", [2, 4])
def test_all_ranks_get_what_the_reference_computes(experts: Ranks, size) -> None:
    """Every second option on two ranks, the others on four."""
    cases = varied(size)[size // 4 :: 2]
    answers = experts.run("low_latency_calls", size, cases=cases, name="shared-memory")
    assert values(answers) == ["shared-memory"] * size


def test_ranks_of_several_hosts_are_refused(experts: Ranks) -> None:
    for text in values(experts.run("low_latency_between_hosts", 2)):
        assert (
            "low-latency mode needs the memory of all ranks, those of one node; this is collectives" in text
        )


def test_arguments_that_one_rank_refuses_end_the_call_of_all(experts: Ranks) -> None:
    size = 3
    for rank, errors in enumerate(values(experts.run("low_latency_refused", size))):
        assert len(errors) == 2 * size
        for number, (kind, text, peer) in enumerate(errors):
            if rank == number // 2:
                assert kind == ("BadType" if number % 2 == 0 else "BadArgument")
            else:
                assert (kind, peer) == ("RanksDisagree", number // 2)
                assert f"rank {peer} has refused its arguments: Bad" in text


def test_the_original_s_own_checks_hold(experts: Ranks) -> None:
    """Twice with the same bits, and with LogFMT within the same tolerances."""
    sizes = {"tokens": 8, "hidden": 512, "experts": 16, "topk": 5, "seed": 3}
    first, again = (values(experts.run("low_latency_original", 4, logfmt=False, **sizes)) for _ in range(2))
    assert first == again
    values(experts.run("low_latency_original", 2, logfmt=True, **sizes))


def test_kernels_do_the_same_between_processes(experts: Ranks) -> None:
    """In Triton's interpreter, over memory that other processes write."""
    cases = [
        Call(21, (2, 1), 128, 2, 2, hook=True),
        Call(22, (0, 1), 128, 2, 1, fp8=True, zero_copy=True),
        Call(24, (1, 1), 128, 2, 1, logfmt=True),
    ]
    assert len(set(values(experts.run("low_latency_calls", 2, cases=cases, layer="triton")))) == 1


def test_two_results_may_be_alive_and_no_more(experts: Ranks) -> None:
    for errors in values(experts.run("low_latency_two_alive", 3)):
        assert errors == [
            "low_latency_dispatch: the hook of the last call but one was not called yet; only two results may be alive",
            "this hook was called already",
        ]


def test_what_was_not_taken_is_not_overwritten(experts: Ranks) -> None:
    assert values(experts.run("low_latency_many_turns", 4, turns=60)) == [60] * 4


def test_ranks_that_call_with_other_sizes_get_an_error(experts: Ranks) -> None:
    found = values(experts.run("low_latency_disagreeing", 3))
    assert {kind for kind, _ in found} == {"RanksDisagree"}
    assert all("rank 0 has max tokens = 4, rank 1 has 8" in text for _, text in found)


def test_a_killed_rank_is_an_error_on_all_others(experts: Ranks) -> None:
    answers = experts.run("low_latency_killed", 4, bad=2)
    assert answers.pop(2).status == signal.SIGKILL
    for kind, text, peer in values(answers):
        assert (kind, peer) == ("PeerLost", 2)
        assert "low-latency" in text


def test_ranks_continue_without_one_that_died(experts: Ranks) -> None:
    answers = experts.run("low_latency_shrinking", 4, bad=1)
    assert answers.pop(1).status == signal.SIGKILL
    found = values(answers)
    for masks, combined in (found[0], found[2]):
        assert masks == [[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
        assert combined == [4.0, 3.0, 3.0, 2.0]
    assert found[1] == ([[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0]], [4.0, 3.0, 3.0])


def test_bad_arguments_are_refused_with_what_is_allowed(experts: Ranks) -> None:
    (errors,) = values(experts.run("low_latency_described_errors", 1))
    wanted = {
        "type of x": "BadType: x has dtype torch.float32; it must be torch.bfloat16",
        "type of topk": "BadType: topk_idx has dtype torch.int16; it must be torch.int64",
        "shape of topk": "topk_idx.shape is (3, 2); it must be (4, any)",
        "many k": "k is 33; it must be 1 to 32",
        "below no expert": "topk_idx is -2 to 0; experts are 0 to 7, or -1 for none",
        "beyond all experts": "topk_idx is 1 to 8; experts are 0 to 7, or -1 for none",
        "tokens": "x is of 4 tokens; num_max_dispatch_tokens_per_rank is 3",
        "experts": "(4, 0); both must be positive",
        "memory": "are needed for 5 tokens of 512 and 8 experts: see Buffer.get_low_latency_rdma_size_hint",
        "hidden": "hidden is 100; it must be a multiple of 8",
        "hidden of FP8": "hidden is 200; it must be a multiple of 128",
        "hidden of exponents": "hidden is 384; it must be a multiple of 512",
        "exponents": "use_ue8m0 is True; it needs round_scale=True",
        "twice the same": "topk_idx is with 8 tokens for expert 0; it gets at most 4",
        "hook and event": "BadCall: async_finish and return_recv_hook exclude each other",
        "stats": "cumulative_local_expert_recv_stats.shape is (7,); it must be (8,)",
        "type of stats": "it must be torch.int32",
        "answers": "x.shape is (8, 2, 512); it must be (8, 4, 512)",
        "type of weights": "topk_weights has dtype torch.float64; it must be torch.float32",
        "shape of weights": "topk_weights.shape is (4, 1); it must be (4, 2)",
        "out": "out.shape is (3, 512); it must be (4, 512)",
        "LogFMT in place": "use_logfmt is with hidden 512, zero_copy True",
        "mask": "BadCall: masks of ranks need a Buffer with enable_shrink=True",
        "hint": "(4, 8); both must be positive, and experts a multiple of the 3 ranks",
    }
    assert set(errors) == set(wanted)
    for name, part in wanted.items():
        assert part in errors[name], f"{name}: {errors[name]}"
