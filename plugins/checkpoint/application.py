"""The state of a training application: model, optimizer, scheduler, loader, and an object of each rank.

    model       get_model_state_dict, set_model_state_dict: plain, DDP and FSDP2 modules have the same names
    optimizer   get_optimizer_state_dict: its moments under the names of the model's parameters
    scheduler   one object
    loader      one object of each rank: equal ones (luciola.plugins.dataset.Loader) load on any number of ranks
    per_rank    one object of each rank: random states, for instance

A1  A save before the first step saves an optimizer without moments, and leaves it so; a load restores that.
A2  Objects are saved whole, in a tuple: torch flattens dictionaries, and turns their keys into text.

Source: torch.distributed.checkpoint.state_dict.
"""

import io
import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.stateful import Stateful as TorchStateful

from luciola.errors import InvalidArgument

MOMENTS: Final = "optimizer.state."
RANK: Final = "{:05}"


class Stateful(Protocol):
    """Anything that returns its state and loads it: schedulers, loaders, scalers."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> object: ...


class RandomState:
    """The random generators of this process, for `per_rank=`: Python's, torch's, the GPU's, numpy's if imported."""

    def state_dict(self) -> dict[str, Any]:
        """Return their states, as numbers and tensors."""
        state: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state()
        if "numpy" in sys.modules:
            name, keys, *rest = sys.modules["numpy"].random.get_state()
            state["numpy"] = (name, [int(key) for key in keys], *(each for each in rest))
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set those that were saved and exist here."""
        random.setstate(state["python"])
        torch.set_rng_state(state["torch"])
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])
        if "numpy" in state and "numpy" in sys.modules:
            numpy = sys.modules["numpy"]
            name, keys, *rest = state["numpy"]
            numpy.random.set_state((name, numpy.array(keys, dtype=numpy.uint32), *rest))


@dataclass
class Application:
    """The parts that `Checkpoints` saves and loads, on one of `ranks` ranks."""

    rank: int
    ranks: int
    state: dict[str, Any] = field(default_factory=dict)
    model: torch.nn.Module | None = None
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None
    scheduler: Stateful | None = None
    loader: Stateful | None = None
    per_rank: Stateful | None = None

    def __post_init__(self) -> None:
        if self.optimizer is not None and self.model is None:
            raise InvalidArgument(
                "optimizer= without model=: its state has the names of the model's parameters"
            )
        given = ("model", "optimizer", "scheduler", "loader", "per_rank")
        if taken := [name for name in given if name in self.state and getattr(self, name) is not None]:
            raise InvalidArgument(f"state has {taken} too, which are arguments: give each once")
        self._made = False

    def to_save(self) -> dict[str, Any]:
        """Make the state dict of this rank, without a step of an optimizer that has made none (A1)."""
        state = {
            name: value.state_dict() if isinstance(value, TorchStateful) else value
            for name, value in self.state.items()
        }
        if self.model is not None:
            state["model"] = get_model_state_dict(self.model)
        if self.optimizer is not None:
            state["optimizer"] = self._optimizer_state() if self._has_moments() else (self._settings(),)
        if self.scheduler is not None:
            state["scheduler"] = (self.scheduler.state_dict(),)
        for name, stateful in (("loader", self.loader), ("per_rank", self.per_rank)):
            if stateful is not None:
                state[name] = {RANK.format(self.rank): (stateful.state_dict(),)}
        return state

    def template(self, names: Iterable[str], saved_ranks: int) -> dict[str, Any]:
        """Make a state dict to load into: what a checkpoint with these entries, of so many ranks, has for this rank."""
        names = set(names)
        state = dict(self.state)
        if self.model is not None:
            state["model"] = get_model_state_dict(self.model)
        if self.optimizer is not None:
            state["optimizer"] = (None,) if "optimizer" in names else self._template_of_moments(names)
        if self.scheduler is not None:
            state["scheduler"] = (None,)
        numbers = [self.rank] if saved_ranks == self.ranks else range(saved_ranks)
        for name in ("loader", "per_rank"):
            if getattr(self, name) is not None:
                state[name] = {RANK.format(number): (None,) for number in numbers}
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Load the parts from what was loaded into `template`. Raises: InvalidArgument."""
        own = {
            name: self._own(name, state[name])
            for name in ("loader", "per_rank")
            if getattr(self, name) is not None
        }
        self.state.update({name: state[name] for name in self.state})
        strict = StateDictOptions(strict=True)
        if self.model is not None:
            set_model_state_dict(self.model, state["model"], options=strict)
        if self.optimizer is not None:
            self._set_optimizer(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"][0])
        for name, value in own.items():
            getattr(self, name).load_state_dict(value)

    def undo(self) -> None:
        """Remove the moments that `template` made, after a load that failed."""
        if self._made:
            self._clear()

    @property
    def _optimizers(self) -> list[torch.optim.Optimizer]:
        if self.optimizer is None:
            return []
        return [self.optimizer] if isinstance(self.optimizer, torch.optim.Optimizer) else list(self.optimizer)

    def _has_moments(self) -> bool:
        return any(optimizer.state for optimizer in self._optimizers)

    def _clear(self) -> None:
        for optimizer in self._optimizers:
            optimizer.state.clear()

    def _settings(self) -> list[list[dict[str, Any]]]:
        """Return the settings of parameter groups, without their parameters."""
        return [
            [
                {name: value for name, value in group.items() if name != "params"}
                for group in optimizer.param_groups
            ]
            for optimizer in self._optimizers
        ]

    def _optimizer_state(self) -> dict[str, Any]:
        assert self.model is not None, "it is required with an optimizer"
        found = get_optimizer_state_dict(self.model, self._optimizers)
        return {"state": found["state"], "param_groups": (found["param_groups"],)}

    def _template_of_moments(self, names: set[str]) -> dict[str, Any]:
        """Make memory for the moments that were saved; parameters that never had a gradient have none."""
        self._made = not self._has_moments()
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)  # torch makes no moments where there are gradients
        template = self._optimizer_state()
        saved = {name.removeprefix(MOMENTS).rpartition(".")[0] for name in names if name.startswith(MOMENTS)}
        template["state"] = {name: entry for name, entry in template["state"].items() if name in saved}
        return template

    def _set_optimizer(self, state: Any) -> None:
        assert self.model is not None, "it is required with an optimizer"
        if isinstance(state, tuple):
            self._clear()
            for optimizer, groups in zip(self._optimizers, state[0], strict=True):
                for group, settings in zip(optimizer.param_groups, groups, strict=True):
                    group.update(settings)
            return
        groups = state["param_groups"][0]
        # Not strict: a parameter that never had a gradient has no moments.
        set_optimizer_state_dict(
            self.model,
            self._optimizers,
            {"state": state["state"], "param_groups": groups},
            options=StateDictOptions(strict=False),
        )

    def _own(self, name: str, entries: dict[str, Any]) -> Any:
        """Select the state of this rank of those that each rank has saved."""
        values = [entry[0] for entry in entries.values()]
        if len({_bytes(value) for value in values}) > 1:
            raise InvalidArgument(
                f"{name}= was saved by {len(values)} ranks with different states, and {self.ranks} load: leave it out, "
                f"and allow that with allow_unused=['{name}.*']"
            )
        return values[0]


def _bytes(value: Any) -> bytes:
    data = io.BytesIO()
    torch.save(value, data)
    return data.getvalue()


__all__ = ["Application", "RandomState", "Stateful"]
