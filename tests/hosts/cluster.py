"""The cluster under test: Redis, three nodes, the proxy, and six users, each on a host of its own."""

import asyncio
import contextlib
import json
import os
import pathlib
import time

from users import Ledger, User

ROOT = pathlib.Path(__file__).resolve().parents[2]
# The addresses of the shipped configuration.
NODES = {"node-1": "10.0.0.11", "node-2": "10.0.0.12", "node-3": "10.0.0.13"}
USERS = [f"user-{n}" for n in range(1, 7)]
READY_EVERY, READY_MAX = 0.5, 2.0  # seconds


class Cluster:
    """All hosts, their programs, and the users."""

    def __init__(self, network, binary):
        self.network = network
        self.ledger = Ledger(time.monotonic)
        self.events = []  # (time, event, user)
        self.ready = {}  # node -> whether the proxy gets 200 for /ready
        self.gone = set()  # nodes that nobody waits for
        network.add_host("redis", ["10.0.0.3"])
        network.add_host("proxy", ["10.0.0.2"])
        network.add_host("client", [f"10.0.0.{100 + n}" for n in range(len(USERS) + 1)])
        for node, address in NODES.items():
            network.add_host(node, [address])
        network.start("redis", "redis-server", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--dir", network.folder)
        for node in NODES:
            network.start(
                node, binary, "serve", "--node-id", node, "--shards", "1", "--redis", "redis://10.0.0.3", "--listen", "8080",
                "--listen", "8082,proxy", "--trusted-proxies", "10.0.0.2", "--drain-delay", "5s",
            )  # fmt: skip
        network.start("proxy", "haproxy", "-db", "-f", self._proxy_config())
        self.users = [
            User(name, n % 2 == 1, f"10.0.0.{101 + n}", network, self.ledger) for n, name in enumerate(USERS)
        ]

    def _proxy_config(self):
        shipped = (ROOT / "tuning/proxy/haproxy/haproxy.cfg").read_text()
        # The file of the control socket must not be that of a HAProxy of this machine; root's rights are gone by then.
        for line in ("    stats socket /run/haproxy/admin.sock mode 660 level admin\n", "    chroot /var/lib/haproxy\n",
                     "    user haproxy\n", "    group haproxy\n"):  # fmt: skip
            if line not in shipped:
                raise RuntimeError(f"the shipped configuration has no line {line!r}")
            shipped = shipped.replace(line, "")
        path = os.path.join(self.network.folder, "haproxy.cfg")
        pathlib.Path(path).write_text(shipped)
        return path

    async def settle(self):
        """Two users on each node: one who reconnects, one who waits."""
        await self._until(lambda: all(self.ready.get(node) for node in NODES), 30, "the nodes to be ready")
        tasks = []
        # leastconn fills the nodes in turn, so one kind of user goes after the other.
        for user in [*self.users[0::2], *self.users[1::2]]:
            tasks.append(asyncio.create_task(user.live()))
            await self._until(lambda: user.writer is not None, 20, f"{user.name} to be connected")
        return tasks

    async def _until(self, condition, seconds, what):
        deadline = time.monotonic() + seconds
        while not condition():
            self.check()
            if time.monotonic() > deadline:
                raise RuntimeError(f"waited {seconds} s in vain for {what}; logs are in {self.network.folder}")
            await asyncio.sleep(0.05)

    def check(self):
        for host in self.network.ended():
            log = pathlib.Path(self.network.folder, f"{host}.log").read_text()
            raise RuntimeError(f"the program on {host} has ended: ...{log[-2000:]}")

    async def holders(self):
        """user -> node, as Redis has it."""
        reader, writer = await self._redis()
        found = {}
        for user in USERS:
            writer.write(_command("GET", f"user:node:{user}"))
            found[user] = await _reply(reader)
        writer.close()
        return found

    async def keep_metrics(self):
        """Writes what each node counts, and what the directory holds, beside the logs."""
        for node in NODES:
            if node not in self.gone:
                reader, writer = await self._connect(node, "127.0.0.1", 8081)
                writer.write(b"GET /metrics HTTP/1.1\r\nHost: ringmesh\r\n\r\n")
                pathlib.Path(self.network.folder, f"{node}.metrics.log").write_bytes(await reader.read())
                writer.close()
        pathlib.Path(self.network.folder, "directory.log").write_text(json.dumps(await self.holders(), indent=1))

    async def listen_to_events(self):
        reader, writer = await self._redis()
        writer.write(_command("SUBSCRIBE", "user:events"))
        while True:
            kind, _, data = await _reply(reader)
            if kind == "message":
                event = json.loads(data)
                self.events.append((time.monotonic(), event["event"], event["user_id"]))

    async def _redis(self):
        # On Redis' own host: its cable does not matter.
        for _ in range(100):
            with contextlib.suppress(ConnectionError):
                return await self._connect("redis", "10.0.0.3", 6379)
            await asyncio.sleep(0.1)
        raise RuntimeError("Redis does not answer")

    async def _connect(self, host, address, port):
        sock = self.network.socket(host)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (address, port))
            return await asyncio.open_connection(sock=sock)
        except BaseException:
            sock.close()
            raise

    async def watch_ready(self, node):
        """Asks as the proxy does, from its host."""
        while True:
            try:
                async with asyncio.timeout(READY_MAX):
                    status = await self._ask_ready(node)
            except (OSError, asyncio.IncompleteReadError):
                status = b""
            self.ready[node] = b" 200 " in status
            if not self.ready[node] and node not in self.gone:
                self.ledger.amiss.append((time.monotonic(), f"{node} was not ready"))
            await asyncio.sleep(READY_EVERY)

    async def _ask_ready(self, node):
        reader, writer = await self._connect("proxy", NODES[node], 8080)
        try:
            writer.write(b"GET /ready HTTP/1.1\r\nHost: ringmesh\r\n\r\n")
            return await reader.readuntil(b"\r\n")
        finally:
            writer.transport.abort()


def _command(*words):
    parts = [f"*{len(words)}", *(part for word in words for part in (f"${len(word)}", word)), ""]
    return "\r\n".join(parts).encode()


async def _reply(reader):
    """A reply of Redis' in RESP2."""
    line = (await reader.readuntil(b"\r\n"))[:-2].decode()
    kind, rest = line[0], line[1:]
    if kind == "*":
        return [await _reply(reader) for _ in range(int(rest))]
    if kind == "$":
        return None if rest == "-1" else (await reader.readexactly(int(rest) + 2))[:-2].decode()
    if kind == "-":
        raise RuntimeError(f"Redis: {rest}")
    return rest
