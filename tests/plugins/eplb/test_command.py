"""`luciola eplb plan|show`."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cluster import LocalCluster, luciola
from luciola.client import close_locations, open_location
from luciola.errors import CorruptData, InvalidArgument
from luciola.plugins.eplb import imbalance, moves_between, rebalance_experts
from luciola.plugins.eplb.command import eplb
from luciola.plugins.eplb.plan_file import Plan, experts_in_order

LAYERS, EXPERTS = 5, 32
MACHINE = ("--replicas", "40", "--gpus", "8", "--nodes", "2", "--groups", "4")


def loads_at(moment):
    rng = np.random.default_rng(7)
    base = rng.lognormal(0, 1, (LAYERS, EXPERTS))
    return torch.from_numpy(base * np.random.default_rng(moment).lognormal(0, 0.3, (LAYERS, EXPERTS)))


@pytest.fixture
def files(tmp_path):
    paths = []
    for moment in range(4):
        paths.append(str(tmp_path / f"{moment}.npy"))
        np.save(paths[-1], loads_at(moment).numpy())
    return paths


def run(*arguments, error=None):
    result = CliRunner().invoke(eplb, arguments)
    if error is None:
        assert result.exit_code == 0, result.output + repr(result.exception)
    else:
        assert isinstance(result.exception, error), result.output
        assert "\n" not in str(result.exception)
    return result


@pytest.mark.parametrize("policy", ["reference", "optimal", "optimal-global"])
def test_a_plan_is_that_of_the_library(files, tmp_path, policy):
    path = str(tmp_path / "p.json")
    report = json.loads(run("plan", files[0], *MACHINE, "--policy", policy, "-o", path, "--json").output)
    expected = rebalance_experts(loads_at(0), 40, 4, 2, 8, policy=policy)[0]
    plan = Plan.load(path)
    assert torch.equal(plan.placement, expected)
    assert (plan.policy, plan.moves, report["moves"]) == (policy, None, None)
    assert report["after"]["mean"] == pytest.approx(float(imbalance(loads_at(0), expected, 8).mean()))
    nodes = 1 if policy == "optimal-global" else 2
    before = imbalance(loads_at(0), experts_in_order(loads_at(0), 40, nodes=nodes), 8)
    assert report["before"]["worst"] == pytest.approx(float(before.max()))
    assert report["before"]["worst_layer"] == int(before.argmax())


def test_a_plan_after_another_keeps_slots_and_lists_moves(files, tmp_path):
    first, second = str(tmp_path / "1.json"), str(tmp_path / "2.json")
    run("plan", files[0], *MACHINE, "-o", first)
    output = run("plan", files[1], *MACHINE, "--current", first, "-o", second).output
    old, new = Plan.load(first), Plan.load(second)
    moves = moves_between(old.placement, new.placement, 8)
    assert new.moves == tuple(tuple(move) for move in moves)
    assert len(moves) > 0
    assert f"{len(moves)} experts move" in output
    again = json.loads(run("plan", files[1], *MACHINE, "--current", second, "--json").output)
    assert again["moves"] == 0
    assert again["before"]["mean"] == pytest.approx(again["after"]["mean"])


def test_a_plan_within_a_budget(files, tmp_path):
    first, second = str(tmp_path / "1.json"), str(tmp_path / "2.json")
    run("plan", files[0], *MACHINE, "-o", first)
    old = Plan.load(first)
    balances = []
    for budget in (0, 6, 1000):
        run("plan", files[1], *MACHINE, "--current", first, "--budget", str(budget), "-o", second)
        new = Plan.load(second)
        assert len(new.moves) == len(moves_between(old.placement, new.placement, 8)) <= budget
        assert new.policy == "incremental"
        balances.append(float(imbalance(loads_at(1), new.placement, 8).mean()))
    assert balances[0] > balances[1] > balances[2]
    assert balances[0] == pytest.approx(float(imbalance(loads_at(1), old.placement, 8).mean()))
    for more in (("--policy", "optimal", "--current", first), ("--windows", "--current", first), ()):
        assert (
            "--budget goes with"
            in run("plan", files[1], *MACHINE, "--budget", "3", *more, error=SystemExit).output
        )


def test_windows_count_when_asked_for(tmp_path, files):
    path = str(tmp_path / "w.npy")
    windows = torch.stack([loads_at(0), loads_at(1).flip(1)])
    np.save(path, windows.numpy())
    plan = str(tmp_path / "p.json")
    run("plan", path, *MACHINE, "--windows", "-o", plan)
    weight = torch.cat([windows.mean(0, keepdim=True), windows])
    assert torch.equal(Plan.load(plan).placement, rebalance_experts(weight, 40, 4, 2, 8, policy="optimal")[0])
    run("plan", files[0], *MACHINE, "--windows", error=InvalidArgument)


def test_showing_a_plan(files, tmp_path):
    plan = str(tmp_path / "p.json")
    run("plan", files[0], *MACHINE, "-o", plan)
    lines = run("show", plan).output.splitlines()
    assert lines[0].split() == ["LAYER", "MEAN", "MAX/MEAN", "BOUND", "GPU", "MOST", "REPLICAS", "DOUBLES"]
    assert [line.split()[0] for line in lines[1:6]] == [str(layer) for layer in range(LAYERS)]
    assert lines[6].startswith("policy optimal, 40 slots on 8 GPUs: max/mean ")
    report = json.loads(run("show", plan, "--json").output)
    loads = loads_at(0)
    ratios = imbalance(loads, Plan.load(plan).placement, 8)
    assert [row["ratio"] for row in report["layers"]] == pytest.approx(ratios.tolist())
    other = json.loads(run("show", plan, "--loads", files[1], "--json").output)
    assert other["summary"]["mean"] == pytest.approx(
        float(imbalance(loads_at(1), Plan.load(plan).placement, 8).mean())
    )


@pytest.mark.parametrize(
    ("arguments", "error", "reason"),
    [
        (("plan", "{0}", "--replicas", "41", "--gpus", "8"), InvalidArgument, "multiple of num_gpus"),
        (
            ("plan", "{0}", "--replicas", "24", "--gpus", "8"),
            InvalidArgument,
            "at least the number of experts",
        ),
        (("plan", "{0}.txt", "--replicas", "40", "--gpus", "8"), InvalidArgument, ".npy file"),
        (("plan", "{0}", *MACHINE, "--current", "{0}"), CorruptData, "not a plan"),
        (("show", "{0}"), CorruptData, "not a plan"),
    ],
)
def test_what_is_wrong_is_one_line(files, arguments, error, reason):
    arguments = [argument.format(*files) for argument in arguments]
    assert reason in str(run(*arguments, error=error).exception)


def test_loads_of_other_shapes(files, tmp_path):
    np.save(tmp_path / "other.npy", np.ones((LAYERS, 64)))
    plan = str(tmp_path / "p.json")
    run("plan", files[0], *MACHINE, "-o", plan)
    run("show", plan, "--loads", str(tmp_path / "other.npy"), error=InvalidArgument)
    other = ("--replicas", "80", "--gpus", "8")
    result = run("plan", str(tmp_path / "other.npy"), *other, "--current", plan, error=InvalidArgument)
    assert "a plan of 40 slots on 8 GPUs, not of 80 on 8" in str(result.exception)


@pytest.mark.parametrize("name", ["", "plan", "show"])
def test_help_has_an_example(name):
    assert f"luciola eplb {name}".strip() in run(*([name] if name else []), "--help").output


def test_on_a_cluster(shared_cluster: LocalCluster, files, monkeypatch):
    """Loads and plan on a cluster; an error as a user sees it."""
    monkeypatch.setenv("LUCIOLA_DATA", str(shared_cluster.data))
    fs, _ = open_location("lu:/")
    with open(files[0], "rb") as file:
        fs.write("/loads.npy", file.read())
    run("plan", "lu:/loads.npy", *MACHINE, "-o", "lu:/eplb/plan.json")
    assert "40 slots on 8 GPUs" in run("show", "lu:/eplb/plan.json").output
    assert fs.listdir("/eplb") == ["plan.json"]
    close_locations()
    result = luciola("eplb", "show", "lu:/none.json", check=False)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
