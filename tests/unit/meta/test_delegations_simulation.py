"""Random clusters in virtual time: the real table of delegations, clients that obey, and trouble.

Clients' clocks run at other speeds; polls, opens and their replies are delayed, duplicated and lost; clients are
killed, fall silent and come back; the service is killed and starts again with what it had recorded. Checked always:

    S1  an open that a client answers by itself shows the last change of the file (close-to-open is exact)
    S2  a change waits no longer than a lease, however silent its clients are
    S3  at the end, with all healthy, changes are quick again, and each client answers opens of each file again
"""

import contextlib
import heapq
import random
from dataclasses import dataclass, field

import pytest

from luciola.meta.delegations import DRIFT, Delegations

LEASE_S = 5.0
POLL_S = LEASE_S / 3
TICK_S = 0.05
POLL_TIMEOUT_S = OPEN_TIMEOUT_S = 3.0  # then it is sent again
FILES = (20, 21, 22)
FIRST_NEW_FILE = 30  # one more is made after each start of the service
LONGEST_S = LEASE_S / (1 - DRIFT) + 0.1
SEEDS = 40
SEEDS_OF_A_MISTAKE = 400


@dataclass
class Client:
    """The model of `core/src/client/delegations`; `lease_until` is on its own clock."""

    id: int
    speed: float
    lease_until: float = float("-inf")
    incarnation: int = 0
    epoch: int = 0
    entries: dict[int, tuple[int, int]] = field(default_factory=dict)  # file → (grant, version)
    returned: list[tuple[int, int]] = field(default_factory=list)
    asking: dict[int, tuple[float, tuple]] = field(default_factory=dict)  # grant → when and what was asked
    sent: list[tuple[int, int]] = field(default_factory=list)  # what the last poll has returned
    poll: int = 0  # the number of the one in progress
    polled_at: float = float("-inf")
    silent_until: float = 0.0
    is_dead: bool = False

    def clock(self, now: float) -> float:
        return now * self.speed

    def is_leased(self, now: float) -> bool:
        return self.clock(now) < self.lease_until

    def clear(self) -> None:
        self.entries.clear()
        self.epoch += 1


@dataclass
class Change:
    """A client opens a file for writing, writes for a while, and closes it."""

    file: int
    since: float
    client: int
    writes_s: float


class World:
    """Everything, driven by one seed. `mistake` names one that is made on purpose."""

    def __init__(self, seed: int, mistake: str = "") -> None:
        self.dice = random.Random(seed)
        self.mistake = mistake
        self.now = 1000.0
        self.count = 0
        self.messages: list[tuple[float, int, object, tuple]] = []
        self.versions = dict.fromkeys(FILES, 1)
        self.recorded: set[int] = set()
        self.incarnation = 0
        self.is_calm = False
        self.locals: set[tuple[int, int]] = set()  # (client, file) that were opened without the service
        self.clients: list[Client] = []
        self.last_client = 0
        self.start()
        for _ in range(self.dice.randint(1, 3)):
            self.join()

    # The service.

    def start(self) -> None:
        self.incarnation += 1
        new_file = FIRST_NEW_FILE + self.incarnation
        self.files = self.changing = (*FILES, new_file)
        self.versions[new_file] = 1
        self.table = Delegations(lease_s=LEASE_S)
        self.writers: set[int] = set()
        self.changes: list[Change] = []
        self.polls: dict[int, tuple[int, float]] = {}  # client → (number of its poll, until when it waits)
        self.expired_at = self.now
        if self.mistake != "restart forgets":
            leases = [(client, LEASE_S) for client in sorted(self.recorded)]
            self.table.inherit(leases, below=new_file, now_s=self.now)

    def on_poll(self, incarnation: int, client: int, number: int, known: int, returned: list) -> None:
        if incarnation != self.incarnation:  # its connection has ended with the process
            return
        if known != self.incarnation and self.mistake != "any poll counts":
            self.answer(client, number)
            return
        if self.mistake != "lease not recorded":
            self.recorded.add(client)
        is_new = not self.table.has_lease(client, self.now)
        if self.mistake == "returns without numbers":
            grants = self.table._of_clients.get(client, {})
            returned = [(file, grants.get(file, 0)) for file, _ in returned]
        self.table.extend(client, returned, now_s=self.now)
        if self.mistake == "drift is ignored":
            self.table._leases[client] = self.now + LEASE_S
        if known != self.incarnation:
            is_new = True
        is_returning = bool(returned) and self.mistake != "recalls let leases end"
        if is_new or is_returning or (self.table.to_return(client) and self.mistake != "recall sent once"):
            self.answer(client, number)
        else:
            self.polls[client] = (number, self.now + POLL_S)

    def answer(self, client: int, number: int) -> None:
        self.polls.pop(client, None)
        reply = (self.incarnation, self.table.to_return(client))
        self.send(self.on_polled, client, number, reply)

    def on_open(
        self, incarnation: int, client: int, file: int, asked: tuple[int, int], delegate: bool
    ) -> None:
        if incarnation != self.incarnation:
            return
        granted, (_, number) = False, asked
        if delegate and (file not in self.writers or self.mistake == "grants while others write"):
            if self.mistake == "grants during changes":
                self.table._closed.clear()
                self.table._recalled.clear()
            granted = self.table.grant(client, file, number, now_s=self.now)
        self.send(self.on_opened, client, file, asked, granted, self.versions[file])

    def begin_change(self, file: int) -> None:
        client = self.dice.choice(self.clients).id if self.clients else 0
        writes_s = self.dice.choice((0.0, 0.0, 0.3))
        self.table.close(file)
        self.changes.append(Change(file, self.now, client, writes_s))

    def may_change(self, change: Change) -> bool:
        if self.mistake == "recall does not wait":
            self.table.recall(change.file)
            return True
        holders = self.table._grants.get(change.file, {})
        if self.mistake == "own delegation stays" and set(holders) <= {change.client}:
            return True
        return not self.table.blocks(change.file, self.now)

    def tick_service(self) -> None:
        for change in list(self.changes):
            if self.may_change(change):
                self.carry_out(change)
                continue
            for client in self.table.recall(change.file):
                if client in self.polls:
                    self.answer(client, self.polls[client][0])
            assert self.now - change.since <= LONGEST_S, "S2"
        self.tick_leases()

    def carry_out(self, change: Change) -> None:
        self.changes.remove(change)
        self.versions[change.file] += 1
        if change.writes_s:
            self.writers.add(change.file)
            self.post(change.writes_s, self.end_writing, self.incarnation, change.file)
        if change.file in self.table._closed:
            self.table.reopen(change.file)

    def tick_leases(self) -> None:
        for client, (number, until) in list(self.polls.items()):
            if self.now >= until:
                self.answer(client, number)
        if self.now - self.expired_at >= LEASE_S:
            self.expired_at = self.now
            for client in self.table.expire(self.now):
                if not self.table.has_lease(client, self.now):
                    self.recorded.discard(client)
        if self.mistake == "silent clients are ended early":
            for client, until in list(self.table._leases.items()):
                if until - self.now < LEASE_S / 2:
                    self.table.end(client)

    def end_writing(self, incarnation: int, file: int) -> None:
        if incarnation == self.incarnation and file in self.writers:
            self.versions[file] += 1
            self.writers.discard(file)

    # Clients.

    def join(self) -> None:
        self.last_client += 1
        self.clients.append(Client(self.last_client, 1 + self.dice.uniform(-DRIFT, DRIFT) * 0.999))

    def of(self, number: int) -> Client | None:
        return next((client for client in self.clients if client.id == number), None)

    def tick_client(self, client: Client) -> None:
        if self.now < client.silent_until:
            return
        if not client.poll or self.now - client.polled_at > POLL_TIMEOUT_S:
            self.count += 1
            client.poll, client.polled_at = self.count, self.now
            client.sent = list(client.returned)
            request = (client.id, client.poll, client.incarnation, client.sent)
            for _ in range(self.copies()):
                self.post(self.delay(), self.on_poll, self.incarnation, *request)
        for grant, (asked_at, request) in list(client.asking.items()):
            if self.now - asked_at > OPEN_TIMEOUT_S:
                self.ask(client, grant, request)
        if self.dice.random() < 0.5:
            self.open(client, self.dice.choice(self.files))

    def open(self, client: Client, file: int) -> None:
        known = client.entries.get(file)
        if known is not None and client.is_leased(self.now):
            self.locals.add((client.id, file))
            assert known[1] == self.versions[file], "S1"
            return
        self.count += 1
        asked = (client.epoch, self.count)
        self.ask(client, self.count, (client.id, file, asked, client.is_leased(self.now)))

    def ask(self, client: Client, grant: int, request: tuple) -> None:
        client.asking[grant] = (self.now, request)
        for _ in range(self.copies()):
            self.post(self.delay(), self.on_open, self.incarnation, *request)

    def on_opened(self, number: int, file: int, asked: tuple, granted: bool, version: int) -> None:
        client = self.of(number)
        epoch, grant = asked
        if client is None or grant not in client.asking:  # it has got another reply
            return
        del client.asking[grant]
        if not granted:
            return
        if epoch != client.epoch and self.mistake != "late grants count":
            client.returned.append((file, grant))
        else:
            client.entries[file] = (grant, version)

    def on_polled(self, number: int, poll: int, reply: tuple) -> None:
        client = self.of(number)
        if client is None or client.poll != poll:
            return
        sent, client.poll = client.polled_at, 0
        incarnation, recalled = reply
        if incarnation != client.incarnation:
            client.incarnation = incarnation
            if self.mistake != "another service, same delegations":
                client.clear()
                client.lease_until = float("-inf")
            client.returned.clear()
            return
        client.returned = [one for one in client.returned if one not in client.sent]
        if not client.is_leased(self.now) and self.mistake != "an ended lease continues":
            if self.mistake != "what ended is not returned":
                client.returned += [(file, grant) for file, (grant, _) in client.entries.items()]
            client.clear()
        share = 1.0 if self.mistake == "drift is ignored" else 1 - DRIFT
        since = self.now if self.mistake == "leases begin with the reply" else sent
        if not recalled or self.mistake == "recalls extend the lease":
            client.lease_until = max(client.lease_until, client.clock(since) + LEASE_S * share)
        if recalled:
            client.epoch += self.mistake != "recall spares opens in progress"
        for file, grant in recalled:
            if self.mistake != "recalled is kept":
                client.entries.pop(file, None)
            client.returned.append((file, grant))

    # The network, and trouble.

    def delay(self) -> float:
        if self.is_calm:
            return 0.01
        return self.dice.choice((0.001, 0.01, 0.05, self.dice.expovariate(1 / 0.5), self.dice.uniform(0, 8)))

    def copies(self) -> int:
        return 1 if self.is_calm else self.dice.choice((1, 1, 1, 1, 0, 2))

    def send(self, action: object, *arguments: object) -> None:
        """A reply: it may be lost."""
        if self.is_calm or self.dice.random() > 0.1:
            self.post(self.delay(), action, *arguments)

    def post(self, delay: float, action: object, *arguments: object) -> None:
        self.count += 1
        heapq.heappush(self.messages, (self.now + delay, self.count, action, arguments))

    def trouble(self) -> None:
        chance = self.dice.random()
        if chance < 0.004:
            self.start()
        elif chance < 0.02 and self.clients:
            client = self.dice.choice(self.clients)
            client.silent_until = self.now + self.dice.uniform(0, 2 * LEASE_S)
        elif chance < 0.024 and self.clients:
            self.clients.remove(self.dice.choice(self.clients))
        elif chance < 0.04 and len(self.clients) < 3:
            self.join()

    def run(self, duration: float) -> None:
        end = self.now + duration
        while self.now < end:
            self.now += TICK_S
            while self.messages and self.messages[0][0] <= self.now:
                _, _, action, arguments = heapq.heappop(self.messages)
                action(*arguments)
            self.tick_service()
            if not self.is_calm:
                self.trouble()
            for client in list(self.clients):
                self.tick_client(client)
            if self.dice.random() < 0.06:
                self.begin_change(self.dice.choice(self.changing))

    def live(self) -> None:
        self.run(40)
        if not self.clients:
            self.join()
        self.is_calm = True
        for client in self.clients:
            client.silent_until = 0.0
        self.run(2 * LEASE_S)  # what was under way has arrived
        for file in self.files:
            self.begin_change(file)
        self.changing = self.files[1:]
        self.run(LEASE_S)
        for client in self.clients:  # as if replies to polls had been late
            client.lease_until = float("-inf")
        self.run(LEASE_S)
        self.locals.clear()
        self.run(2 * LEASE_S)
        assert len(self.locals) == len(self.clients) * len(self.files), "S3"
        assert all(self.now - change.since < 0.5 for change in self.changes), "S3"


@pytest.mark.parametrize("seed", range(SEEDS))
def test_opens_that_clients_answer_show_the_last_change(seed):
    world = World(seed)
    world.live()


MISTAKES = (
    "restart forgets",
    "any poll counts",
    "lease not recorded",
    "returns without numbers",
    "recall sent once",
    "grants while others write",
    "grants during changes",
    "recall does not wait",
    "own delegation stays",
    "silent clients are ended early",
    "late grants count",
    "another service, same delegations",
    "an ended lease continues",
    "what ended is not returned",
    "recalls let leases end",
    "drift is ignored",
    "leases begin with the reply",
    "recall spares opens in progress",
    "recalled is kept",
    "recalls extend the lease",
)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_planted_mistake_is_found(mistake):
    for seed in range(SEEDS_OF_A_MISTAKE):
        with contextlib.suppress(AssertionError):
            World(seed, mistake).live()
            continue
        return
    pytest.fail(f"{mistake}: not found in {SEEDS_OF_A_MISTAKE} worlds")
