"""The store of put-off weight gradients, and the layer that uses it, against torch's own layer."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luciola.plugins.dualpipe import Linear, PipelineError, WeightGradStore
from luciola.plugins.dualpipe.failure import Cause


@pytest.fixture(autouse=True)
def clean_store():
    WeightGradStore.clear()
    yield
    WeightGradStore.clear()
    WeightGradStore.enabled = False


def test_entries_leave_in_the_order_they_came() -> None:
    ran: list[int] = []
    for each in range(3):
        WeightGradStore.put(lambda each=each: ran.append(each))
        WeightGradStore.put(lambda each=each: ran.append(10 * each))
        WeightGradStore.flush()
    WeightGradStore.flush()
    WeightGradStore.pop()
    assert ran == [0, 0]
    WeightGradStore.pop()
    WeightGradStore.pop()
    assert ran == [0, 0, 1, 10, 2, 20]
    WeightGradStore.pop()
    assert ran == [0, 0, 1, 10, 2, 20], "an empty entry"


def test_pop_without_an_entry_is_refused() -> None:
    WeightGradStore.put(lambda: None)
    with pytest.raises(RuntimeError, match="call flush after each backward"):
        WeightGradStore.pop()


def test_clear_forgets_everything() -> None:
    WeightGradStore.put(lambda: None)
    WeightGradStore.flush()
    WeightGradStore.put(lambda: None)
    WeightGradStore.clear()
    assert WeightGradStore.cache == []
    assert WeightGradStore.funcs_queue.empty()


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(0, 3), max_size=3),
    width=st.integers(1, 4),
    out=st.integers(1, 4),
    bias=st.booleans(),
    frozen=st.booleans(),
    put_off=st.booleans(),
)
def test_linear_is_torchs_linear(shape, width, out, bias, frozen, put_off) -> None:
    torch.manual_seed(1)
    ours = Linear(width, out, bias=bias).double()
    theirs = torch.nn.Linear(width, out, bias=bias).double()
    theirs.load_state_dict(ours.state_dict())
    for layer in (ours, theirs):
        layer.weight.requires_grad_(not frozen)
    x = torch.randn(*shape, width, dtype=torch.double)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    results = [layer(each) for layer, each in zip((ours, theirs), inputs, strict=True)]
    assert torch.equal(*results)
    grad = torch.randn_like(results[0])
    for _ in range(2):  # the second adds up
        results[1].backward(grad, retain_graph=True)
        WeightGradStore.enabled = put_off
        results[0].backward(grad, retain_graph=True)
        WeightGradStore.enabled = False
        if put_off:
            WeightGradStore.flush()
            WeightGradStore.pop()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-13, atol=1e-14)
    for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-13, atol=1e-14)


def test_a_put_off_gradient_is_not_there_before_its_pop() -> None:
    layer = Linear(2, 3)
    WeightGradStore.enabled = True
    layer(torch.ones(1, 2, requires_grad=True)).sum().backward()
    WeightGradStore.enabled = False
    WeightGradStore.flush()
    assert layer.weight.grad is None
    WeightGradStore.pop()
    assert torch.equal(layer.weight.grad, torch.ones(3, 2))


def test_a_pipeline_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(PipelineError(Cause(2, "F0:1", "no"))))
    assert str(error) == "pipeline rank 2, F0:1: no"
    assert error.rank == 2
