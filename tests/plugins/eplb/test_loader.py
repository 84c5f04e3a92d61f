"""Slots after a change of placement equal those of a full load, and only what was lacking is read."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from counting import CountingFileSystem
from luciola.client import LocalFileSystem
from luciola.plugins.eplb import ExpertNames, load_experts, rebalance_experts
from luciola.plugins.eplb.loader import plan_slots
from luciola.plugins.weights import Checkpoint

LAYERS, EXPERTS, SLOTS, GPUS = 3, 12, 16, 4
SEPARATE = ExpertNames("model.layers.{layer}.mlp.experts.{expert}.{name}", layers=range(1, 1 + LAYERS))
FUSED = ExpertNames("layers.{layer}.{name}")
SHAPES = {"up": (40, 30), "down": (30, 20), "up_scale": (3,)}
BYTES = sum(4 * torch.Size(shape).numel() for shape in SHAPES.values())


@st.composite
def slot_changes(draw):
    slots = draw(st.integers(1, 7))
    experts = st.integers(0, draw(st.integers(0, 8)))
    return draw(st.lists(st.integers(-1, 8), min_size=slots, max_size=slots)), draw(
        st.lists(experts, min_size=slots, max_size=slots)
    )


@given(slot_changes())
@settings(max_examples=200)
def test_slots_end_up_right_with_the_fewest_reads(change):
    current, target = change
    actions = plan_slots(current, target)
    held, temporary = list(current), None
    for source, place in actions.copies:
        value = temporary if source is None else held[source]
        assert value is not None
        if place is None:
            temporary = value
        else:
            assert held[place] != target[place], "a copy that was not needed"
            held[place] = value
    for expert, slot in actions.reads:
        held[slot] = expert
    for source, place in actions.copies_after:
        held[place] = held[source]
    assert held == target
    assert sorted(expert for expert, _ in actions.reads) == sorted(set(target) - set(current))
    assert set(actions.kept) == {slot for slot in range(len(target)) if current[slot] == target[slot]}
    changed = [place for _, place in actions.copies if place is not None]
    assert len(set(changed)) == len(changed)


@pytest.mark.parametrize(
    ("current", "target", "copies"),
    [
        ([0, 1], [1, 0], [(0, None), (1, 0), (None, 1)]),
        ([0, 1, 2], [0, 0, 1], [(1, 2), (0, 1)]),
        ([0, 1, 2, 3], [1, 0, 3, 2], [(0, None), (1, 0), (None, 1), (2, None), (3, 2), (None, 3)]),
        ([0, 0], [0, 0], []),
    ],
)
def test_known_orders(current, target, copies):
    assert list(plan_slots(current, target).copies) == copies


def weights_of(layer, expert, name):
    generator = torch.Generator().manual_seed(1000 * layer + 10 * expert + len(name))
    return torch.randn(SHAPES[name], generator=generator)


@pytest.fixture(scope="module", params=["separate", "fused"])
def model(request, tmp_path_factory):
    """(checkpoint, counter, names)."""
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    names = SEPARATE if request.param == "separate" else FUSED
    tensors = {"embedding": torch.zeros(5000)}
    for layer in range(LAYERS):
        for name in SHAPES:
            each = [weights_of(layer, expert, name) for expert in range(EXPERTS)]
            if names is FUSED:
                tensors[FUSED.template.format(layer=layer, name=name)] = torch.stack(each)
                continue
            for expert, tensor in enumerate(each):
                tensors[SEPARATE.template.format(layer=layer + 1, expert=expert, name=name)] = tensor
    save_file(tensors, path)
    counter = CountingFileSystem(LocalFileSystem())
    return Checkpoint(counter, str(path)), counter, names


def placement(seed):
    loads = torch.rand(LAYERS, EXPERTS, generator=torch.Generator().manual_seed(seed)) ** 4
    return rebalance_experts(loads, SLOTS, 1, 1, GPUS)[0]


def empty_slots(gpus=GPUS):
    size = SLOTS // gpus
    return [
        {name: torch.full((size, *shape), float("nan")) for name, shape in SHAPES.items()}
        for _ in range(LAYERS)
    ]


def require(slots, target, gpu):
    size = target.shape[1] // GPUS
    for layer, row in enumerate(target[:, gpu * size : (gpu + 1) * size].tolist()):
        for name in SHAPES:
            expected = torch.stack([weights_of(layer, expert, name) for expert in row])
            assert torch.equal(slots[layer][name], expected)


@pytest.mark.parametrize("gpu", range(GPUS))
def test_changes_of_placement_equal_full_loads(model, gpu):
    checkpoint, counter, names = model
    slots = empty_slots()
    before = None
    for seed in range(4):
        target = placement(seed)
        counter.read_bytes = 0
        report = load_experts(checkpoint, slots, target, names=names, gpu=gpu, num_gpus=GPUS, current=before)
        require(slots, target, gpu)
        part = slice(gpu * SLOTS // GPUS, (gpu + 1) * SLOTS // GPUS)
        lacking = sum(
            len(set(row) - (set() if before is None else set(before[layer, part].tolist())))
            for layer, row in enumerate(target[:, part].tolist())
        )
        assert report.read == lacking
        assert counter.read_bytes == report.read_bytes == report.needed_bytes == lacking * BYTES
        assert report.kept + report.copied + report.read == LAYERS * SLOTS // GPUS
        before = target
    again = load_experts(checkpoint, slots, before, names=names, gpu=gpu, num_gpus=GPUS, current=before)
    assert (again.kept, again.copied, again.read_bytes) == (LAYERS * SLOTS // GPUS, 0, 0)


def test_an_exchange_inside_a_gpu_reads_nothing(model):
    checkpoint, counter, names = model
    slots = empty_slots()
    first = torch.arange(SLOTS).remainder(EXPERTS).expand(LAYERS, SLOTS).clone()
    load_experts(checkpoint, slots, first, names=names, gpu=1, num_gpus=GPUS)
    turned = first.clone()
    turned[:, 4:8] = first[:, [7, 4, 5, 6]]
    counter.read_bytes = 0
    report = load_experts(checkpoint, slots, turned, names=names, gpu=1, num_gpus=GPUS, current=first)
    require(slots, turned, 1)
    assert (counter.read_bytes, report.copied, report.copied_bytes) == (0, 4 * LAYERS, 5 * LAYERS * BYTES)


def test_shards_of_experts_into_views_of_one_tensor(model):
    """Two halves of `up` as if this were rank 1 of 2, both in one tensor with `down` behind; converted on the way."""
    checkpoint, counter, names = model
    names = ExpertNames(
        names.template, names.layers, index={"up": slice(20, 40), "down": (slice(None), slice(0, 5))}
    )
    merged = [torch.zeros(4, 700, dtype=torch.bfloat16) for _ in range(LAYERS)]
    slots = [
        {
            "up": tensor[:, :600].view(4, 20, 30),
            "down": tensor[:, 600:].as_strided((4, 30, 3), (700, 3, 1), 600),
        }
        for tensor in merged
    ]
    target = placement(0)
    with pytest.raises(ValueError, match="shape"):
        load_experts(checkpoint, slots, target, names=names, gpu=2, num_gpus=GPUS, convert=True)
    slots = [{"up": tensor["up"]} for tensor in slots]
    counter.read_bytes = 0
    load_experts(checkpoint, slots, target, names=names, gpu=2, num_gpus=GPUS, convert=True)
    for layer in range(LAYERS):
        for slot, expert in enumerate(target[layer, 8:12].tolist()):
            assert torch.equal(slots[layer]["up"][slot], weights_of(layer, expert, "up")[20:].bfloat16())
    assert counter.read_bytes == sum(len(set(row)) for row in target[:, 8:12].tolist()) * 20 * 30 * 4


def test_what_does_not_fit_is_refused_before_anything_moves(model):
    checkpoint, _, names = model
    target, slots = placement(0), empty_slots()

    def attempt(kind, reason, *, slots=slots, target=target, **named):
        arguments = {"names": names, "gpu": 0, "num_gpus": GPUS} | named
        with pytest.raises(kind, match=reason):
            load_experts(checkpoint, slots, target, **arguments)

    attempt(ValueError, "gpu must be 0 to 3, not 4", gpu=4)
    attempt(ValueError, r"slots \(16\) must be a multiple of num_gpus \(3\)", num_gpus=3)
    attempt(ValueError, "target must be .layers, slots. of integers", target=target.float())
    attempt(ValueError, "slots has 2 layers, target has 3", slots=slots[:2])
    attempt(ValueError, "the first dimension must be 8", num_gpus=2)
    attempt(ValueError, "must have one shape", current=target[:, :12])
    attempt(
        ValueError,
        "every slot; layer 1 does not",
        target=torch.where(torch.arange(3)[:, None] == 1, -1, target),
    )
    attempt(ValueError, "has 1 numbers", names=ExpertNames(names.template, [0]))
    attempt(
        TypeError,
        "convert=True",
        slots=[{"up": layer["up"].half()} for layer in slots],
        current=target.flip(1),
    )
    attempt(
        ValueError, "has shape", slots=[{"up": layer["up"][:, 1:]} for layer in slots], current=target.flip(1)
    )
    attempt(KeyError, "no tensor", names=ExpertNames("none.{layer}.{expert}.{name}"))
    assert all(tensor.isnan().all() for layer in slots for tensor in layer.values())
    with pytest.raises(ValueError, match="a template has"):
        ExpertNames("layers.{layer}.experts.{index}.{name}")
    with pytest.raises(ValueError, match="a template has"):
        ExpertNames("layers.experts.{name}")
