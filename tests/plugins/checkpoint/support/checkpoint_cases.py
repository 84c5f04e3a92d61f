"""What a rank can do in the tests of checkpoints, and the states it does it with."""

import os
import signal
import threading
import time
from typing import Any, Self

import torch
import torch._dynamo
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from luciola.client import LocalFileSystem, close_locations
from luciola.plugins.checkpoint import Checkpoints, Keep, Reader, Writer

STORE: list[dist.Store] = []
"""That of this case, without any prefix."""

SHARDINGS = ("rows", "columns", "both", "replicated")


def whole(seed: int, rows: int = 37) -> dict[str, torch.Tensor]:
    """The tensors of a state as one process would have them."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "embedding": torch.randn(rows, 24, generator=generator),
        "half": torch.randn(rows, 6, generator=generator).bfloat16(),
        "uneven": torch.randn(3, 5, generator=generator),
        "large": torch.randn(300, 1400, generator=generator),
    }


def state_of(seed: int, sharding: str, *, filled: bool) -> dict[str, Any]:
    """A state of all ranks: sharded tensors, one that all ranks have, and objects."""
    size = dist.get_world_size()
    if sharding == "both" and size >= 4:
        mesh = init_device_mesh("cpu", (size // 2, 2))
        placements: list[Any] = [Shard(0), Shard(1)]
    else:
        mesh = init_device_mesh("cpu", (size,))
        placements = [{"columns": Shard(1), "replicated": Replicate()}.get(sharding, Shard(0))]
    model: dict[str, Any] = {}
    for name, tensor in whole(seed).items():
        model[name] = distribute_tensor(tensor if filled else torch.zeros_like(tensor), mesh, placements)
    plain = torch.arange(1000.0) + seed
    model["plain"] = plain if filled else torch.zeros_like(plain)
    return {"model": model, "step": seed if filled else -1, "names": ["a", seed] if filled else None}


def check_state(state: dict[str, Any], seed: int) -> None:
    """Every rank has its part of what was saved."""
    for name, tensor in whole(seed).items():
        found = state["model"][name]
        assert isinstance(found, DTensor)
        assert torch.equal(found.full_tensor(), tensor), name
    assert torch.equal(state["model"]["plain"], torch.arange(1000.0) + seed)
    assert (state["step"], state["names"]) == (seed, ["a", seed])


def save(rank: int, size: int, root: str, step: int, sharding: str, how: str = "sync") -> None:
    """One checkpoint of all ranks."""
    state = state_of(step, sharding, filled=True)
    with Checkpoints(root, in_process=how == "process") as checkpoints:
        if how == "sync":
            checkpoints.save(step, state)
        else:
            checkpoints.async_save(step, state)
            for tensor in state["model"].values():  # the copy is what is saved
                (tensor.to_local() if isinstance(tensor, DTensor) else tensor).zero_()
    close_locations()


def load(rank: int, size: int, root: str, sharding: str) -> int | None:
    """The newest checkpoint, whatever number of ranks has saved it."""
    state = state_of(0, sharding, filled=False)
    step = Checkpoints(root).load(state)
    if step is not None:
        check_state(state, step)
    close_locations()
    return step


def save_twice_with_kept_plans(rank: int, size: int, root: str) -> None:
    """A planner that keeps its plans sends none the second time."""
    planner = dcp.DefaultSavePlanner(enable_plan_caching=True)
    for step in (1, 2):
        dcp.save(
            state_of(step, "rows", filled=True), storage_writer=Writer(f"{root}/step-{step}"), planner=planner
        )
    for step in (1, 2):
        state = state_of(0, "rows", filled=False)
        dcp.load(state, storage_reader=Reader(f"{root}/step-{step}"))
        check_state(state, step)


def save_with_torch_defaults(rank: int, size: int, root: str) -> None:
    """`checkpoint_id` with one writer for all; keys of a partial load."""
    writer = Writer(keep=Keep(last=1))
    for step in (1, 2):
        dcp.save(state_of(step, "rows", filled=True), storage_writer=writer, checkpoint_id=f"{root}/{step}")
    state = {"model": {"plain": torch.zeros(1000)}}
    dcp.load(state, storage_reader=Reader(), checkpoint_id=f"{root}/2")
    assert torch.equal(state["model"]["plain"], torch.arange(1000.0) + 2)


def fsdp(rank: int, size: int, root: str, train: bool, how: str) -> float:
    """Train and save a model and its optimizer under FSDP, or load them; return the sum of all their numbers."""
    torch.manual_seed(3 if train else 4 + rank)
    model = torch.nn.Sequential(torch.nn.Linear(7, 33), torch.nn.ReLU(), torch.nn.Linear(33, 5))
    fully_shard(model, mesh=init_device_mesh("cpu", (size,)))
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    for step in range(3 if train else 1):
        model(torch.full((2, 7), float(step))).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    checkpoints = Checkpoints(root)
    if how == "parts":
        if train:
            checkpoints.save(3, model=model, optimizer=optimizer)
        else:
            assert checkpoints.load(model=model, optimizer=optimizer) == 3
    else:
        weights, moments = get_state_dict(model, optimizer)
        state = {"model": weights, "optimizer": moments}
        if train:
            checkpoints.save(3, state)
        else:
            assert checkpoints.load(state) == 3
            set_state_dict(
                model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
            )
    total = torch.zeros((), dtype=torch.float64)
    for parameter in model.parameters():
        entry = optimizer.state[parameter]
        for number, tensor in enumerate((parameter, entry["exp_avg"], entry["exp_avg_sq"]), 1):
            total += number * tensor.detach().full_tensor().double().sum()
    return float(total)


class Own:
    """A state: one number."""

    def __init__(self, number: int | None) -> None:
        self.number = number

    def state_dict(self) -> dict[str, Any]:
        return {"number": self.number}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.number = state["number"]


def save_application(rank: int, size: int, root: str) -> float:
    """A model under DDP and its optimizer, a loader that is the same everywhere, and a number of each rank."""
    torch.manual_seed(1)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.full((1, 3), float(rank))).sum().backward()
    optimizer.step()
    with Checkpoints(root) as checkpoints:
        checkpoints.async_save(4, model=model, optimizer=optimizer, loader=Own(8), per_rank=Own(rank))
    return _sum_of(model.module, optimizer)


def load_application(rank: int, size: int, root: str, own: bool) -> tuple[Any, ...]:
    """The same without DDP; the step, this rank's number, and the sum of all others."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    loader, mine = Own(0), Own(None)
    parts = {"per_rank": mine} if own else {"allow_unused": ["per_rank.*"]}
    step = Checkpoints(root).load(model=model, optimizer=optimizer, loader=loader, **parts)
    assert loader.number == 8
    return step, mine.number, _sum_of(model, optimizer)


def restore_for_trainer(rank: int, size: int, root: str, directory: str) -> str:
    """What a Trainer's ranks on one machine get, or the class of what they meet."""
    from luciola.plugins.checkpoint.huggingface import TrainerCheckpoints

    os.environ["LOCAL_RANK"] = str(rank)
    try:
        return str(TrainerCheckpoints(root).restore(directory))
    except OSError as error:
        return type(error).__name__


def _sum_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> float:
    entries = [optimizer.state[parameter] for parameter in model.parameters()]
    tensors = [*model.parameters(), *(entry[name] for entry in entries for name in ("exp_avg", "exp_avg_sq"))]
    return float(sum(number * tensor.detach().double().sum() for number, tensor in enumerate(tensors, 1)))


def save_shared(rank: int, size: int, root: str) -> list[str]:
    """Three saves of which each rank has something that stays and something that changes; who shares what."""
    stays = torch.full((3000,), float(rank))
    with Checkpoints(root, share=True) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.async_save(
                step, {f"stays-{rank}": stays, f"moves-{rank}": torch.full((9,), float(step))}
            )
    for step in (1, 2, 3):
        state = {
            f"{name}-{each}": torch.zeros(shape)
            for each in range(size)
            for name, shape in (("stays", 3000), ("moves", 9))
        }
        assert checkpoints.load(state, step=step) == step
        assert all(bool((state[f"stays-{each}"] == each).all()) for each in range(size))
        assert all(bool((state[f"moves-{each}"] == step).all()) for each in range(size))
    return sorted(
        file
        for file in os.listdir(f"{root}/step-000000003")
        if os.stat(f"{root}/step-000000003/{file}").st_nlink == 2
    )


# Kills.


def _filled(step: int, rank: int) -> dict[str, Any]:
    """A state whose every number says of which step it is, 6 MiB of each rank."""
    return {
        "all": torch.full((500,), float(step)),
        f"of-{rank}": [torch.full((300_000,), float(step)) for _ in range(5)],
        "step": step,
    }


def die_while_saving(rank: int, size: int, root: str, victims: list[int], delay_s: float, how: str) -> str:
    """Save step 1, then step 2, in which the victims are killed after a while; return the outcome of step 2."""
    checkpoints = Checkpoints(root)
    if how == "sync":
        checkpoints.save(1, _filled(1, rank))
    else:  # makes the group that saves talk through: who dies while that is made lets the others wait long
        checkpoints.async_save(1, _filled(1, rank)).result()
    dist.barrier()
    if rank in victims:
        threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGKILL)).start()
    try:
        if how == "sync":
            checkpoints.save(2, _filled(2, rank))
        else:
            checkpoints.async_save(2, _filled(2, rank)).result()
    except Exception as error:  # noqa: BLE001 (that of the ranks that live on)
        os.write(2, f"rank {rank}: {type(error).__name__}\n".encode())
        return "failed"
    os.kill(os.getpid(), signal.SIGKILL if rank in victims else 0)
    return "saved"


def load_filled(rank: int, size: int, root: str) -> int | None:
    """The step that the newest checkpoint is of; every number of it is of that step."""
    checkpoints = Checkpoints(root)
    state = {"all": torch.zeros(500), "step": 0}
    step = checkpoints.load(state, allow_unused="*")
    if step is None:
        return None
    assert state["step"] == step
    assert bool((state["all"] == step).all())
    for writer in range(2):
        part = {f"of-{writer}": [torch.zeros(300_000) for _ in range(5)]}
        checkpoints.load(part, allow_unused="*")
        assert all(bool((tensor == step).all()) for tensor in part[f"of-{writer}"])
    return step


def save_filled(rank: int, size: int, root: str, step: int) -> None:
    Checkpoints(root).save(step, _filled(step, rank))


class StoppingFileSystem(LocalFileSystem):
    """Local files; the process is killed before the operation number `stop`."""

    def __init__(self, stop: int) -> None:
        self.left = stop

    def tick(self) -> None:
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)

    def __getattribute__(self, name: str) -> Any:
        if name in {"mkdir", "rename", "rmtree", "sync_directory", "makedirs", "remove", "ring"}:
            self.tick()
        return super().__getattribute__(name)

    def open(self, *arguments: Any, **named: Any) -> Any:
        self.tick()
        return _Stopping(self, super().open(*arguments, **named))


class _Stopping:
    """A file whose writes and syncs count too."""

    def __init__(self, stops: StoppingFileSystem, file: Any) -> None:
        self._stops, self._file = stops, file

    def __getattr__(self, name: str) -> Any:
        if name in {
            "write",
            "fsync",
            "flush",
            "fileno",
        }:  # a ring asks for the descriptor, once for each operation
            self._stops.tick()
        return getattr(self._file, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()


class StoppingWriter(Writer):
    """Saves through a `StoppingFileSystem`."""

    stops: StoppingFileSystem

    @property
    def _file_system(self) -> Any:
        return self.stops


def stop_at_every_operation(rank: int, size: int, root: str, overwrite: bool) -> list[int]:
    """Kills a process that saves before its first operation on files, its second, and so on until it gets through.

    Returns, for each, the value that the checkpoint "old" or "new" has: 1 or 2. `overwrite`: both have one name.
    """
    import warnings

    warnings.simplefilter("ignore")
    values = []
    for stop in range(1000):
        top = f"{root}/{stop}"
        dcp.save({"x": torch.full((700_000,), 1.0)}, storage_writer=Writer(f"{top}/a-1"), no_dist=True)
        pid = os.fork()
        if not pid:
            writer = StoppingWriter(f"{top}/a-1" if overwrite else f"{top}/a-2")
            writer.stops = StoppingFileSystem(stop)
            dcp.save({"x": torch.full((700_000,), 2.0)}, storage_writer=writer, no_dist=True)
            os._exit(0)
        status = os.waitpid(pid, 0)[1]
        values.append(_value_in(top))
        dcp.save({"x": torch.full((700_000,), 3.0)}, storage_writer=Writer(f"{top}/a-3"), no_dist=True)
        assert sorted(os.listdir(top)) in (["a-1", "a-3"], ["a-1", "a-2", "a-3"]), os.listdir(top)
        if status == 0:
            return values
        assert os.WTERMSIG(status) == signal.SIGKILL
    raise AssertionError("it never ends")


def _value_in(top: str) -> int:
    from luciola.plugins.checkpoint import latest, verify

    place = latest(top)
    assert place is not None
    assert verify(place) == []
    state = {"x": torch.zeros(700_000)}
    dcp.load(state, storage_reader=Reader(place), no_dist=True)
    value = int(state["x"][0])
    assert bool((state["x"] == value).all())
    return value


# Faults of the cluster.


def save_and_load_until(rank: int, size: int, root: str, end: str, seed: int) -> int:
    """Saves and loads again and again until the file `end` is there, every byte checked; the number of rounds."""
    tensor = torch.randn(size * 1500, 1000, generator=torch.Generator().manual_seed(seed))
    mesh = init_device_mesh("cpu", (size,))
    checkpoints = Checkpoints(root, keep=Keep(last=2))
    step = 0
    while True:
        ends = [os.path.exists(end)]
        dist.broadcast_object_list(ends, src=0)
        if ends[0]:
            return step
        checkpoints.save(step, {"x": distribute_tensor(tensor + step, mesh, [Shard(0)])})
        state = {"x": distribute_tensor(torch.zeros_like(tensor), mesh, [Shard(1)])}
        assert checkpoints.load(state) == step
        assert torch.equal(state["x"].full_tensor(), tensor + step)
        step += 1
