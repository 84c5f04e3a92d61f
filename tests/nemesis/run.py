"""One run: a cluster of machines, programs that record histories, faults from a seed, a verdict and a report.

usage: python -m nemesis.run [--metadata etcd] [--seconds S | --minutes M] [--seed N] [--faults KIND …] [--keep]
           [--report FILE]

The exit code is 0 if every history is valid and nothing else was found. The same seed gives the same plan of faults.
"""

import argparse
import errno
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from . import histories
from .checker import Model, Outcome, Verdict, check
from .faults import WEIGHTS, Injector, Plan, PowerLoss
from .histories import Failure, Operation
from .machines import Machines, in_namespaces, until
from .models import (
    ABSENT,
    EXISTS,
    POWER_LOSS,
    SYNC,
    Durable,
    Log,
    Names,
    Register,
    check_close_to_open,
    split_appends,
    without_unseen_writes,
)
from .workloads import CHUNK, DIRECTORY, REGISTER_CHUNKS, REGISTER_FILE

INSIDE: Final = "LUCIOLA_NEMESIS_INSIDE"  # set in the namespaces that a run makes for itself
QUIET_S: Final = 4.0  # of work after the last fault
DEADLINE_S: Final = 55.0  # `deadline_ms` of clients, 60 s, less what a request may take to come to its client
LOST_SEEN_NS: Final = 10**10  # after a loss of names: by then programs have used every file that was open
KILLS_MOUNTS: Final = {"kill", "reboot", "power", "blackout"}
SEPARATES_CLIENTS: Final = set(WEIGHTS) - {"full"}  # from mgmtd, for longer than `client_session_timeout_ms`
TERM_BEGINS: Final = " serves, epoch "  # in the log of mgmtd or meta
END_S: Final = 120.0  # in which a program ends the call in flight: longer than clients try
STALENESS_MS: Final = 1000  # `attribute_timeout_ms` of the mount with close-to-open consistency
STALENESS_SLACK_NS: Final = (
    200 * 10**6
)  # between an answer of the metadata service and its arrival in the kernel

CONFIG: Final = """
[mgmtd]
client_session_timeout_ms = 8000
client_extend_interval_ms = 500
[storage]
reserve_bytes = 33554432
disk_timeout_ms = 3000
[client]
attribute_timeout_ms = 0
"""
CACHED_CONFIG: Final = CONFIG.replace("attribute_timeout_ms = 0", f"attribute_timeout_ms = {STALENESS_MS}")

# Program: kind of object, kind of client, machine.
PROGRAMS: Final = (
    ("register", "mount", "storage-201"),
    ("log", "mount", "storage-201"),
    ("names", "mount", "storage-201"),
    ("close", "mount", "storage-201"),
    ("register", "cached", "client"),
    ("names", "cached", "client"),
    ("close", "cached", "client"),
    ("register", "python", "client"),
    ("log", "python", "client"),
    ("names", "python", "client"),
    ("close", "python", "client"),
    ("register", "ring", "client"),
    ("register", "reader", "client"),
    ("register", "threads", "client"),
)


@dataclass
class Report:
    """What a run has found; `problems` is empty if nothing."""

    seed: int
    seconds: float = 0.0
    operations: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    histories: Counter[str] = field(default_factory=Counter)
    faults: dict[str, int] = field(default_factory=dict)
    terms: Counter[str] = field(default_factory=Counter)  # of replicated metadata
    losses: Counter[str] = field(default_factory=Counter)
    longest_s: dict[str, float] = field(default_factory=dict)
    check_s: float = 0.0
    problems: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        def table(counts: dict[str, Any]) -> str:
            return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"

        return [
            f"seed {self.seed}, {self.seconds:.0f} s of faults",
            f"operations: {table(self.operations)}",
            f"of unknown outcome: {table(self.unknown)}",
            f"errors: {table(self.errors)}",
            f"faults: {table(self.faults)} (total {sum(self.faults.values())})",
            f"terms: {table(self.terms)}",
            f"losses of what was not synced: {table(self.losses)}",
            f"longest call, s: {table({name: round(value, 1) for name, value in self.longest_s.items()})}",
            f"histories checked: {table(self.histories)} in {self.check_s:.1f} s",
            *(f"PROBLEM: {problem}" for problem in self.problems),
            "nothing found" if not self.problems else f"{len(self.problems)} problems",
        ]


def start_programs(machines: Machines, choose: random.Random, places: dict[str, str]) -> None:
    began_ns = time.monotonic_ns()
    for kind, client, machine in PROGRAMS:
        name = f"{kind}-{client}"
        command = [sys.executable, "-m", "nemesis.workloads", kind, client, places[client]]
        command += ["--history", str(machines.root / "histories" / name)]
        command += ["--seed", str(choose.randrange(1 << 30)), "--began-ns", str(began_ns)]
        machines.program(name, machine, command)


def have_begun(machines: Machines) -> bool:
    """Whether every program has recorded a call."""
    directory = machines.root / "histories"
    begun = {path.stem for path in directory.iterdir() if path.stat().st_size}
    return {service.name for service in machines.services.values() if service.is_program} <= begun


def prepare(data: Path, config: Path) -> None:
    """What the programs work on, synced."""
    import luciola

    with luciola.connect(data, config=config) as fs:
        fs.mkdir(f"/{DIRECTORY}")
        with fs.open(f"/{REGISTER_FILE}", "wb", buffering=0) as file:
            file.truncate(REGISTER_CHUNKS * CHUNK)
            file.fsync()


def run(
    root: Path,
    seed: int,
    seconds: float,
    kinds: list[str] | None,
    say: Callable[[str], None],
    *,
    is_replicated: bool = False,
) -> Report:
    """One run in `root`, a directory of this machine."""
    report = Report(seed)
    # The order in which machines are rebooted must not change the plan.
    (root / "histories").mkdir()
    with Machines(
        root,
        random.Random(f"machines {seed}"),
        nodes=3,
        replicas=2,
        config=CONFIG,
        is_replicated=is_replicated,
    ) as machines:
        injector = Injector(machines, say=say)
        cached = root / "cached.toml"
        cached.write_text(CACHED_CONFIG)
        places = dict.fromkeys(("python", "ring", "reader", "threads"), str(machines.data.root))
        places["mount"] = str(
            machines.mount(
                "strict", "storage-201", "--consistency", "strict", "--config", str(machines.config)
            )
        )
        places["cached"] = str(machines.mount("cached", "client", "--config", str(cached)))
        prepare(machines.data.root, machines.config)
        start_programs(machines, random.Random(f"programs {seed}"), places)
        until(lambda: have_begun(machines), "all programs")
        began_s = time.monotonic()
        try:
            for planned in Plan(random.Random(f"plan {seed}"), machines.places(), kinds or list(WEIGHTS)):
                if time.monotonic() - began_s > seconds:
                    break
                injector.carry_out(planned)
            injector.recover()
            time.sleep(QUIET_S)
        except Exception as error:  # noqa: BLE001 (a problem among others: the histories are judged all the same)
            report.problems.append(f"{error!r} {getattr(error, '__notes__', '')}")
        report.seconds = time.monotonic() - began_s
        report.problems += end_programs(machines)
        if not report.problems:
            report.problems += fsck(machines.data.root)
        if is_replicated and not report.problems:
            report.problems += compare(machines)
            report.terms = terms(machines)
        report.faults = injector.count
        (root / "losses.json").write_text(json.dumps([asdict(loss) for loss in injector.losses]))
        report.losses = Counter(loss.what for loss in injector.losses)
        judge(root / "histories", injector.losses, report)
    return report


def end_programs(machines: Machines) -> list[str]:
    """Ask them to end. Returns those that hang in a call."""
    programs = [service for service in machines.services.values() if service.is_program]
    for program in programs:
        with program.lock:
            program.wanted = False
            program.signal(15)
    deadline_s = time.monotonic() + END_S
    hanging = []
    for program in programs:
        assert program.process is not None, "it was started"
        try:
            program.process.wait(max(0.0, deadline_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            hanging.append(f"{program.name} hangs in a call")
            program.process.kill()
    return hanging


def fsck(data: Path) -> list[str]:
    command = [sys.executable, "-m", "luciola", "fsck", "--data", str(data), "--json", "--scrub"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if not result.stdout:
        return [f"fsck: {result.stderr}"]
    return [f"fsck: {problem}" for problem in json.loads(result.stdout)["problems"]]


def compare(machines: Machines) -> list[str]:
    """Stop mgmtd and meta. Returns which of them have stores that differ."""
    problems = []
    for service, names in (("meta", machines.metas), ("mgmtd", machines.managers)):
        first, *others = machines.contents(service, names)
        if any(other != first for other in others):
            problems.append(f"the stores of {', '.join(names)} differ")
    return problems


def terms(machines: Machines) -> Counter[str]:
    """How often each process of mgmtd and meta became the primary."""
    names = [*machines.managers, *machines.metas]
    return Counter({name: machines.services[name].log.read_text().count(TERM_BEGINS) for name in names})


# Judging.


def judge(directory: Path, losses: list[PowerLoss], report: Report) -> None:
    """Add what the histories say to the report."""
    operations: dict[str, list[Operation]] = defaultdict(list)
    began_s = time.monotonic()
    for path in sorted(directory.iterdir()):
        recorded, failures = histories.read(path)
        kind, _, client = path.stem.partition("-")
        operations[kind] += recorded
        count(report, f"{kind} {client}", recorded, failures, losses)
    for kind, recorded in operations.items():
        for key, history in sorted(histories.by_key(recorded).items()):
            verdict = verdict_on(kind, history, losses)
            report.histories[kind] += 1
            if verdict.outcome is not Outcome.VALID:
                report.problems.append(f"{kind} {key}: {verdict.outcome.value}: {verdict.reason}")
    report.check_s = time.monotonic() - began_s


def count(
    report: Report, name: str, recorded: list[Operation], failures: list[Failure], losses: list[PowerLoss]
) -> None:
    report.operations[name] += len(recorded)
    report.unknown[name] += sum(each.returned_ns is None for each in recorded)
    for failure in failures:
        report.errors[f"{name} {failure.kind} {errno.errorcode.get(failure.errno, failure.errno)}"] += 1
        if not is_explained(failure, set(report.faults), losses):
            report.problems.append(f"an error that no fault explains: {failure}")
    durations = [
        (each.returned_ns - each.invoked_ns) / 1e9 for each in recorded if each.returned_ns is not None
    ]
    report.longest_s[name] = max([report.longest_s.get(name, 0.0), *durations])


def is_explained(failure: Failure, faults: set[str], losses: list[PowerLoss]) -> bool:
    """Whether a program may see this error: of a full disk, of a mount that was killed, of a client that was away for
    longer than its session, of a small file that metadata have in an older state than the client after a loss of power,
    of an open file whose making a loss of power took with it, or after all that a client tries."""
    match failure.errno:
        case errno.ENOSPC:
            return "full" in faults
        case errno.ENOTCONN | errno.ECONNABORTED:
            return bool(faults & KILLS_MOUNTS)
        case errno.ESTALE:
            return bool(faults & SEPARATES_CLIENTS)
        case errno.EAGAIN:
            return any(loss.what == "names" for loss in losses)
        case errno.ENOENT:
            end_ns = failure.began_ns + round(failure.after_s * 1e9)
            return any(
                loss.what == "names"
                and loss.began_ns <= end_ns
                and failure.began_ns <= loss.ended_ns + LOST_SEEN_NS
                for loss in losses
            )
        case _:
            return failure.after_s >= DEADLINE_S


def verdict_on(kind: str, history: list[Operation], losses: list[PowerLoss]) -> Verdict:
    """The verdict on the history of one object; `losses`: when what was not synced may have gone."""
    torn = [each for each in history if isinstance(each.result, str) and each.result.startswith("torn")]
    if torn:
        return Verdict(Outcome.INVALID, f"{torn[0]}")
    match kind:
        case "register":
            return check_durable(Register(), without_unseen_writes(history), losses, "chunks")
        case "names":
            return check_durable(Names(), [as_cached(each) for each in history], losses, "names")
        case "log":
            history = without_unseen_writes(before(history, losses))
            return check(Log(), split_appends(history))
        case _:
            return check_close_to_open([as_cached(each) for each in before(history, losses)])


def check_durable(model: Model, history: list[Operation], losses: list[PowerLoss], what: str) -> Verdict:
    """Check with losses of power that fall into the history, if there are any."""
    last_ns = max((each.returned_ns or each.invoked_ns for each in history), default=0)
    first_ns = min((each.invoked_ns for each in history), default=0)
    falling = [
        loss
        for loss in losses
        if loss.what == what and first_ns <= loss.ended_ns and loss.began_ns <= last_ns
    ]
    if not falling:
        return check(model, [each for each in history if each.kind != SYNC])
    history = history + [
        Operation("power", "", POWER_LOSS, None, None, loss.began_ns, loss.ended_ns) for loss in falling
    ]
    return check(Durable(model, len(falling)), history)


def as_cached(operation: Operation) -> Operation:
    """What a mount that caches names may answer from its caches was true a while before at the latest."""
    if not operation.process.endswith("-cached"):
        return operation
    staleness_ns = STALENESS_MS * 10**6 + STALENESS_SLACK_NS
    if operation.kind in ("stat", "list") or operation.result in (EXISTS, ABSENT):
        return replace(operation, invoked_ns=operation.invoked_ns - staleness_ns)
    return operation


def before(history: list[Operation], losses: list[PowerLoss]) -> list[Operation]:
    """The history until the first loss: these objects are not synced one by one."""
    first_ns = min((each.invoked_ns for each in history), default=0)
    moments = [loss.began_ns for loss in losses if loss.ended_ns >= first_ns]
    return histories.until(history, min(moments)) if moments else history


# The command.


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m nemesis.run", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the run (%(default)s)")
    parser.add_argument("--minutes", type=float, help="the same in minutes")
    parser.add_argument("--seed", type=int, help="repeats the faults of a run")
    parser.add_argument("--faults", nargs="+", choices=sorted(WEIGHTS), help="only these kinds")
    parser.add_argument("--metadata", choices=("etcd",), help="several of mgmtd and meta, over logs in etcd")
    parser.add_argument("--keep", action="store_true", help="keep logs and histories")
    parser.add_argument("--report", type=Path, help="also write the report there")
    options = parser.parse_args()
    if not os.environ.get(INSIDE):
        command = in_namespaces([sys.executable, "-m", "nemesis.run", *sys.argv[1:]])
        search = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {INSIDE: "1", "PYTHONPATH": search}
        os.execvpe(command[0], command, environment)
    seed = random.randrange(1 << 30) if options.seed is None else options.seed
    seconds = options.seconds if options.minutes is None else 60 * options.minutes
    more = "" if options.metadata is None else f" --metadata {options.metadata}"
    print(f"repeat with: python -m nemesis.run --seed {seed} --seconds {seconds:.0f}{more}", flush=True)
    root = Path(tempfile.mkdtemp(prefix="luciola-nemesis-"))
    began_s = time.monotonic()
    report = None
    try:
        report = run(
            root,
            seed,
            seconds,
            options.faults,
            lambda text: print(f"{time.monotonic() - began_s:7.1f} {text}", flush=True),
            is_replicated=options.metadata is not None,
        )
    finally:
        if options.keep or report is None or report.problems:
            print(f"logs and histories are in {root}")
        else:
            shutil.rmtree(root)
    text = "\n".join(report.lines())
    print(text)
    if options.report is not None:
        options.report.write_text(text + "\n")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
