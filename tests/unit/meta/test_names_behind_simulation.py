"""Random clusters in virtual time that make names behind the answer, as decision 0046 describes: a model without I/O.

A mount with the grant of a directory answers creates, removals and renames in it from its own listing, queues them, and
sends them in batches of one transaction. Clocks run at other speeds; messages are delayed, duplicated and lost; mounts
are killed and fall silent; the service is killed and starts again with what it has stored, and refuses some creates (no
space). Checked always:

    B1  while a mount answers by itself, nothing but its own batches changes the directory, and no other client looks
    B2  a look at the service shows everything that was answered before it began, unless its mount was killed, or was
        out of reach for a lease
    B3  what is stored of a mount's answers has no gap: after a kill, a first part of them; and nothing twice
    B4  what a kill can lose was answered within `BEHIND_S`
    B5  an fsync returns when what was answered before is stored, or reports an error; nothing is lost silently
    B6  what was answered is carried out as answered, unless something before it in that directory was refused
    B7  a look waits no longer than a lease, however silent the mount is; with all healthy it waits for a flush
"""

import contextlib
import heapq
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pytest

LEASE_S = 2.0
DRIFT = 0.05
POLL_S = LEASE_S / 3
TICK_S = 0.01
BEHIND_S = 0.05  # between the oldest answer that is not stored and the newest
FLUSH_S = 0.02  # the oldest answer waits so long for others
BATCH_MAX = 8
RESEND_S = 0.3
LONGEST_S = LEASE_S / (1 - DRIFT) + 4 * TICK_S
QUICK_S = 0.5
DIRECTORIES = (1, 2)
NAMES = 5
IDS = 16  # reserved at one time
SEEDS = 40
SEEDS_OF_A_MISTAKE = 300
NO_SPACE = "no space"
STALE = "stale"


@dataclass
class Change:
    """One change of a name. Those with an `index` were answered by the mount, in that order."""

    directory: int
    kind: str  # create, unlink, rename
    name: int
    to: int = 0
    inode: int = 0  # the one that is made, or that the mount has found under the name
    index: int = 0
    at: float = 0.0
    count: int = 0  # how often it was carried out
    refused: str = ""
    lapsed: bool = False  # the lease had ended before it arrived
    reported: bool = False


@dataclass
class Waiting:
    """A request that waits for the return of a grant: a look, or a change that is not answered behind."""

    client: int
    number: int
    directory: int
    change: Change | None
    asks: bool
    since: float  # when the program called
    arrived: float = 0.0


@dataclass
class Store:
    """What survives the service."""

    names: dict[int, dict[int, int]] = field(default_factory=lambda: {one: {} for one in DIRECTORIES})
    grants: dict[int, tuple[int, int]] = field(default_factory=dict)  # directory → (client, grant)
    replies: dict[int, tuple[int, object]] = field(
        default_factory=dict
    )  # client → its last number, the reply
    ranges: dict[int, tuple[int, int]] = field(
        default_factory=dict
    )  # client → next and end of its reserved ids
    next_inode: int = 100
    inodes: set[int] = field(default_factory=set)


@dataclass
class Mount:
    """`lease_until` is on its own clock. One program calls it, one call at a time."""

    id: int
    speed: float
    lease_until: float = float("-inf")
    views: dict[int, dict[int, int]] = field(default_factory=dict)
    grants: dict[int, int] = field(default_factory=dict)
    returning: dict[int, int] = field(default_factory=dict)  # when their queue is empty
    epoch: int = 0
    answers: list[Change] = field(default_factory=list)
    queue: list[Change] = field(default_factory=list)  # those in flight first
    sent: list[tuple[int, list[Change], dict[int, int], float]] = field(default_factory=list)
    number: int = 0
    ids: list[int] = field(default_factory=list)
    poll: int = 0
    polled_at: float = float("-inf")
    poll_returns: list[tuple[int, int]] = field(default_factory=list)
    call: tuple[Waiting, float, int] | None = None  # a request on its way, when it was sent, the epoch
    syncing: tuple[int, int] | None = None  # an fsync: its directory, and how many answers it covers
    failed: list[Change] = field(default_factory=list)  # to be reported
    silent_until: float = 0.0

    def clock(self, now: float) -> float:
        return now * self.speed

    def is_leased(self, now: float) -> bool:
        return self.clock(now) < self.lease_until

    def has_queued(self, directory: int) -> bool:
        return any(each.directory == directory for each in self.queue)


class World:
    """Everything, driven by one seed. `mistake` names one that is made on purpose."""

    def __init__(self, seed: int, mistake: str = "") -> None:
        self.dice = random.Random(seed)
        self.mistake = mistake
        self.now = 1000.0
        self.count = 0
        self.messages: list[tuple[float, int, Callable, tuple]] = []
        self.store = Store()
        self.incarnation = 0
        self.is_calm = False  # nothing fails any more
        self.is_settled = False  # nor has anything failed lately
        self.behind = 0
        self.mounts: list[Mount] = []
        self.dead: list[Mount] = []
        self.refusing: set[int] = set()  # directories in which something was refused: B6 says nothing of them
        self.last_client = 0
        self.start()
        for _ in range(self.dice.randint(2, 3)):
            self.join()

    # The service.

    def start(self) -> None:
        """A process, with what an earlier one has stored."""
        self.incarnation += 1
        self.leases: dict[int, float] = {}
        self.recalled: set[int] = set()
        self.polls: dict[int, tuple[int, float]] = {}
        self.waiting: list[Waiting] = []
        if self.mistake != "restart waits for no lease":
            for client, _ in self.store.grants.values():
                self.leases[client] = self.now + LEASE_S / (1 - DRIFT)

    def is_late(self, client: int, number: int) -> bool:
        return number < self.store.replies.get(client, (0, None))[0]

    def recorded(self, client: int, number: int) -> object:
        last, reply = self.store.replies.get(client, (0, None))
        return reply if last == number else None

    def on_batch(self, incarnation: int, client: int, number: int, batch: list[Change], grants: dict) -> None:
        if incarnation != self.incarnation:  # its connection has ended with the process
            return
        if self.is_late(client, number) and self.mistake not in (
            "two batches in flight",
            "late batch counts",
        ):
            return
        reply = self.recorded(client, number)
        if reply is None:
            lost = {one for one, grant in grants.items() if self.store.grants.get(one) != (client, grant)}
            if lost and self.mistake not in ("late batch counts", "batches are not fenced"):
                reply = (STALE, lost)
            else:
                reply = ("done", [self.carry_out(client, each) for each in batch])
            self.store.replies[client] = (number, reply)
        self.send(self.on_applied, client, number, reply)

    def carry_out(self, client: int, change: Change) -> str:
        names = self.store.names[change.directory]
        found = names.get(change.name)
        outcome = ""
        if change.kind == "create":
            outcome = self.make(client, change, found)
        elif found is None or (change.index and found != change.inode):
            outcome = "not found"
        else:
            del names[change.name]
            if change.kind == "rename":
                names[change.to] = found
        if outcome:
            assert change.directory in self.refusing or not change.index or outcome == NO_SPACE, "B6"
            self.refusing.add(change.directory)
        else:
            change.count += 1
            assert change.count == 1, "B3: carried out once"
        return outcome

    def make(self, client: int, change: Change, found: int | None) -> str:
        if found is not None:
            return "exists"
        if change.index and not self.is_settled and self.dice.random() < 0.01:
            return NO_SPACE
        if change.index:
            first, end = self.store.ranges.get(client, (0, 0))
            assert first <= change.inode < end, "B6: reserved, and not used before"
            self.store.ranges[client] = (change.inode + 1, end)
        else:
            change.inode = self.take(1)
        assert change.inode not in self.store.inodes, "ids are used once"
        self.store.inodes.add(change.inode)
        self.store.names[change.directory][change.name] = change.inode
        return ""

    def take(self, count: int) -> int:
        first = self.store.next_inode
        self.store.next_inode += count
        return first

    def on_request(self, incarnation: int, request: Waiting) -> None:
        if incarnation != self.incarnation or self.is_late(request.client, request.number):
            return
        reply = self.recorded(request.client, request.number)
        if reply is not None:
            self.send(self.on_replied, request.client, request.number, reply)
        elif all((each.client, each.number) != (request.client, request.number) for each in self.waiting):
            request.arrived = self.now
            self.waiting.append(request)

    def tick_service(self) -> None:
        for request in list(self.waiting):
            if self.may_look(request):
                self.waiting.remove(request)
                self.serve(request)
            else:
                assert self.now - request.arrived <= LONGEST_S, "B7"
                assert not self.is_settled or self.now - request.arrived <= QUICK_S, "B7: all are healthy"
        for client, (number, until) in list(self.polls.items()):
            if self.now >= until:
                self.answer_poll(client, number)

    def may_look(self, request: Waiting) -> bool:
        """Recall the grant of another client, and end it with its lease."""
        holder, _ = self.store.grants.get(request.directory, (request.client, 0))
        if holder == request.client or self.mistake == "looks do not wait":
            return True
        if self.leases.get(holder, 0.0) <= self.now:
            self.end_grant(request.directory)
            return True
        if request.directory not in self.recalled:
            self.recalled.add(request.directory)
            if holder in self.polls:
                self.answer_poll(holder, self.polls[holder][0])
        return False

    def end_grant(self, directory: int) -> None:
        """The lease has ended here: what its holder has not sent is void (STALE)."""
        client, _ = self.store.grants.pop(directory)
        self.recalled.discard(directory)
        for mount in self.mounts:
            if mount.id == client:
                for each in mount.queue:
                    each.lapsed |= each.directory == directory and not each.count

    def serve(self, request: Waiting) -> None:
        self.check_look(request)
        outcome = ""
        if request.change is not None:
            outcome = self.carry_out(request.client, request.change)
        grant = 0
        others = any(each.directory == request.directory for each in self.waiting)
        is_held = request.directory in self.store.grants
        if request.asks and not others and not is_held and self.leases.get(request.client, 0.0) > self.now:
            grant = request.number
            self.store.grants[request.directory] = (request.client, grant)
        ids: tuple[int, int] | None = None
        if grant:
            first, end = self.store.ranges.get(request.client, (0, 0))
            if end - first < IDS // 2:
                first = self.take(IDS)
                ids = self.store.ranges[request.client] = (first, first + IDS)
        view = dict(self.store.names[request.directory])
        reply = (outcome, grant, view, ids)
        self.store.replies[request.client] = (request.number, reply)
        self.send(self.on_replied, request.client, request.number, reply)

    def check_look(self, request: Waiting) -> None:
        for mount in self.mounts:
            for each in mount.answers:
                if each.directory == request.directory and each.at < request.since:
                    assert each.count or each.refused or each.lapsed or self.is_refused(each), "B2"

    def is_refused(self, change: Change) -> bool:
        """Whether the service has refused it, and its mount does not know yet."""
        for mount in self.mounts:
            last, _ = self.store.replies.get(mount.id, (0, None))
            for number, batch, _, _ in mount.sent:
                if number == last and change in batch:
                    return True
        return False

    def on_poll(self, incarnation: int, client: int, number: int, returned: list) -> None:
        if incarnation != self.incarnation:
            return
        for directory, grant in returned:
            if self.store.grants.get(directory) == (client, grant):
                del self.store.grants[directory]
                self.recalled.discard(directory)
        recalled = self.recalled_of(client)
        if not recalled or self.mistake == "recalls extend the lease":
            drift = 0.0 if self.mistake == "drift is ignored" else DRIFT
            self.leases[client] = self.now + LEASE_S / (1 - drift)
        if recalled or returned:
            self.answer_poll(client, number)
        else:
            self.polls[client] = (number, self.now + POLL_S)

    def recalled_of(self, client: int) -> list[tuple[int, int]]:
        held = [(one, self.store.grants[one]) for one in self.recalled if one in self.store.grants]
        return [(one, grant) for one, (holder, grant) in held if holder == client]

    def answer_poll(self, client: int, number: int) -> None:
        self.polls.pop(client, None)
        self.send(self.on_polled, client, number, self.recalled_of(client))

    # A mount.

    def tick_mount(self, mount: Mount) -> None:
        if self.now < mount.silent_until:
            return
        if not mount.is_leased(self.now) and self.mistake != "an ended lease continues":
            self.give_up(mount, mount.grants)
        self.keep_poll(mount)
        self.flush(mount)
        if mount.call is not None:
            request, sent_at, epoch = mount.call
            if self.now - sent_at > RESEND_S:
                mount.call = (request, self.now, epoch)
                self.post_copies(self.on_request, request)
        elif mount.syncing is not None:
            self.end_fsync(mount)
        elif self.dice.random() < 0.4:
            self.program(mount)

    def give_up(self, mount: Mount, directories: Iterable[int]) -> None:
        """Answer nothing more in these directories, and return their grants when what was answered is stored."""
        for directory in list(directories):
            grant = mount.grants.pop(directory, None)
            if self.mistake != "listing is kept":
                mount.views.pop(directory, None)
            if grant is not None:
                mount.returning[directory] = grant

    def to_return(self, mount: Mount) -> list[tuple[int, int]]:
        is_early = self.mistake == "grant is returned before the flush"
        return [
            (one, grant) for one, grant in mount.returning.items() if is_early or not mount.has_queued(one)
        ]

    def keep_poll(self, mount: Mount) -> None:
        returned = self.to_return(mount)
        is_overdue = self.now - mount.polled_at > POLL_S + RESEND_S
        if mount.poll and not is_overdue and not [one for one in returned if one not in mount.poll_returns]:
            return
        self.count += 1
        mount.poll, mount.polled_at, mount.poll_returns = self.count, self.now, returned
        self.post_copies(self.on_poll, mount.id, mount.poll, returned)

    def on_polled(self, client: int, poll: int, recalled: list[tuple[int, int]]) -> None:
        mount = self.of(client)
        if mount is None or mount.poll != poll:
            return
        mount.poll = 0
        for directory, grant in mount.poll_returns:
            if mount.returning.get(directory) == grant:
                del mount.returning[directory]
        if not mount.is_leased(
            self.now
        ):  # the grants that were asked for under the last one may be another's by now
            mount.epoch += self.mistake != "grants outlive their lease"
        since = self.now if self.mistake == "leases begin with the reply" else mount.polled_at
        share = 1.0 if self.mistake == "drift is ignored" else 1 - DRIFT
        if not recalled or self.mistake == "recalls extend the lease":
            mount.lease_until = max(mount.lease_until, mount.clock(since) + LEASE_S * share)
            return
        mount.epoch += self.mistake != "late grants count"
        for directory, grant in recalled:
            if self.mistake == "answers continue during a recall" and mount.grants.get(directory) == grant:
                if not mount.has_queued(directory):
                    mount.returning[directory] = grant
                continue
            if mount.grants.get(directory) == grant:
                self.give_up(mount, [directory])
            else:
                mount.returning[directory] = grant

    def flush(self, mount: Mount) -> None:
        """Send a batch, or the one in flight again."""
        for place, (sent, batch, grants, sent_at) in enumerate(mount.sent):
            if self.now - sent_at > RESEND_S:
                mount.number += self.mistake == "sent again with a new number"
                number = mount.number if self.mistake == "sent again with a new number" else sent
                mount.sent[place] = (number, batch, grants, self.now)
                self.post_copies(self.on_batch, mount.id, number, batch, grants)
        in_flight = sum(len(batch) for _, batch, _, _ in mount.sent)
        rest = mount.queue[in_flight:]
        if not rest or (mount.sent and self.mistake != "two batches in flight"):
            return
        is_wanted = mount.syncing is not None or mount.call is not None or mount.returning
        if not is_wanted and len(rest) < BATCH_MAX and self.now - rest[0].at < FLUSH_S:
            return
        mount.number += 1
        batch = rest[:BATCH_MAX]
        known = {**mount.returning, **mount.grants}
        grants = {each.directory: known.get(each.directory, 0) for each in batch}
        mount.sent.append((mount.number, batch, grants, self.now))
        self.post_copies(self.on_batch, mount.id, mount.number, batch, grants)

    def on_applied(self, client: int, number: int, reply: tuple) -> None:
        mount = self.of(client)
        found = mount and next((one for one in mount.sent if one[0] == number), None)
        if mount is None or found is None:
            return
        mount.sent.remove(found)
        kind, outcomes = reply
        if kind == STALE:  # nothing was done: the rest is sent again
            gone = [each for each in mount.queue if each.directory in outcomes]
            for each in gone:
                self.fail(mount, each, STALE)
            mount.queue = [each for each in mount.queue if each.directory not in outcomes]
            self.forget(mount, outcomes)
            return
        for each, outcome in zip(found[1], outcomes, strict=True):
            mount.queue.remove(each)
            if outcome:
                self.fail(mount, each, outcome)
                self.give_up(mount, [each.directory])

    def fail(self, mount: Mount, change: Change, reason: str) -> None:
        change.refused = reason
        if self.mistake != "errors are dropped":
            mount.failed.append(change)

    def forget(self, mount: Mount, directories: Iterable[int]) -> None:
        for directory in directories:
            mount.grants.pop(directory, None)
            mount.returning.pop(directory, None)
            mount.views.pop(directory, None)

    # Its program.

    def program(self, mount: Mount) -> None:
        directory = self.dice.choice(DIRECTORIES)
        chance = self.dice.random()
        if chance < 0.05:
            mount.syncing = (directory, len(mount.answers))
            if self.mistake == "fsync does not wait":
                self.check_fsync(mount)
        elif chance < 0.15:
            self.ask(mount, Waiting(mount.id, 0, directory, None, False, self.now))
        else:
            self.change(mount, directory)

    def change(self, mount: Mount, directory: int) -> None:
        view = mount.views.get(directory)
        is_held = directory in mount.grants
        is_leased = mount.is_leased(self.now) or self.mistake == "an ended lease continues"
        if view is None or not is_held or not is_leased or self.dice.random() < 0.03:
            # Not answered behind: by a kind of call that never is, or for want of a grant.
            change = Change(directory, self.dice.choice(("create", "unlink")), self.dice.randrange(NAMES))
            asks = not is_held and directory not in mount.returning
            self.ask(mount, Waiting(mount.id, 0, directory, change, asks, self.now))
            return
        oldest = mount.queue[0].at if mount.queue else self.now
        if self.now - oldest > BEHIND_S - TICK_S and self.mistake != "the queue has no limit":
            return  # waits, and calls again
        self.answer(mount, directory, view)

    def answer(self, mount: Mount, directory: int, view: dict[int, int]) -> None:
        kind = self.dice.choice(("create", "create", "unlink", "rename"))
        name, to = self.dice.randrange(NAMES), self.dice.randrange(NAMES)
        found = view.get(name)
        if (found is None) != (kind == "create") or (kind == "create" and not mount.ids) or name == to:
            return  # refused by rule, at once; without ids it is not answered behind
        inode = mount.ids.pop(0) if kind == "create" else found or 0
        if kind == "create":
            view[name] = inode
        else:
            del view[name]
            if kind == "rename":
                view[to] = inode
        change = Change(directory, kind, name, to, inode, len(mount.answers) + 1, self.now)
        held = self.store.grants.get(directory)
        assert held == (mount.id, mount.grants[directory]), "B1"
        mount.answers.append(change)
        mount.queue.append(change)
        self.behind += 1
        lost = [each.at for each in mount.queue if not each.count and not each.lapsed]
        assert lost[-1] - lost[0] <= BEHIND_S, "B4: were it killed now"

    def ask(self, mount: Mount, request: Waiting) -> None:
        """Send what is not answered behind, after the queue."""
        if mount.queue and self.mistake != "calls overtake the queue":
            mount.call = (request, float("inf"), mount.epoch)
            return
        self.begin(mount, request)

    def begin(self, mount: Mount, request: Waiting) -> None:
        mount.number += 1
        request.number = mount.number
        mount.call = (request, self.now, mount.epoch)
        self.check_order(mount)
        self.post_copies(self.on_request, request)

    def check_order(self, mount: Mount) -> None:
        assert all(each.count or each.refused for each in mount.answers), "B3: a call comes after the queue"

    def on_replied(self, client: int, number: int, reply: tuple) -> None:
        mount = self.of(client)
        if mount is None or mount.call is None or mount.call[0].number != number:
            return
        request, _, epoch = mount.call
        mount.call = None
        _, grant, view, ids = reply
        if request.directory in mount.grants:  # its own change
            mount.views[request.directory] = view
        if ids is not None:
            mount.ids = list(range(*ids))
        if not grant:
            return
        if epoch == mount.epoch and mount.is_leased(self.now):
            mount.grants[request.directory] = grant
            if self.mistake != "listing is kept" or request.directory not in mount.views:
                mount.views[request.directory] = view
            self.refusing.discard(request.directory)
        else:
            mount.returning[request.directory] = grant

    def end_fsync(self, mount: Mount) -> None:
        assert mount.syncing is not None, "the caller has looked"
        directory, covered = mount.syncing
        if any(each.index <= covered and each.directory == directory for each in mount.queue):
            return
        self.check_fsync(mount)

    def check_fsync(self, mount: Mount) -> None:
        assert mount.syncing is not None, "the caller has looked"
        directory, covered = mount.syncing
        mount.syncing = None
        for each in [one for one in mount.failed if one.directory == directory]:
            each.reported = True
            mount.failed.remove(each)
        for each in mount.answers[:covered]:
            assert each.directory != directory or each.count or each.reported, "B5"

    # The network, and trouble.

    def of(self, client: int) -> Mount | None:
        mount = next((one for one in self.mounts if one.id == client), None)
        return None if mount is None or self.now < mount.silent_until else mount

    def join(self) -> None:
        self.last_client += 1
        self.mounts.append(Mount(self.last_client, 1 + self.dice.uniform(-DRIFT, DRIFT) * 0.999))

    def kill(self, mount: Mount) -> None:
        self.mounts.remove(mount)
        self.dead.append(mount)

    def delay(self) -> float:
        if self.is_calm:
            return self.dice.choice((0.0, 0.01))
        return self.dice.choice((0.0, 0.01, 0.01, 0.02, self.dice.expovariate(10), self.dice.uniform(0, 4)))

    def post_copies(self, action: Callable, *arguments: object) -> None:
        """A request, over a connection to this process."""
        for _ in range(1 if self.is_calm else self.dice.choice((1, 1, 1, 1, 1, 0, 2))):
            self.post(self.delay(), action, self.incarnation, *arguments)

    def send(self, action: Callable, *arguments: object) -> None:
        """A reply."""
        if self.is_calm or self.dice.random() > 0.05:
            self.post(self.delay(), action, *arguments)

    def post(self, delay: float, action: Callable, *arguments: object) -> None:
        self.count += 1
        heapq.heappush(self.messages, (self.now + delay, self.count, action, arguments))

    def trouble(self) -> None:
        chance = self.dice.random()
        if chance < 0.001:
            self.start()
        elif chance < 0.003 and self.mounts:
            mount = self.dice.choice(self.mounts)
            mount.silent_until = self.now + self.dice.uniform(0, 2 * LEASE_S)
        elif chance < 0.004 and self.mounts:
            self.kill(self.dice.choice(self.mounts))
        elif chance < 0.007 and len(self.mounts) < 3:
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
            for mount in list(self.mounts):
                if mount.call is not None and mount.call[1] == float("inf") and not mount.queue:
                    self.begin(mount, mount.call[0])
                self.tick_mount(mount)

    def live(self) -> None:
        self.run(10)
        for mount in self.mounts:
            mount.silent_until = 0.0
        while len(self.mounts) < 2:
            self.join()
        self.is_calm = True
        self.messages = [(min(at, self.now + LEASE_S), *rest) for at, *rest in self.messages]
        heapq.heapify(self.messages)
        self.run(3 * LEASE_S)  # what was under way arrives, and leases of the dead end
        for directory, (holder, _) in list(self.store.grants.items()):
            if holder not in [mount.id for mount in self.mounts]:
                self.end_grant(directory)
        self.is_settled = True
        self.behind = 0
        self.run(2 * LEASE_S)
        assert self.behind, "with all healthy, names are made behind the answer again"
        for directory in DIRECTORIES:
            for mount in self.mounts:
                self.fsync_at_the_end(mount, directory)
        self.check_all()

    def fsync_at_the_end(self, mount: Mount, directory: int) -> None:
        for _ in range(500):
            if mount.syncing is None and mount.call is None:
                break
            self.run(TICK_S)
        mount.syncing = (directory, len(mount.answers))
        for _ in range(500):
            if mount.syncing is None:
                return
            self.run(TICK_S)
        raise AssertionError("B5: fsync returns")

    def check_all(self) -> None:
        for mount in self.mounts:
            queued = {id(each) for each in (*mount.queue, *mount.failed)}
            for each in mount.answers:
                assert each.count or each.reported or id(each) in queued, "B5: nothing is lost silently"
        for mount in self.dead:
            ended = False
            for each in mount.answers:
                if each.refused or each.lapsed or (not each.count and self.is_refused_late(mount, each)):
                    continue
                assert not (ended and each.count), "B3: a first part"
                ended |= not each.count

    def is_refused_late(self, mount: Mount, change: Change) -> bool:
        """Whether a batch of the dead mount has arrived, and the service has refused this change."""
        last, _ = self.store.replies.get(mount.id, (0, None))
        return any(
            number == last and any(each is change for each in batch) for number, batch, _, _ in mount.sent
        )


@pytest.mark.parametrize("seed", range(SEEDS))
def test_names_made_behind_the_answer_keep_their_promises(seed):
    World(seed).live()


MISTAKES = (
    "restart waits for no lease",
    "late batch counts",
    "batches are not fenced",
    "looks do not wait",
    "recalls extend the lease",
    "drift is ignored",
    "an ended lease continues",
    "listing is kept",
    "grant is returned before the flush",
    "leases begin with the reply",
    "late grants count",
    "grants outlive their lease",
    "answers continue during a recall",
    "sent again with a new number",
    "two batches in flight",
    "errors are dropped",
    "fsync does not wait",
    "the queue has no limit",
    "calls overtake the queue",
)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_planted_mistake_is_found(mistake):
    for seed in range(SEEDS_OF_A_MISTAKE):
        with contextlib.suppress(AssertionError):
            World(seed, mistake).live()
            continue
        return
    pytest.fail(f"{mistake}: not found in {SEEDS_OF_A_MISTAKE} worlds")
