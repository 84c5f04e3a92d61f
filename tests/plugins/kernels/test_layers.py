"""Which layer runs a call is chosen for the whole process, and launches can be asked for."""

import threading
from importlib.metadata import PackageNotFoundError

import pytest
import torch
import triton

from gluon_simulator import launch_simulated
from luciola.plugins import deepgemm, kernels
from luciola.plugins.deepep.normal import layout
from luciola.plugins.kernels import layers, status

HERE = torch.zeros(1)


@pytest.fixture(autouse=True)
def _default():
    kernels.set_layer(None)
    yield
    kernels.set_layer(None)


def in_a_thread(call):
    found = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    thread.join(60)
    return found[0]


def test_the_choice_holds_in_threads_that_were_there_before_and_after():
    begun, chosen, found = threading.Event(), threading.Event(), []

    def engine():
        begun.set()
        assert chosen.wait(100)
        found.append(kernels.layer_for(HERE))

    thread = threading.Thread(target=engine)
    thread.start()
    assert begun.wait(100)
    kernels.set_layer("reference")
    chosen.set()
    thread.join(60)
    assert found == ["reference"] == [in_a_thread(lambda: kernels.layer_for(HERE))]
    kernels.set_layer(None)
    with kernels.using_layer("reference"):
        assert in_a_thread(lambda: kernels.layer_for(HERE)) == "reference"
    assert in_a_thread(lambda: kernels.layer_for(HERE)) == "triton"


def test_a_call_that_cannot_run_in_the_chosen_layer_takes_the_one_below():
    kernels.set_layer("hopper")
    assert kernels.layer() == "hopper"
    assert kernels.layer_for(HERE) == "triton", "the interpreter has no Gluon"
    kernels.set_layer("reference")
    assert not kernels.uses_kernels(HERE)


def test_the_environment_chooses_until_the_process_does(monkeypatch):
    monkeypatch.setenv("LUCIOLA_KERNELS", "reference")
    assert kernels.layer() == kernels.layer_for(HERE) == "reference"
    kernels.set_layer("triton")
    assert kernels.layer_for(HERE) == "triton"
    kernels.set_layer(None)
    monkeypatch.setenv("LUCIOLA_KERNELS", "cuda")
    with pytest.raises(
        ValueError, match="LUCIOLA_KERNELS: there is no layer 'cuda'; choose one of reference"
    ):
        kernels.layer_for(HERE)
    with pytest.raises(ValueError, match="there is no layer 'fast'"):
        kernels.set_layer("fast")


def test_gluon_is_the_default_where_it_runs_and_its_gates_passed(monkeypatch):
    assert layers.is_gated(), "the gates of this release of Triton are tested: name it in GATED"
    with layers.launching_with(launch_simulated(seed=0)):
        assert kernels.layer_for(HERE) == "hopper"
        monkeypatch.setattr(layers, "GATED", ())
        assert kernels.layer_for(HERE) == "triton"
        kernels.set_layer("hopper")
        assert kernels.layer_for(HERE) == "hopper", "asked for by name"
        kernels.set_layer("triton")
        assert kernels.layer_for(HERE) == "triton"


def test_a_triton_of_another_distribution_has_a_release_too(monkeypatch):
    def unknown(name):
        raise PackageNotFoundError(name)

    release = layers.triton_release()
    monkeypatch.setattr(layers, "version", unknown)
    assert layers.triton_release.__wrapped__() == release == triton.__version__


def test_using_a_layer_ends_with_its_block_whatever_happens():
    kernels.set_layer("reference")
    with pytest.raises(ZeroDivisionError), kernels.using_layer("triton"):
        assert kernels.layer_for(HERE) == "triton"
        raise ZeroDivisionError
    assert kernels.layer_for(HERE) == "reference"


def test_launches_are_listed_from_all_threads():
    x = torch.ones(4, 128)
    with kernels.recording() as launches:
        deepgemm.quantize_activations(x)
        in_a_thread(lambda: deepgemm.quantize_activations(x))
        with kernels.using_layer("reference"):
            deepgemm.quantize_activations(x)
    deepgemm.quantize_activations(x)
    assert [(each.kernel, each.grid) for each in launches] == [("per_token_cast_kernel", (1, 1))] * 2
    assert launches[0].constants["BLOCK_M"] == 16


def test_operators_without_a_gluon_kernel_run_their_triton_kernel_in_that_layer():
    topk = torch.tensor([[0, 3], [-1, 1]])
    want = layout.count(topk, 4, num_ranks=2)
    with (
        layers.launching_with(launch_simulated(seed=0)),
        kernels.using_layer("hopper"),
        kernels.recording() as launches,
    ):
        got = layout.count(topk, 4, num_ranks=2)
    assert len(launches) == 1
    for name in ("num_tokens_per_rank", "num_tokens_per_expert", "is_token_in_rank"):
        assert torch.equal(getattr(got, name), getattr(want, name))


def test_runs_are_noted_by_card_and_plugin(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert status.last_run("deepgemm") == "no card"
    with pytest.raises(RuntimeError, match="no CUDA device"):
        status.record_run("deepgemm")
    card = ["H100"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: card[0])
    assert status.last_run("deepgemm") == "never"
    status.record_run("deepgemm")
    status.record_run("flashmla")
    assert status.last_run("deepgemm") == status.last_run("flashmla") > "2025"
    card[0] = "H200"
    assert status.last_run("deepgemm") == "never"
    for damaged in ("{", "[]", '{"H200": 3}'):
        (tmp_path / "luciola" / "gpu-runs.json").write_text(damaged)
        assert status.last_run("flashmla") == "never"


def test_every_plugin_with_kernels_names_layer_gate_and_last_run():
    from importlib import import_module

    for name in ("deepgemm", "flashmla", "deepep"):
        found = import_module(f"luciola.plugins.{name}").describe()
        assert found["layer"] == "triton"
        assert found["run_on_this_card"] == "no card"
        assert found["gate"].startswith("sm_90a machine code, passed with Triton ")
