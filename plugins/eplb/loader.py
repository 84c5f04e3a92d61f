"""From one placement to another: the experts that a GPU lacks, read from a checkpoint into its slots.

`load_experts` does it at once. `stage_experts` reads beside the slots while a model uses them, `StagedExperts.apply`
puts what it has read into the slots: copies in memory.

Per layer, a slot of the new placement is one of four: its expert is there already (kept); it is in another slot of this
GPU (copied); it is on no slot of this GPU (read, once); or it is a second replica of one that was read (copied after).

M1  No slot is overwritten while another still needs what it holds: copies go in an order in which a slot is written
    only after all that read from it; a cycle is opened by one expert's worth of temporary memory.
M2  All reads are one batch over all layers, many in flight, and read what is lacking and nothing else.

After an error some slots may have moved and others not: load again without `current`.
"""

import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from luciola.plugins.weights import Checkpoint, ReadReport, Slice

if TYPE_CHECKING:
    from luciola.plugins.weights.targets import Index

Slots = Mapping[str, Tensor]
Pair = tuple[int | None, int | None]
EMPTY: Final = -1


@dataclass(frozen=True)
class ExpertReport:
    """What a load has done. Counts are of slots, over all layers; bytes of all their tensors together."""

    kept: int
    copied: int
    read: int
    copied_bytes: int
    needed_bytes: int
    read_bytes: int


@dataclass(frozen=True)
class Actions:
    """What one layer of one GPU needs. Pairs are (source slot, target slot); None stands for the temporary expert."""

    kept: tuple[int, ...]
    copies: tuple[Pair, ...]  # in this order
    reads: tuple[tuple[int, int], ...]  # (expert, slot)
    copies_after: tuple[tuple[int, int], ...]


def plan_slots(current: Sequence[int], target: Sequence[int]) -> Actions:
    """Plan how the slots of one GPU get from the experts `current` to `target`. EMPTY: nothing of use is there.

    Pure; the result obeys M1.
    """
    assert len(current) == len(target), "a GPU keeps its number of slots"
    kept = tuple(slot for slot, expert in enumerate(target) if current[slot] == expert)
    holder = {expert: slot for slot, expert in enumerate(current) if expert != EMPTY}
    holder |= {target[slot]: slot for slot in kept}  # those that stay are never overwritten
    source_of: dict[int, int] = {}
    reads: dict[int, int] = {}
    after: list[tuple[int, int]] = []
    for slot, expert in enumerate(target):
        if current[slot] == expert:
            continue
        if expert in holder:
            source_of[slot] = holder[expert]
        elif expert in reads:
            after.append((reads[expert], slot))
        else:
            reads[expert] = slot
    return Actions(kept, tuple(_in_order(source_of)), tuple(reads.items()), tuple(after))


def _in_order(source_of: dict[int, int]) -> Iterator[Pair]:
    """The copies target <- source in an order that obeys M1."""
    left = dict(source_of)
    readers = Counter(left.values())
    free = [slot for slot in left if not readers[slot]]
    while left:
        while free:
            slot = free.pop()
            source = left.pop(slot)
            yield source, slot
            readers[source] -= 1
            if not readers[source] and source in left:
                free.append(source)
        if left:
            yield from _open_cycle(left)


def _open_cycle(left: dict[int, int]) -> Iterator[Pair]:
    """Every slot that is left is read by exactly one other: one cycle, through the temporary expert."""
    first = slot = next(iter(left))
    yield first, None
    while (source := left.pop(slot)) != first:
        yield source, slot
        slot = source
    yield None, slot


@dataclass(frozen=True)
class ExpertNames:
    """How a checkpoint names the weights of experts.

    `template` has {layer} and {name}; with {expert} each expert has a tensor of its own, as in
    "model.layers.{layer}.mlp.experts.{expert}.{name}"; without, the experts are the first dimension of one tensor.
    `layers`: the number in {layer} for each layer of the placement, by default 0, 1, …; models whose first layers are
    dense begin later. `index`: for a name, the part of an expert's tensor that this rank holds (tensor parallelism).
    """

    template: str
    layers: Sequence[int] | None = None
    index: Mapping[str, "Index"] | None = None

    def __post_init__(self) -> None:
        fields = {field for _, field, _, _ in string.Formatter().parse(self.template) if field is not None}
        if not {"layer", "name"} <= fields <= {"layer", "expert", "name"}:
            raise ValueError(
                f"a template has {{layer}}, {{name}} and perhaps {{expert}}, not {self.template!r}"
            )

    def slice_of(self, layer: int, expert: int, name: str, target: Tensor) -> Slice:
        """Return what is read for one expert's tensor."""
        number = layer if self.layers is None else self.layers[layer]
        index = (self.index or {}).get(name, ())
        index = index if isinstance(index, tuple) else (index,)
        if "{expert}" not in self.template:
            index = (expert, *index)
        return Slice(self.template.format(layer=number, expert=expert, name=name), target, index)


def load_experts(  # noqa: PLR0913 (what, into what, from where to where)
    checkpoint: Checkpoint,
    slots: Sequence[Slots],
    target: Tensor,
    *,
    names: ExpertNames,
    gpu: int,
    num_gpus: int,
    current: Tensor | None = None,
    convert: bool = False,
) -> ExpertReport:
    """Bring the slots of one GPU from placement `current` (None: they are empty) to `target`.

    `target`, `current`: physical_to_logical_maps (layers, slots of all GPUs); -1 in `current` is an empty slot.
    `slots`: for each layer, name -> tensor (slots of this GPU, …) in which row i is the expert of slot i; views of a
    larger tensor will do, as gate and up projections that are stored as one.

    Raises: ValueError, TypeError for shapes that do not fit; KeyError for names that the checkpoint does not have;
    CorruptData; OSError.
    """
    actions = _plan(slots, target, names=names, gpu=gpu, num_gpus=num_gpus, current=current)
    rows = [
        {name: [tensor[slot] for _, slot in action.reads] for name, tensor in tensors.items()}
        for tensors, action in zip(slots, actions, strict=True)
    ]
    slices = _slices(names, actions, rows)
    checkpoint.check_slices(slices, convert=convert)  # before anything moves
    copied = sum(_copy(tensors, action.copies) for tensors, action in zip(slots, actions, strict=True))
    read = checkpoint.read_slices(slices, convert=convert, gap_bytes=0)
    copied += sum(_copy(tensors, action.copies_after) for tensors, action in zip(slots, actions, strict=True))
    return _report(actions, copied, read)


@dataclass(frozen=True)
class StagedExperts:
    """Experts that were read into memory of their own, and how they get into the slots. Used up by `apply`."""

    slots: Sequence[Slots]
    actions: Sequence[Actions]
    staged: list[dict[str, list[Tensor]]]  # by layer and name, in the order of the layer's reads
    read: ReadReport

    @torch.no_grad()
    def apply(self) -> ExpertReport:
        """Put them into the slots. The staged memory of each layer is dropped as it has been copied."""
        copied = 0
        for tensors, action in zip(self.slots, self.actions, strict=True):
            copied += _copy(tensors, action.copies)
            for name, rows in self.staged.pop(0).items():
                for (_, slot), row in zip(action.reads, rows, strict=True):
                    tensors[name][slot].copy_(row)
            copied += _copy(tensors, action.copies_after)
        return _report(self.actions, copied, self.read)


def stage_experts(  # noqa: PLR0913 (as load_experts)
    checkpoint: Checkpoint,
    slots: Sequence[Slots],
    target: Tensor,
    *,
    names: ExpertNames,
    gpu: int,
    num_gpus: int,
    current: Tensor | None = None,
    convert: bool = False,
    bytes_max: int | None = None,
) -> StagedExperts:
    """Read what `load_experts` would read, and leave the slots as they are: another thread may do this.

    Raises: as `load_experts`; ValueError for more than `bytes_max` of memory, before anything is read.
    """
    actions = _plan(slots, target, names=names, gpu=gpu, num_gpus=num_gpus, current=current)
    needed = sum(
        len(action.reads) * tensor[0].nbytes
        for tensors, action in zip(slots, actions, strict=True)
        for tensor in tensors.values()
    )
    if bytes_max is not None and needed > bytes_max:
        raise ValueError(
            f"{needed} bytes of experts are to be staged, more than {bytes_max}: plan fewer moves (budget)"
        )
    staged = [
        {name: [torch.empty_like(tensor[0]) for _ in action.reads] for name, tensor in tensors.items()}
        for tensors, action in zip(slots, actions, strict=True)
    ]
    slices = _slices(names, actions, staged)
    return StagedExperts(slots, actions, staged, checkpoint.read_slices(slices, convert=convert, gap_bytes=0))


def _slices(
    names: ExpertNames, actions: Sequence[Actions], rows: Sequence[Mapping[str, Sequence[Tensor]]]
) -> list[Slice]:
    """Return what is read: `rows` has the target of each read by layer and name."""
    return [
        names.slice_of(layer, expert, name, targets[index])
        for layer, action in enumerate(actions)
        for index, (expert, _) in enumerate(action.reads)
        for name, targets in rows[layer].items()
    ]


def _plan(  # noqa: PLR0913 (as load_experts)
    slots: Sequence[Slots],
    target: Tensor,
    *,
    names: ExpertNames,
    gpu: int,
    num_gpus: int,
    current: Tensor | None,
) -> list[Actions]:
    """Check the arguments, and plan what each layer needs."""
    new = _rows(target, gpu=gpu, num_gpus=num_gpus, what="target")
    old = [[EMPTY] * len(row) for row in new]
    if current is not None:
        if current.shape != target.shape:
            raise ValueError("current and target must have one shape")
        old = _rows(current, gpu=gpu, num_gpus=num_gpus, what="current")
    _check(slots, new, names)
    return [plan_slots(before, after) for before, after in zip(old, new, strict=True)]


def _report(actions: Sequence[Actions], copied_bytes: int, read: ReadReport) -> ExpertReport:
    copies = [slot for action in actions for _, slot in (*action.copies, *action.copies_after)]
    return ExpertReport(
        kept=sum(len(action.kept) for action in actions),
        copied=sum(slot is not None for slot in copies),
        read=sum(len(action.reads) for action in actions),
        copied_bytes=copied_bytes,
        needed_bytes=read.needed,
        read_bytes=read.read,
    )


def _rows(placement: Tensor, *, gpu: int, num_gpus: int, what: str) -> list[list[int]]:
    """The experts of one GPU's slots, by layer."""
    if placement.dim() != 2 or placement.is_floating_point():
        raise ValueError(
            f"{what} must be (layers, slots) of integers, not {tuple(placement.shape)} {placement.dtype}"
        )
    if num_gpus < 1 or placement.shape[1] % num_gpus:
        raise ValueError(f"slots ({placement.shape[1]}) must be a multiple of num_gpus ({num_gpus})")
    if not 0 <= gpu < num_gpus:
        raise ValueError(f"gpu must be 0 to {num_gpus - 1}, not {gpu}")
    size = placement.shape[1] // num_gpus
    rows: list[list[int]] = placement[:, gpu * size : (gpu + 1) * size].clamp(min=EMPTY).tolist()
    return rows


def _check(slots: Sequence[Slots], new: list[list[int]], names: ExpertNames) -> None:
    if len(slots) != len(new):
        raise ValueError(f"slots has {len(slots)} layers, target has {len(new)}")
    if names.layers is not None and len(names.layers) != len(new):
        raise ValueError(f"names.layers has {len(names.layers)} numbers, target has {len(new)} layers")
    for layer, (tensors, row) in enumerate(zip(slots, new, strict=True)):
        if EMPTY in row:
            raise ValueError(f"target must name an expert in every slot; layer {layer} does not")
        for name, tensor in tensors.items():
            if tensor.dim() < 1 or tensor.shape[0] != len(row):
                raise ValueError(
                    f"slots of layer {layer}, {name!r}: the first dimension must be {len(row)}, "
                    f"the GPU's slots, not of shape {tuple(tensor.shape)}"
                )


@torch.no_grad()
def _copy(tensors: Slots, copies: Sequence[Pair]) -> int:
    """Carry out copies in their order, and return their bytes."""
    for tensor in tensors.values():
        temporary = torch.empty_like(tensor[0]) if any(None in pair for pair in copies) else None
        for source, target in copies:
            value = temporary if source is None else tensor[source]
            place = temporary if target is None else tensor[target]
            assert value is not None and place is not None, "there is a temporary where a cycle is"  # noqa: PT018
            place.copy_(value)
    return len(copies) * sum(tensor[0].nbytes for tensor in tensors.values())


__all__ = [
    "Actions", "ExpertNames", "ExpertReport", "StagedExperts", "load_experts", "plan_slots", "stage_experts",
]  # fmt: skip
