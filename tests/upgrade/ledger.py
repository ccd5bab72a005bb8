"""The ledger: what was sent, which connections should have got it, and what became of that.

A *delivery* is one message to one connection of its receiver that was open when it was sent; a message to a user without a
connection has one delivery, to no connection. A delivery that did not come is lost, unless a connection explains it:

- *gap*: the receiver had no connection, or that connection ended within `EXCUSE` of the sending;
- *cut*: the sender's connection ended within `EXCUSE` of the sending, so the node may never have read the message.

What a user got on another connection instead counts as received: messages follow a user who reconnects.
"""

import statistics
import time
from collections import Counter, defaultdict

EXCUSE = 1.0  # seconds
LATE = 3.0  # seconds from sending to arrival; longer than a receiver keeps what comes too early

SAME_NODE, ONE_VERSION, BROADCAST, SERVICE = "same node", "nodes of one version", "broadcast", "service"
DIRECTIONS = ("old to new", "new to old")  # between versions
CLASSES = (SAME_NODE, ONE_VERSION, *DIRECTIONS, BROADCAST, *(f"broadcast, {way}" for way in DIRECTIONS), SERVICE)


class Phase:
    """A stretch of time with one state of the cluster. Messages belong to the phase in which they were sent."""

    def __init__(self, title, kind):
        # kind: "calm" (all nodes of one version), "mixed" (calm as well, of both versions), "roll", "kill", or "between" two
        # of these, when nothing happens either.
        self.title, self.kind = title, kind
        self.messages = []
        self.refused = 0  # answers with the code `overloaded`


class Message:
    __slots__ = ("number", "kind", "sender", "user", "sent_at", "deliveries", "arrivals")

    def __init__(self, number, kind, sender, user):
        # sender: a connection, or None for the service. user: the receiver, or None for a broadcast.
        self.number, self.kind, self.sender, self.user = number, kind, sender, user
        self.sent_at = time.monotonic()
        self.deliveries = []
        self.arrivals = {}  # connection -> time of the first arrival


class Delivery:
    __slots__ = ("message", "user", "connection", "kind", "doubled", "disordered")

    def __init__(self, message, user, connection, kind):
        self.message, self.user, self.connection, self.kind = message, user, connection, kind
        self.doubled = self.disordered = 0

    def arrived_at(self):
        """The time of arrival, or None."""
        arrivals = self.message.arrivals
        if self.connection in arrivals:
            return arrivals[self.connection]
        if self.connection is None or self._ended_early(self.connection):
            return min((at for other, at in arrivals.items() if other.user is self.user), default=None)
        return None

    def _ended_early(self, connection):
        return connection.ended_at is not None and connection.ended_at < self.message.sent_at + EXCUSE

    def fate(self):
        """`received`, `gap`, `cut` or `lost`."""
        if self.arrived_at() is not None:
            return "received"
        if self.connection is None or self._ended_early(self.connection):
            return "gap"
        if self.message.sender is not None and self._ended_early(self.message.sender):
            return "cut"
        return "lost"

    def only_a_copy(self):
        """Whether the user has got the message all the same, on another connection."""
        return any(other.user is self.user for other in self.message.arrivals)


class Ledger:
    def __init__(self, users):
        self.users = users
        self.messages = {}  # number -> message
        self.phases = []
        self.strays = Counter()  # what arrived and should not exist -> how often
        self.unexpected_ends = []  # (phase, connection, code)
        self.tasks = set()  # of the clients
        self.fault = None  # what ended one of them
        self.is_quiet = True  # whether users say nothing: until all are connected, and at the end

    def watch(self, task):
        """Keeps a task of a client's, whose failure is one of this program."""

        def ended(task):
            self.tasks.discard(task)
            if not task.cancelled() and task.exception():
                self.fault = task.exception()

        self.tasks.add(task)
        task.add_done_callback(ended)
        return task

    @property
    def phase(self):
        return self.phases[-1]

    def enter(self, title, kind):
        self.phases.append(Phase(title, kind))
        return self.phase

    def send(self, kind, sender, user):
        """Enters a message, just before it is sent. Numbers grow, so those of one sender tell its order."""
        message = Message(len(self.messages) + 1, kind, sender, user)
        for receiver in [user] if user else self.users:
            for connection in receiver.connections:
                self._expect(message, receiver, connection)
        if user and not user.connections:
            self._expect(message, user, None)
        self.messages[message.number] = message
        self.phase.messages.append(message)
        return message

    def _expect(self, message, user, connection):
        message.deliveries.append(Delivery(message, user, connection, self._class(message, connection or user.last)))

    @staticmethod
    def _class(message, connection):
        if message.kind == SERVICE:
            return SERVICE
        way = f"{message.sender.version} to {connection.version}"
        if message.kind == BROADCAST:
            return f"{BROADCAST}, {way}" if way in DIRECTIONS else BROADCAST
        if message.sender.node == connection.node:
            return SAME_NODE
        return way if way in DIRECTIONS else ONE_VERSION

    def unsend(self, message):
        """Takes back a message: its connection was closed before it could be sent."""
        message.deliveries.clear()

    def arrive(self, connection, kind, number):
        message = self.messages.get(number)
        if message is None or message.kind != kind or message.user not in (None, connection.user):
            self.strays[f"{connection.user.name} got a {kind} that was not sent to it"] += 1
            return
        delivery = next((d for d in message.deliveries if d.connection is connection), None)
        if delivery is None:
            # The connection was opened after the sending. Its delivery is kept, for what follows.
            delivery = next((d for d in message.deliveries if d.user is connection.user), None)
        if delivery is None:
            delivery = Delivery(message, connection.user, connection, self._class(message, connection))
        if connection in message.arrivals:
            delivery.doubled += 1
            self.strays[f"doubled: {delivery.kind}"] += 1
            return
        message.arrivals[connection] = time.monotonic()
        stream = (kind, message.sender)
        if connection.newest.get(stream, 0) > number:
            delivery.disordered += 1
        connection.newest[stream] = max(number, connection.newest.get(stream, 0))

    def deliveries(self, phase):
        return (delivery for message in phase.messages for delivery in message.deliveries)

    def missing(self, since, until, is_mixed):
        """Deliveries sent in that time that have not come, and must come in such a cluster for it to be at rest."""
        for phase in self.phases[-2:]:
            for message in reversed(phase.messages):
                if message.sent_at < since:
                    break
                if message.sent_at < until:
                    for delivery in message.deliveries:
                        may_degrade = delivery.only_a_copy() or (message.kind == "unicast" and delivery.user.is_double)
                        if delivery.fate() == "lost" and not (is_mixed and may_degrade):
                            yield delivery

    def rows(self, phase):
        """class -> counts of the deliveries of that phase."""
        counts = defaultdict(Counter)
        times = defaultdict(list)
        for delivery in self.deliveries(phase):
            row, fate = counts[delivery.kind], delivery.fate()
            row["sent"] += 1
            row[fate] += 1
            row["doubled"] += delivery.doubled
            row["disordered"] += delivery.disordered
            if fate == "lost":
                row["lost_copies"] += delivery.only_a_copy()
                row["lost_of_two"] += delivery.user.is_double
            elif fate == "received":
                took = delivery.arrived_at() - delivery.message.sent_at
                times[delivery.kind].append(took)
                row["late"] += took > LATE
        names = ("sent", "received", "gap", "cut", "lost", "lost_copies", "lost_of_two", "doubled", "disordered", "late")
        rows = {}
        for kind in CLASSES:
            if kind in counts:
                rows[kind] = {name: counts[kind][name] for name in names}
                took = times[kind]
                rows[kind]["median_ms"] = round(statistics.median(took) * 1000, 1) if took else None
                rows[kind]["longest_ms"] = round(max(took) * 1000) if took else None
        return rows

    def complaints(self, phase, is_one_version):
        """What must not have happened in that phase. With `is_one_version` both binaries are the same, and what is promised
        among nodes of one version holds in every phase."""
        for kind, row in self.rows(phase).items():
            where = f"{phase.title}: {kind}"
            if row["doubled"]:
                yield f"{where}: {row['doubled']} came twice on one connection"
            if phase.kind in ("calm", "mixed") and row["late"]:
                yield f"{where}: {row['late']} took longer than {LATE:.0f} s"
            if phase.kind == "calm" or (phase.kind == "mixed" and is_one_version):
                missing = row["lost"] + row["gap"] + row["cut"]
                if missing:
                    yield f"{where}: {missing} of {row['sent']} did not arrive in a calm phase"
                if row["disordered"]:
                    yield f"{where}: {row['disordered']} out of order in a calm phase"
            elif phase.kind == "mixed":
                missing = self._missing_between_versions(phase, kind)
                if missing:
                    yield f"{where}: {missing} did not arrive while both versions ran"
            elif phase.kind in ("roll", "between") and is_one_version and row["lost"]:
                yield f"{where}: {row['lost']} lost that no reconnect explains, among nodes of one version"

    def _missing_between_versions(self, phase, kind):
        """Unicasts to users with one connection, any broadcast, and messages of the service that found no connection."""

        def counts(delivery):
            if delivery.message.kind == BROADCAST:
                return True
            return not delivery.only_a_copy() if kind == SERVICE else not delivery.user.is_double

        return sum(d.kind == kind and d.fate() != "received" and counts(d) for d in self.deliveries(phase))
