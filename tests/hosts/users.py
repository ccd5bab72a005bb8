"""Users who talk to each other through the proxy, and the ledger of what they sent and got.

Three kinds of clients. One *reconnects* when it has had no byte for `SILENCE_MAX`, as a client should; another *waits* until
its connection ends. Both send one message to each other user every `SEND_EVERY`, and ask for a pong every second. The third
*listens*: it waits too, and sends nothing. All come back with backoff and jitter.
"""

import asyncio
import base64
import json
import os
import random
import struct

SEND_EVERY = 0.25  # seconds
SILENCE_MAX = 5.0  # seconds
LATE = 1.0  # seconds; what takes longer is a trouble
BACKOFF_FIRST, BACKOFF_MAX = 0.5, 4.0  # seconds
CONNECT_MAX = 5.0  # seconds
KINDS = ("reconnects", "waits", "listens")


class Ledger:
    """Every message with its time of sending and of its first arrival, and every time at which something was amiss."""

    def __init__(self, clock):
        self.clock = clock
        self.sent = {}  # (sender, target, n) -> time
        self.arrived = {}  # the same -> time
        self.twice = []  # the same
        self.disordered = []  # the same
        self.unsent = []  # (sender, target, time): there was no connection
        self.refused = []  # (sender, time, code)
        self.connects = []  # (user, time)
        self.ends = []  # (user, time, why)
        self.amiss = []  # (time, what), other than messages

    def arrival(self, key):
        """Whether it is the first of this message."""
        now = self.clock()
        if key not in self.sent:
            raise RuntimeError(f"a message that nobody sent: {key}")
        if key in self.arrived:
            self.twice.append(key)
            return False
        self.arrived[key] = now
        return True

    def last_trouble(self):
        """The latest time at which something was amiss, with a word for it. A message is amiss from LATE after its sending
        until it comes; one that never comes counts once, at the beginning of that."""
        now = self.clock()
        worst = max(self.amiss, default=(0.0, "nothing"))
        for key, at in self.sent.items():
            arrived = self.arrived.get(key)
            if arrived is None and now > at + LATE:
                worst = max(worst, (at + LATE, f"a message from {key[0]} to {key[1]} was lost"))
            elif arrived is not None and arrived > at + LATE:
                worst = max(worst, (arrived, f"a message from {key[0]} to {key[1]} took {arrived - at:.1f} s"))
        return worst


class User:
    """One user with one connection at a time, from its own address."""

    def __init__(self, name, kind, address, network, ledger):
        self.name, self.kind, self.address = name, kind, address
        self.network, self.ledger = network, ledger
        self.writer = None
        self.numbers = {}
        self.newest = {}  # sender -> number, of this connection
        self.connection = 0

    async def live(self):
        """Connects again and again, until cancelled."""
        backoff = BACKOFF_FIRST
        while True:
            try:
                # Not `wait_for`, which loses a cancellation that comes together with its result.
                async with asyncio.timeout(CONNECT_MAX):
                    reader, writer = await self._open()
            except (OSError, asyncio.IncompleteReadError) as error:
                self.ledger.ends.append((self.name, self.ledger.clock(), f"no connect: {error!r}"))
                await asyncio.sleep(random.uniform(backoff / 2, backoff))
                backoff = min(backoff * 2, BACKOFF_MAX)
                continue
            backoff = BACKOFF_FIRST
            self.ledger.connects.append((self.name, self.ledger.clock()))
            self.connection += 1
            self.newest, self.writer = {}, writer
            try:
                why = await self._read(reader, writer)
            except TimeoutError:
                why = f"silent for {SILENCE_MAX:.0f} s"
            except (OSError, asyncio.IncompleteReadError) as error:
                why = repr(error)
            finally:
                self.writer = None
                writer.transport.abort()
            self.ledger.ends.append((self.name, self.ledger.clock(), why))
            await asyncio.sleep(random.uniform(backoff / 2, backoff))

    def send(self, target):
        now = self.ledger.clock()
        if self.writer is None:
            self.ledger.unsent.append((self.name, target, now))
            self.ledger.amiss.append((now, f"{self.name} was not connected"))
            return
        number = self.numbers[target] = self.numbers.get(target, 0) + 1
        self.ledger.sent[(self.name, target, number)] = now
        content = [number, self.connection]
        self._write({"type": "send_message", "target_user": target, "content": content})

    def ping(self):
        if self.writer is not None:
            self._write({"type": "ping"})

    async def _open(self):
        host = self.network.addresses["proxy"]
        sock = self.network.socket("client")
        try:
            sock.bind((self.address, 0))
            await asyncio.get_running_loop().sock_connect(sock, (host, 80))
            reader, writer = await asyncio.open_connection(sock=sock)
        except BaseException:
            sock.close()
            raise
        try:
            key = base64.b64encode(os.urandom(16)).decode()
            writer.write(
                f"GET /ws?user_id={self.name} HTTP/1.1\r\nHost: ringmesh\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
            )
            status = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0].decode()
            if " 101 " not in status:
                raise ConnectionError(status)
        except BaseException:
            writer.transport.abort()
            raise
        return reader, writer

    async def _read(self, reader, writer):
        while True:
            async with asyncio.timeout(SILENCE_MAX if self.kind == "reconnects" else None):
                opcode, payload = await self._frame(reader)
            if opcode == 8:
                return f"closed with {struct.unpack('!H', payload[:2])[0] if payload else 1005}"
            if opcode == 9:
                writer.write(_frame(10, payload))
            elif opcode == 1:
                self._message(json.loads(payload))

    async def _frame(self, reader):
        first, length = await reader.readexactly(2)
        if length == 126:
            length = struct.unpack("!H", await reader.readexactly(2))[0]
        elif length == 127:
            length = struct.unpack("!Q", await reader.readexactly(8))[0]
        return first & 15, await reader.readexactly(length)

    def _message(self, message):
        if message["type"] == "error":
            self.ledger.refused.append((self.name, self.ledger.clock(), message.get("code", message["message"])))
            self.ledger.amiss.append((self.ledger.clock(), f"{self.name} was refused a message"))
        elif message["type"] == "message":
            sender, (number, connection) = message["from"], message["content"]
            key = (sender, self.name, number)
            if not self.ledger.arrival(key):
                return
            # Order is promised between one connection and one connection.
            newest = self.newest.get((sender, connection), 0)
            if number < newest:
                self.ledger.disordered.append(key)
            self.newest[(sender, connection)] = max(number, newest)

    def _write(self, message):
        self.writer.write(_frame(1, json.dumps(message).encode()))


async def talk(users):
    """Has all of them send, until cancelled."""
    turns = 0
    while True:
        for user in users:
            if user.kind == "listens":
                continue
            for other in users:
                if other is not user:
                    user.send(other.name)
            if turns % round(1 / SEND_EVERY) == 0:
                user.ping()
        turns += 1
        await asyncio.sleep(SEND_EVERY)


def _frame(opcode, payload):
    """A frame of a client's, RFC 6455 5.2: masked."""
    mask = os.urandom(4)
    length = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + struct.pack("!H", len(payload))
    body = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
    return bytes([0x80 | opcode]) + length + mask + body
