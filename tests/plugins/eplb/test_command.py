"""`luciola eplb plan`."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cluster import LocalCluster, luciola
from luciola.client import close_locations, open_location
from luciola.errors import CorruptData, InvalidArgument
from luciola.plugins.eplb import Loads, imbalance, lower_bound, moves_between, rebalance_experts
from luciola.plugins.eplb.command import eplb
from luciola.plugins.eplb.plan_file import Plan

LAYERS, EXPERTS = 5, 32
MACHINE = ("--replicas", "40", "--gpus", "8", "--nodes", "2", "--groups", "4")


def loads_at(moment):
    rng = np.random.default_rng(7)
    base = rng.lognormal(0, 1, (LAYERS, EXPERTS))
    return torch.from_numpy(base * np.random.default_rng(moment).lognormal(0, 0.3, (LAYERS, EXPERTS)))


def save(path, average, windows=None):
    windows = average[None][:0] if windows is None else windows
    Loads(average, windows, steps=1, half_life_steps=1.0).save(path)
    return str(path)


@pytest.fixture
def files(tmp_path):
    return [save(tmp_path / f"{moment}.safetensors", loads_at(moment)) for moment in range(2)]


def run(*arguments, error=None):
    result = CliRunner().invoke(eplb, arguments)
    if error is None:
        assert result.exit_code == 0, result.output + repr(result.exception)
    else:
        assert isinstance(result.exception, error), result.output
        assert "\n" not in str(result.exception)
    return result


@pytest.mark.parametrize("policy", ["reference", "optimal"])
def test_a_plan_is_that_of_the_library_and_its_balance_is_shown(files, tmp_path, policy):
    path = str(tmp_path / "p.json")
    report = json.loads(run("plan", files[0], *MACHINE, "--policy", policy, "-o", path, "--json").output)
    expected = rebalance_experts(loads_at(0), 40, 4, 2, 8, policy=policy)[0]
    plan = Plan.load(path)
    assert torch.equal(plan.physical_to_logical_map, expected)
    assert (plan.policy, report["policy"], report["moves"]) == (policy, policy, None)
    assert report["after"] == pytest.approx(imbalance(loads_at(0), expected, 8).tolist())
    in_order = torch.tensor([[*range(EXPERTS), *range(8)]] * LAYERS)
    assert report["before"] == pytest.approx(imbalance(loads_at(0), in_order, 8).tolist())
    bound = lower_bound(loads_at(0), 40, 8) / (loads_at(0).sum(1) / 8)
    assert report["bound"] == pytest.approx(bound.tolist())


def test_a_dry_run_prints_each_layer_and_writes_nothing(files, tmp_path):
    before = sorted(tmp_path.iterdir())
    lines = run("plan", files[0], *MACHINE).output.splitlines()
    assert lines[0].split() == ["LAYER", "BEFORE", "AFTER", "BOUND"]
    assert [line.split()[0] for line in lines[1:8]] == [*map(str, range(LAYERS)), "mean", "worst"]
    assert lines[8] == "policy optimal: 32 experts in 40 slots on 8 GPUs"
    assert lines[9] == "nothing is written: give -o PLAN"
    assert sorted(tmp_path.iterdir()) == before


def test_a_plan_after_another_keeps_slots_and_counts_moves(files, tmp_path):
    first, second = str(tmp_path / "1.json"), str(tmp_path / "2.json")
    run("plan", files[0], *MACHINE, "-o", first)
    output = run("plan", files[1], *MACHINE, "--current", first, "-o", second).output
    old, new = (Plan.load(each).physical_to_logical_map for each in (first, second))
    moves = len(moves_between(old, new, 8))
    assert moves > 0
    assert f"{moves} experts move" in output
    again = json.loads(run("plan", files[1], *MACHINE, "--current", second, "--json").output)
    assert again["moves"] == 0
    assert again["before"] == pytest.approx(again["after"])


def test_a_plan_within_a_budget(files, tmp_path):
    first, second = str(tmp_path / "1.json"), str(tmp_path / "2.json")
    run("plan", files[0], *MACHINE, "-o", first)
    old = Plan.load(first).physical_to_logical_map
    balances = []
    for budget in (0, 6, 1000):
        run("plan", files[1], *MACHINE, "--current", first, "--budget", str(budget), "-o", second)
        new = Plan.load(second)
        assert len(moves_between(old, new.physical_to_logical_map, 8)) <= budget
        assert new.policy == "incremental"
        balances.append(float(imbalance(loads_at(1), new.physical_to_logical_map, 8).mean()))
    assert balances[0] > balances[1] > balances[2]
    assert balances[0] == pytest.approx(float(imbalance(loads_at(1), old, 8).mean()))
    for more in (("--policy", "optimal", "--current", first), ()):
        refused = run("plan", files[1], *MACHINE, "--budget", "3", *more, error=SystemExit)
        assert "--budget goes with" in refused.output


def test_recorded_windows_count(tmp_path):
    windows = torch.stack([loads_at(0), loads_at(1).flip(1)])
    path = save(tmp_path / "w.safetensors", windows.mean(0), windows)
    plan = str(tmp_path / "p.json")
    run("plan", path, *MACHINE, "-o", plan)
    weight = torch.cat([windows.mean(0, keepdim=True), windows])
    expected = rebalance_experts(weight, 40, 4, 2, 8, policy="optimal")[0]
    assert torch.equal(Plan.load(plan).physical_to_logical_map, expected)


@pytest.mark.parametrize(
    ("arguments", "error", "reason"),
    [
        (("{0}", "--replicas", "41", "--gpus", "8"), InvalidArgument, "multiple of num_gpus"),
        (("{0}", "--replicas", "24", "--gpus", "8"), InvalidArgument, "at least the number of experts"),
        (("{0}", *MACHINE, "--current", "{0}"), CorruptData, "not a plan"),
        ((__file__, *MACHINE), CorruptData, "not a safetensors file"),
    ],
)
def test_what_is_wrong_is_one_line(files, arguments, error, reason):
    arguments = [argument.format(*files) for argument in arguments]
    assert reason in str(run("plan", *arguments, error=error).exception)


def test_a_plan_of_another_machine_is_no_current_one(files, tmp_path):
    plan = str(tmp_path / "p.json")
    run("plan", files[0], *MACHINE, "-o", plan)
    other = ("--replicas", "80", "--gpus", "8", "--current", plan)
    result = run("plan", files[0], *other, error=InvalidArgument)
    assert "a plan of 40 slots on 8 GPUs, not of 80 on 8" in str(result.exception)
    save(tmp_path / "other.safetensors", torch.ones(LAYERS + 1, EXPERTS))
    run("plan", str(tmp_path / "other.safetensors"), *MACHINE, "--current", plan, error=InvalidArgument)


@pytest.mark.parametrize("arguments", [(), ("plan",)])
def test_help_has_an_example(arguments):
    assert "luciola eplb plan" in run(*arguments, "--help").output


def test_on_a_cluster(shared_cluster: LocalCluster, monkeypatch):
    """Loads and plan on a cluster; an error as a user sees it."""
    monkeypatch.setenv("LUCIOLA_DATA", str(shared_cluster.data))
    fs, _ = open_location("lu:/")
    save("lu:/loads.safetensors", loads_at(0))
    run("plan", "lu:/loads.safetensors", *MACHINE, "-o", "lu:/eplb/plan.json")
    run("plan", "lu:/loads.safetensors", *MACHINE, "--current", "lu:/eplb/plan.json")
    assert fs.listdir("/eplb") == ["plan.json"]
    close_locations()
    result = luciola("eplb", "plan", "lu:/none.safetensors", *MACHINE, check=False)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
