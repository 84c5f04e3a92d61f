"""The training example: its stages, its files, and that a training which was killed resumes bit by bit."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch import distributed as dist

from luciola.client import close_locations, open_location
from luciola.client.location import Location, parse_location
from luciola.plugins.dualpipe import DualPipeV
from luciola.plugins.dualpipe.wgrad_store import WeightGradStore
from pipeline_ranks import Answer, Ranks

EXAMPLES = Path(__file__).parents[3] / "examples"
STEPS, EVERY = 4, 2

Result = tuple[list[float], dict[str, bytes]]
"""Losses, and all bytes of weights and optimizers by stage."""


@pytest.fixture(autouse=True)
def examples(monkeypatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(EXAMPLES)
    yield
    close_locations()


# ---- the stages


def stages(count: int = 2):
    from moe_stage import MoeConfig, build_stage

    return [build_stage(MoeConfig(stages=count), stage, seed=1) for stage in range(count)]


def tokens(seed: int) -> Tensor:
    return torch.randint(256, (2, 64), generator=torch.Generator().manual_seed(seed))


def gradients(*modules) -> list[Tensor | None]:
    return [each.grad for module in modules for each in module.parameters()]


def assert_same(ours: list[Tensor | None], theirs: list[Tensor | None]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)


def test_a_stage_is_the_same_wherever_it_is_built() -> None:
    torch.manual_seed(5)
    first = stages()
    torch.manual_seed(6)
    assert_same([*first[1].parameters()], [*stages()[1].parameters()])


def test_the_pair_in_turns_has_the_bits_of_one_after_the_other() -> None:
    """A whole backward first, then the hook; both stages, with a loss and with gradients from above."""
    from moe_stage import MoeStage, next_token_loss

    def run(*, paired: bool) -> tuple[list[Tensor | None], Tensor, Tensor]:
        first, last = stages()
        labels = tokens(9)
        x = tokens(1)
        middle = first(x).detach().requires_grad_()
        other = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(3)).requires_grad_()
        if not paired:
            loss = next_token_loss(last(middle), labels)
            loss.backward()
            output = first(tokens(2))
            output.backward(torch.ones_like(output))
            second = next_token_loss(last(other), labels)
        else:
            hook = MoeStage.overlapped_forward_backward
            (output,), loss = hook(last, [middle], next_token_loss, [labels], first, None, *graph(first))
            (output,), _ = hook(first, [tokens(2)], None, [], last, loss * 1.0, [], [])
            (_,), second = hook(
                last,
                [other],
                next_token_loss,
                [labels],
                first,
                None,
                [output * 1.0],
                [torch.ones_like(output)],
            )
        return [*gradients(first, last), middle.grad, other.grad], loss.detach(), second.detach()

    def graph(module) -> tuple[list[Tensor], list[Tensor]]:
        """A backward that adds nothing: the gradients of another micro-batch, all zero."""
        output = module(tokens(4))
        return [output], [torch.zeros_like(output)]

    (plain, *losses), (paired, *others) = run(paired=False), run(paired=True)
    assert [each.item() for each in losses] == [each.item() for each in others]
    for one, other in zip(plain, paired, strict=True):
        zero = one is None and other is not None and not other.any()
        assert zero or (one is None and other is None) or torch.equal(one, other)


def test_a_loss_from_outside_the_hook_is_taken_back_too() -> None:
    from moe_stage import MoeStage, next_token_loss

    first, last = stages()
    expected_first, expected_last = stages()
    middle = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(3))
    for module, x in ((expected_last, middle), (last, middle)):
        x = x.clone().requires_grad_()  # noqa: PLW2901
        loss = next_token_loss(module(x), tokens(9))
        if module is last:
            MoeStage.overlapped_forward_backward(first, [tokens(1)], None, [], last, loss, [], [])
        else:
            loss.backward()
    expected_first(tokens(1))
    assert_same(gradients(last), gradients(expected_last))


def test_a_pipeline_takes_pairs_back_in_segments_with_the_bits_of_no_hook(monkeypatch) -> None:
    """A pipeline of one process: all its pairs but one with a loss that it computed outside the hook."""
    import moe_stage
    from moe_stage import MoeStage, next_token_loss, trace_of

    x, labels = (
        torch.cat([tokens(seed) for seed in range(4)]),
        torch.cat([tokens(seed) for seed in range(5, 9)]),
    )

    def run(modules) -> tuple[Tensor, list[Tensor | None]]:
        pipeline = DualPipeV(modules, gradient_scale="mean")
        losses, _ = pipeline.step(x, num_chunks=4, criterion=next_token_loss, labels=[labels])
        return losses, gradients(*modules)

    found: list[bool] = []

    def watched(tensor: Tensor):
        trace = trace_of(tensor)
        found.append(trace is not None)
        return trace

    with monkeypatch.context() as patch:
        patch.setattr(moe_stage, "trace_of", watched)
        losses, paired = run(stages())
    assert found.count(False) <= 1 < found.count(True)
    with monkeypatch.context() as patch:
        patch.delattr(MoeStage, "overlapped_forward_backward")
        plain, apart = run(stages())
    assert torch.equal(losses, plain)
    assert_same(paired, apart)


def test_projections_put_their_weight_gradients_off() -> None:
    whole, split = stages()[0], stages()[0]
    output = whole(tokens(1))
    output.backward(torch.ones_like(output))
    WeightGradStore.enabled = True
    try:
        output = split(tokens(1))
        output.backward(torch.ones_like(output))
        WeightGradStore.flush()
        late = [name for name, each in split.named_parameters() if each.grad is None]
        assert {name.split(".")[-2] for name in late} == {"project", "output", "router", *"0123"}
        WeightGradStore.pop()
    finally:
        WeightGradStore.enabled = False
        WeightGradStore.clear()
    assert_same(gradients(whole), gradients(split))


def test_experts_with_little_load_are_chosen_more() -> None:
    from moe_stage import BIAS_SPEED, Experts, MoeConfig

    experts = Experts(MoeConfig())
    experts(torch.randn(2, 8, 64))
    assert experts.load.sum() == 2 * 8 * MoeConfig().chosen
    experts.rebalance(torch.tensor([0.0, 4.0, 8.0, 4.0]))
    assert experts.bias.tolist() == pytest.approx([BIAS_SPEED, 0, -BIAS_SPEED, 0])
    assert not experts.load.any()


# ---- the files


def test_token_data_are_made_once_and_are_text(tmp_path) -> None:
    from moe_files import TEXT_BYTES, docstrings, make_tokens

    assert len(docstrings(5000)) == 5000
    make_tokens(Location(str(tmp_path / "deep" / "tokens.bin")))
    made = (tmp_path / "deep" / "tokens.bin").read_bytes()
    assert len(made) == TEXT_BYTES
    assert made.startswith(docstrings(5000))
    assert b" the " in made[:5000]
    (tmp_path / "deep" / "tokens.bin").write_bytes(b"mine")
    make_tokens(Location(str(tmp_path / "deep" / "tokens.bin")))
    assert (tmp_path / "deep" / "tokens.bin").read_bytes() == b"mine"


def test_a_batch_depends_on_seed_and_step_alone(tmp_path) -> None:
    from moe_files import Tokens

    location = Location(str(tmp_path / "tokens.bin"))
    (tmp_path / "tokens.bin").write_bytes(bytes(range(256)) * 4)

    def batch(seed: int, step: int) -> Tensor:
        with closing(Tokens(location, sequence=16, seed=seed)) as source:
            return source.batch(step, 3)[0]

    with closing(Tokens(location, sequence=16, seed=1)) as source:
        source.batch(0, 3)
        given, wanted = source.batch(1, 3)
    assert torch.equal(given, batch(1, 1))
    assert not torch.equal(given, batch(2, 1))
    assert not torch.equal(given, batch(1, 2))
    assert torch.equal((given + 1) % 256, wanted), "each token's label is the next one"


def test_too_few_tokens_are_refused(tmp_path) -> None:
    from moe_files import Tokens

    (tmp_path / "tokens.bin").write_bytes(b"short")
    with pytest.raises(ValueError, match="has 5 tokens; a sequence needs 17"):
        Tokens(Location(str(tmp_path / "tokens.bin")), sequence=16, seed=1)


def test_a_checkpoint_counts_when_it_is_finished_and_old_ones_go(tmp_path) -> None:
    from moe_files import Checkpoints, Latest

    checkpoints = Checkpoints(Location(str(tmp_path)))
    assert checkpoints.latest() is None
    for step in (2, 4, 6):
        checkpoints.save(step, 0, {"weight": torch.full((3,), float(step))})
        assert checkpoints.latest() == (Latest(step - 2, [0.5], {}) if step > 2 else None)
        checkpoints.finish(Latest(step, [0.5], {}))
    assert checkpoints.load(6, 0)["weight"].tolist() == [6, 6, 6]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["latest.json", "step-000004", "step-000006"]


# ---- training


def command(out: str, *more: str) -> list[str]:
    script = str(EXAMPLES / "train_moe_dualpipe.py")
    sizes = ["--steps", str(STEPS), "--checkpoint-every", str(EVERY), "--micro-batch", "1"]
    return [script, "--out", out, *sizes, *more]


def train(python: str, out: str) -> str:
    done = subprocess.run([python, *command(out)], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def train_ranks(ranks: Ranks, out: str, *, killed_in: int | None = None) -> list[Answer]:
    """The same by forked ranks, which all die by SIGKILL in step `killed_in`."""
    from moe_files import make_tokens

    make_tokens(parse_location(f"{out}/tokens.bin", {}))
    close_locations()
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    options = {"out": out, "steps": STEPS, "checkpoint_every": EVERY, "micro_batch": 1}
    cases = ranks.of("train_moe_ranks")
    return cases.run("train", 4, port=store.port, options=options, killed_in=killed_in)


def result(location: str) -> Result:
    """Losses, and all bytes of weights and optimizers."""
    files, root = open_location(location)
    latest = json.loads(files.read(f"{root}/latest.json"))
    folder = f"{root}/step-{latest['step']:06}"
    return latest["losses"], {name: files.read(f"{folder}/{name}") for name in sorted(files.listdir(folder))}


@pytest.fixture(scope="module")
def unstopped(shared_cluster, ranks: Ranks) -> Result:
    """A training without a stop, on a cluster."""
    location = f"luciola://{shared_cluster.data}!/moe"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        answers = train_ranks(ranks, location)
    assert [(each.error, each.status) for each in answers] == [("", 0)] * 4, answers
    return result(location)


def test_a_training_learns_and_saves_every_stage(unstopped: Result) -> None:
    losses, states = unstopped
    assert list(states) == [f"stage-{stage}.pt" for stage in range(4)]
    assert losses[-1] < losses[0]


def test_a_killed_training_resumes_bit_by_bit(
    warm_python: str, tmp_path: Path, ranks: Ranks, unstopped: Result
) -> None:
    """This one is on this machine; the one it is compared with ran on a cluster."""
    answers = train_ranks(ranks, str(tmp_path), killed_in=3)
    assert [each.status for each in answers] == [signal.SIGKILL] * 4
    assert len(result(str(tmp_path))[0]) == EVERY
    output = train(warm_python, str(tmp_path))
    assert output.splitlines()[0] == f"resuming after step {EVERY}"
    assert re.findall(r"^step (\d+) loss", output, re.MULTILINE) == ["3", "4"]
    assert result(str(tmp_path)) == unstopped
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_pipeline_computes_what_one_process_computes(tmp_path, monkeypatch, unstopped: Result) -> None:
    import train_moe_dualpipe

    monkeypatch.setattr(sys, "argv", command(str(tmp_path), "--plain"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors are small: a second thread only waits
    try:
        train_moe_dualpipe.main()
    finally:
        torch.set_num_threads(threads)
    assert result(str(tmp_path))[0] == pytest.approx(unstopped[0], rel=1e-5)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--chunks", "6"), "--chunks must be even and at least 8"),
        (("--steps", "0"), "--steps, --checkpoint-every and --micro-batch must be at least 1"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, monkeypatch, capsys, more, words: str) -> None:
    import train_moe_dualpipe

    monkeypatch.setattr(sys, "argv", ["train", "--out", str(tmp_path), *more])
    with pytest.raises(SystemExit):
        train_moe_dualpipe.parse()
    assert words in capsys.readouterr().err


def test_another_training_is_not_resumed(tmp_path, monkeypatch) -> None:
    import train_moe_dualpipe
    from moe_files import Checkpoints, Latest

    Checkpoints(Location(str(tmp_path))).finish(Latest(2, [5.0, 4.0], {"seed": 1}))
    (tmp_path / "tokens.bin").write_bytes(bytes(1000))
    monkeypatch.setattr(sys, "argv", ["train", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="holds a training with other settings"):
        train_moe_dualpipe.main()
