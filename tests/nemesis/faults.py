"""Faults, and the plan of a run: which of them happen to whom and for how long, decided by a seed before it starts.

A run is rounds of two faults on different machines. They overlap; a round ends when both have, and the next one begins
after a while, with or without waiting until the cluster is healthy again.

| fault | what happens |
|---|---|
| kill | `kill -9` of a service, a mount or a program, and a start some seconds later |
| kill in recovery | the same, and again as soon as the storage node is being brought up to date |
| pause | SIGSTOP for longer or shorter than a lease, then SIGCONT |
| isolate | no packet reaches or leaves a machine |
| one way | no packet of one machine reaches another one; the other direction works |
| reboot | a clean stop, then another kernel with another boot clock |
| power | loss of power of one machine: what it had not flushed is forgotten |
| blackout | loss of power of all machines of the cluster, half a second after storage nodes have come to a stand |
| hang | a disk that takes nothing for a while; the service is started again then |
| full | a disk without a free block for a while; a storage node that this has stopped is started again |
"""

import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from luciola.wire.pb import mgmtd_pb2

from .machines import Machine, Machines, Service, drop, heal, until

HEALTHY_S: Final = 200.0  # after the last fault, on a busy machine
STALL_S: Final = 0.5  # before a blackout: syncs are in flight then, and nothing is flushed any more
RECOVERY_S: Final = 20.0  # in which a node that was started is brought up to date, or was already


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: what, to whom, when after the beginning of its round, and for how long."""

    kind: str
    victim: str
    other: str  # a second machine, for `one way`
    after_s: float
    hold_s: float
    is_reported: bool  # a supervisor reports the end of a process to mgmtd

    def __str__(self) -> str:
        other = f" to {self.other}" if self.kind == "one way" else ""
        return f"{self.kind} {self.victim}{other} for {self.hold_s:.1f} s"


@dataclass(frozen=True, slots=True)
class Round:
    """Faults at one time, and whether the cluster is healthy before the next ones."""

    faults: tuple[Fault, ...]
    recovers: bool
    pause_s: float


@dataclass(frozen=True, slots=True)
class PowerLoss:
    """A moment at which what was acknowledged and not synced may have gone: of chunks, or of names."""

    what: str  # "chunks" | "names"
    began_ns: int
    ended_ns: int


STORAGE: Final = "storage"
WEIGHTS: Final = {
    "kill": 4,
    "kill in recovery": 2,
    "pause": 4,
    "isolate": 3,
    "one way": 3,
    "reboot": 2,
    "power": 4,
    "blackout": 1,
    "hang": 2,
    "full": 2,
}
LOSES_POWER: Final = ("power", "blackout")


@dataclass
class Plan:
    """An endless sequence of rounds that depends on the seed alone."""

    choose: random.Random
    places: dict[str, str]  # the machine of every service; nodes have the names of their machines
    kinds: list[str] = field(default_factory=lambda: list(WEIGHTS))

    def __iter__(self) -> "Plan":
        return self

    def __next__(self) -> Round:
        choose = self.choose
        first = self._fault(taken="")
        second = [] if first.kind == "blackout" else [self._fault(taken=self.places[first.victim])]
        return Round((first, *second), recovers=choose.random() < 0.6, pause_s=choose.uniform(0.2, 3.0))

    def _fault(self, *, taken: str) -> Fault:
        choose = self.choose
        kinds = [kind for kind in self.kinds if not (taken and kind == "blackout")] or ["kill"]
        kind = choose.choices(kinds, [WEIGHTS[each] for each in kinds])[0]
        services = sorted(self.places)
        nodes = [name for name in services if self.places[name] == name]
        victims = {
            "kill": services,
            "pause": services,
            "kill in recovery": [name for name in nodes if name.startswith(STORAGE)],
        }.get(kind, nodes)
        victim = choose.choice([name for name in victims if self.places[name] != taken])
        other = choose.choice([name for name in nodes if name != victim])
        # Shorter than a lease, about as long, or longer than a client's session.
        hold_s = choose.choice((choose.uniform(0.1, 2), choose.uniform(2, 5), choose.uniform(5, 11)))
        if kind == "blackout":
            hold_s /= 4  # nothing works meanwhile
        return Fault(
            kind, victim, other, round(choose.uniform(0, 2), 2), round(hold_s, 2), choose.random() < 0.7
        )


@dataclass
class Injector:
    """Carries out rounds, and writes down when what was not synced may have been lost."""

    machines: Machines
    count: dict[str, int] = field(default_factory=dict)
    losses: list[PowerLoss] = field(default_factory=list)
    say: Callable[[str], None] = print
    _unsettled: list[int] = field(default_factory=list)  # beginnings of losses of chunks that are not over
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def carry_out(self, planned: Round) -> None:
        """One round. Raises: what a fault, or the end of one, has failed with."""
        was_healthy = self._settle()
        self.say(" + ".join(map(str, planned.faults)))
        is_blackout = any(fault.kind == "blackout" for fault in planned.faults)  # it knows its moment itself
        if not is_blackout and self._may_lose_chunks(planned, was_healthy=was_healthy):
            self._unsettled += [time.monotonic_ns()] * len(planned.faults)
        failures: list[BaseException] = []
        threads = [
            threading.Thread(target=self._inject, args=(fault, failures), name=fault.kind)
            for fault in planned.faults
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        if planned.recovers:
            self.recover()
        time.sleep(planned.pause_s)

    def recover(self) -> None:
        """Return when every replica serves. Raises: TimeoutError, or why a service has ended."""

        def healthy() -> bool:
            if self.machines.failure is not None:
                raise self.machines.failure
            return self._settle()

        until(healthy, "a healthy cluster", timeout_s=HEALTHY_S)

    @staticmethod
    def _may_lose_chunks(planned: Round, *, was_healthy: bool) -> bool:
        """A node that loses power takes nothing with it while every other replica serves."""
        on_storage = [fault for fault in planned.faults if fault.victim.startswith(STORAGE)]
        losing = [fault for fault in on_storage if fault.kind in LOSES_POWER]
        return bool(losing) and not (was_healthy and len(on_storage) == 1)

    def _settle(self) -> bool:
        """Whether the cluster is healthy; what was lost until now has been lost by now, then."""
        if not self.machines.is_healthy():
            return False
        now_ns = time.monotonic_ns()
        self.losses += [PowerLoss("chunks", began_ns, now_ns) for began_ns in self._unsettled]
        self._unsettled.clear()
        return True

    def _inject(self, fault: Fault, failures: list[BaseException]) -> None:
        try:
            time.sleep(fault.after_s)
            with self._lock:
                self.count[fault.kind] = self.count.get(fault.kind, 0) + 1
            getattr(self, "_" + fault.kind.replace(" ", "_"))(fault)
        except BaseException as error:  # noqa: BLE001 (handed to the thread that waits)
            error.add_note(str(fault))
            failures.append(error)

    # Faults. Each returns when it is over.

    def _kill(self, fault: Fault) -> None:
        service = self.machines.services[fault.victim]
        self._end(service, is_reported=fault.is_reported)
        time.sleep(fault.hold_s)
        service.start()

    def _kill_in_recovery(self, fault: Fault) -> None:
        self._kill(fault)
        service = self.machines.services[fault.victim]
        deadline_s = time.monotonic() + RECOVERY_S
        while (
            time.monotonic() < deadline_s and (service.node, mgmtd_pb2.SYNCING) not in self.machines.states()
        ):
            time.sleep(0.02)
        self._end(service, is_reported=fault.is_reported)
        service.start()

    def _end(self, service: Service, *, is_reported: bool) -> None:
        pid = service.process.pid if service.process is not None else 0
        service.kill()
        if is_reported and service.node:
            self.machines.report_ended(service, pid)

    def _pause(self, fault: Fault) -> None:
        service = self.machines.services[fault.victim]
        with service.lock:  # it is not started again meanwhile
            service.signal(signal.SIGSTOP)
            time.sleep(fault.hold_s)
            service.signal(signal.SIGCONT)

    def _isolate(self, fault: Fault) -> None:
        victim = self.machines.machines[fault.victim]
        pairs = [
            pair
            for each in self.machines.machines.values()
            if each is not victim
            for pair in ((victim, each), (each, victim))
        ]
        self._partition(pairs, fault.hold_s)

    def _one_way(self, fault: Fault) -> None:
        machines = self.machines.machines
        self._partition([(machines[fault.victim], machines[fault.other])], fault.hold_s)

    def _partition(self, pairs: list[tuple[Machine, Machine]], hold_s: float) -> None:
        for source, target in pairs:
            drop(source, target)
        time.sleep(hold_s)
        for source, target in pairs:
            heal(source, target)

    def _reboot(self, fault: Fault) -> None:
        machine = self.machines.machines[fault.victim]
        for service in reversed(self.machines.on(machine)):
            service.kill(signal.SIGKILL if service.is_program else signal.SIGTERM)
        machine.boot()
        time.sleep(fault.hold_s)
        self._start_all(machine)

    def _power(self, fault: Fault) -> None:
        began_ns = time.monotonic_ns()
        machine = self.machines.machines[fault.victim]
        self._cut_power(machine)
        if fault.victim == "meta":  # one that is replicated has synced its names in the log
            self.losses.append(PowerLoss("names", began_ns, time.monotonic_ns()))
        time.sleep(fault.hold_s)
        self._start_all(machine)

    def _blackout(self, fault: Fault) -> None:
        machines = [each for name, each in self.machines.machines.items() if name != "client"]
        for service in self.machines.services.values():
            if service.node and service.name.startswith(STORAGE):
                service.signal(signal.SIGSTOP)
        time.sleep(STALL_S)
        began_ns = time.monotonic_ns()
        self._unsettled.append(began_ns)
        for machine in machines:  # all at once: none may finish what it does with another
            for service in self.machines.on(machine):
                service.kill_soon()
        for machine in machines:
            self._cut_power(machine)
        if not self.machines.is_replicated:
            self.losses.append(PowerLoss("names", began_ns, time.monotonic_ns()))
        time.sleep(fault.hold_s)
        for machine in machines:
            self._start_all(machine)

    def _cut_power(self, machine: Machine) -> None:
        for service in self.machines.on(machine):
            service.kill()
        machine.lose_power_of_disk()
        machine.boot()
        machine.mount_disk()

    def _start_all(self, machine: Machine) -> None:
        for service in self.machines.on(machine):
            service.start()

    def _hang(self, fault: Fault) -> None:
        service = self.machines.services[fault.victim]
        service.machine.freeze_disk()
        try:
            time.sleep(fault.hold_s)
        finally:
            service.machine.thaw_disk()
        if service.node and fault.victim.startswith(STORAGE):
            service.kill()
            service.start()

    def _full(self, fault: Fault) -> None:
        filler = self.machines.machines[fault.victim].fill_disk()
        time.sleep(fault.hold_s)
        filler.unlink()
        service = self.machines.services[fault.victim]
        if service.node and fault.victim.startswith(STORAGE):
            self._restart_if_given_up(service)

    def _restart_if_given_up(self, service: Service) -> None:
        """A node whose index could not be written serves nothing until it is started again, as it says."""
        deadline_s = time.monotonic() + RECOVERY_S
        while (service.node, mgmtd_pb2.OFFLINE) in self.machines.states():
            if time.monotonic() > deadline_s:
                self.say(f"{service.name} is started again after its disk was full")
                service.kill()
                service.start()
                return
            time.sleep(0.5)


__all__ = ["Fault", "Injector", "Plan", "PowerLoss", "Round"]
