"""Users who talk to each other and reconnect, and the business service that talks to them through Redis.

A user has one connection, or two on different nodes. Each connection sends numbered unicasts to a few other users in turn,
two back to back, so that a change of their order would show. When a node closes a connection (1012) or it breaks, the
client comes back with jitter to any node that takes connections, as behind a load balancer that asks `/ready`; what is
refused (503, 429) it tries again with backoff.
"""

import asyncio
import itertools
import json
import random
import time

from ledger import BROADCAST, SERVICE
from redis.asyncio import Redis
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

SEND_EVERY, SENT_TOGETHER = 0.1, 2  # seconds, messages; for each connection
BROADCAST_EVERY = 0.25  # seconds
SERVE_EVERY = 0.05  # seconds
JITTER = (0.02, 0.3)  # seconds
BACKOFF_FIRST, BACKOFF_MAX = 0.1, 1.0  # seconds
OPEN_MAX = 5.0  # seconds
EXPECTED_CODE = {"roll": 1012, "kill": 1006}  # kind of a phase -> the code with which a node's connections end
PARTNERS = (1, 2, 3, 7)  # whom a user writes to: so many places further in the list of users


class Connection:
    """One connection, from its 101 to its end."""

    def __init__(self, user, node, version, socket):
        self.user, self.node, self.version, self.socket = user, node, version, socket
        self.newest = {}  # (kind, sender) -> highest number that has arrived
        self.ended_at = None
        self.ended = asyncio.Event()
        self.is_closing = False
        user.connections.append(self)
        user.last = self
        user.ledger.watch(asyncio.create_task(self._read()))
        user.ledger.watch(asyncio.create_task(self._talk()))

    async def close(self):
        self._end()
        self.is_closing = True
        await self.socket.close()

    def _end(self):
        if self.ended_at is None:
            self.ended_at = time.monotonic()
            self.user.connections.remove(self)

    async def _read(self):
        ledger = self.user.ledger
        try:
            while True:
                message = json.loads(await self.socket.recv())
                match message["type"]:
                    case "message":
                        ledger.arrive(self, "unicast", message["content"])
                    case "broadcast":
                        ledger.arrive(self, BROADCAST, message["content"])
                    case "service":
                        ledger.arrive(self, SERVICE, message["number"])
                    case "error" if message.get("code") == "overloaded":
                        ledger.phase.refused += 1
                    case _:
                        ledger.strays[f"{self.user.name} got {json.dumps(message)}"] += 1
        except ConnectionClosed:
            code = self.socket.close_code
            if not self.is_closing and code != EXPECTED_CODE.get(ledger.phase.kind):
                ledger.unexpected_ends.append((ledger.phase, self, code))
        finally:
            self._end()
            self.ended.set()

    async def _talk(self):
        await asyncio.sleep(random.uniform(0, SEND_EVERY))
        for turn in itertools.count():
            if self.ended_at is not None:
                return
            partner = self.user.partners[turn % len(self.user.partners)]
            for _ in range(0 if self.user.ledger.is_quiet else SENT_TOGETHER):
                await self.send("unicast", partner)
            await asyncio.sleep(SEND_EVERY)

    async def send(self, kind, target=None):
        if self.ended_at is not None:
            return
        message = self.user.ledger.send(kind, self, target)
        body = {"type": "broadcast"} if target is None else {"type": "send_message", "target_user": target.name}
        try:
            await self.socket.send(json.dumps(body | {"content": message.number}))
        except ConnectionClosed:
            self.user.ledger.unsend(message)


class Slot:
    """A place for one connection, which is opened again and again until the slot is closed."""

    def __init__(self, user, home, cluster):
        self.user, self.home, self.cluster = user, home, cluster
        self.current = None
        self.wanted = home  # the node for the next connect, if it takes connections
        self.is_closed = False
        self.refusal = None  # why the last connect that failed did
        self.task = user.ledger.watch(asyncio.create_task(self._live()))

    async def _live(self):
        while not self.is_closed:
            connection = self.current = await self._open()
            while True:
                await connection.ended.wait()
                if self.current is connection:
                    break
                # It moved, with its next connection open before this one was closed.
                connection = self.current
            if not self.is_closed:
                await asyncio.sleep(random.uniform(*JITTER))

    async def _open(self):
        backoff = BACKOFF_FIRST
        while True:
            node = self._choose()
            try:
                return await self._connect(node)
            except (OSError, InvalidHandshake, ConnectionClosed, EOFError, TimeoutError) as error:
                self.refusal = f"{node.id}: {error}"
                await asyncio.sleep(random.uniform(backoff / 2, backoff))
                backoff = min(2 * backoff, BACKOFF_MAX)

    def _choose(self):
        takes = self.cluster.takes_connections()
        wanted, self.wanted = self.wanted, None
        if wanted in takes:
            return wanted
        elsewhere = [node for node in takes if all(other.node != node.id for other in self.user.connections)]
        return random.choice(elsewhere or takes)

    async def _connect(self, node):
        version = node.version
        url = f"ws://127.0.0.1:{node.port}/ws?user_id={self.user.name}"
        socket = await connect(url, open_timeout=OPEN_MAX, ping_interval=None, compression=None, proxy=None)
        return Connection(self.user, node.id, version, socket)

    async def go_home(self, with_overlap):
        """Moves to the home node: closes the connection first, or opens the next one first."""
        current = self.current
        if current.ended_at is not None:
            # The next connect is under way already, or goes there.
            self.wanted = self.home
            return
        if current.node == self.home.id:
            return
        self.wanted = self.home
        if with_overlap:
            self.current = await self._open()
        await current.close()

    async def close(self):
        self.is_closed = True
        if self.current is not None and self.current.ended_at is None:
            await self.current.close()
        await self.task


class User:
    def __init__(self, name, ledger):
        self.name, self.ledger = name, ledger
        self.connections = []  # those that are open
        self.last = None  # the newest connection
        self.partners = []
        self.slots = []

    @property
    def is_double(self):
        return len(self.slots) > 1


async def broadcast(users):
    """Has one connection after the other send a broadcast, until cancelled."""
    for user in itertools.cycle(users):
        if user.connections:
            await random.choice(user.connections).send(BROADCAST)
        await asyncio.sleep(BROADCAST_EVERY)


async def serve(users, url, ledger):
    """The business service: asks for a user's node and publishes there, until cancelled."""
    redis = Redis.from_url(url, decode_responses=True)
    try:
        for user in itertools.cycle(users):
            message = ledger.send(SERVICE, None, user)
            node = await redis.get(f"user:node:{user.name}")
            if node is not None:
                order = {"action": "send_to_user", "user_id": user.name, "message": {"type": "service", "number": message.number}}
                await redis.publish(f"node:{node}", json.dumps(order))
            await asyncio.sleep(SERVE_EVERY)
    finally:
        await redis.aclose()


async def listen_to_events(url, heard, is_listening):
    """Collects what `user:events` says, as (event, user), until cancelled."""
    redis = Redis.from_url(url, decode_responses=True)
    try:
        async with redis.pubsub() as pubsub:
            await pubsub.subscribe("user:events")
            async for push in pubsub.listen():
                if push["type"] == "subscribe":
                    is_listening.set()
                elif push["type"] == "message":
                    event = json.loads(push["data"])
                    heard.append((event["event"], event["user_id"]))
    finally:
        await redis.aclose()
