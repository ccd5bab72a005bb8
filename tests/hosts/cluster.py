"""The cluster under test: Redis, three nodes, the proxy, and nine users, each on a host of its own."""

import asyncio
import contextlib
import json
import os
import pathlib
import time

from accounts import read_counts
from users import KINDS, Ledger, User

ROOT = pathlib.Path(__file__).resolve().parents[2]
# The addresses of the shipped configuration.
NODES = {"node-1": "10.0.0.11", "node-2": "10.0.0.12", "node-3": "10.0.0.13"}
USERS = [f"user-{n}" for n in range(1, 3 * len(NODES) + 1)]
READY_EVERY, READY_MAX = 0.5, 2.0  # seconds


class Cluster:
    """All hosts, their programs, and the users."""

    def __init__(self, network, binary, proxy):
        self.network = network
        self.ledger = Ledger(time.monotonic)
        self.events = []  # (time, event, user)
        self.ready = {}  # node -> whether the proxy gets 200 for /ready
        self.gone = set()  # nodes that nobody waits for
        self.counts = {}  # node -> what it has counted
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
        network.run("proxy", ROOT / "tuning/host/tune", "apply", "--profile", "lb", "--quiet", "--assume-host", "--state",
                    os.path.join(network.folder, "tuning"))  # fmt: skip
        match proxy:
            case "haproxy":
                network.start("proxy", "haproxy", "-db", "-f", self._haproxy_config())
            case "nginx":
                # One process: what is killed is all of it.
                network.start("proxy", "nginx", "-g", "daemon off; master_process off;", "-c", self._nginx_config())
        self.users = [
            User(name, KINDS[n % 3], f"10.0.0.{101 + n}", network, self.ledger) for n, name in enumerate(USERS)
        ]

    def _haproxy_config(self):
        # The file of the control socket must not be that of a HAProxy of this machine; root's rights are gone by then.
        return self._shipped("haproxy/haproxy.cfg", {
            "    stats socket /run/haproxy/admin.sock mode 660 level admin\n": "",
            "    chroot /var/lib/haproxy\n": "",
            "    user haproxy\n    group haproxy\n": "",
        })  # fmt: skip

    def _nginx_config(self):
        self._shipped("nginx/ringmesh-http.conf", {"access_log /var/log/nginx/ringmesh.log ringmesh;": "access_log off;"})
        self._shipped("nginx/ringmesh-stream.conf", {})
        return self._shipped("nginx/nginx.conf", {
            "pid /run/": f"pid {self.network.folder}/",
            "error_log /var/log/nginx/error.log": f"error_log {self.network.folder}/nginx-error.log",
        })  # fmt: skip

    def _shipped(self, file, changes):
        """The place of a copy of a file of tuning/proxy that this machine can run."""
        text = (ROOT / "tuning/proxy" / file).read_text()
        for theirs, ours in changes.items():
            if theirs not in text:
                raise RuntimeError(f"{file} has no {theirs!r}")
            text = text.replace(theirs, ours)
        path = pathlib.Path(self.network.folder, pathlib.Path(file).name)
        path.write_text(text)
        return str(path)

    async def settle(self):
        """Three users on each node, one of each kind."""
        await self._until(lambda: all(self.ready.get(node) for node in NODES), 30, "the nodes to be ready")
        tasks = []
        # leastconn fills the nodes in turn, so one kind of user goes after the other.
        for user in [*self.users[0::3], *self.users[1::3], *self.users[2::3]]:
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
        """Writes what each node counts, and what the directory holds, beside the logs. Of a node that is gone, what it said
        last is kept."""
        for node in NODES:
            if node not in self.gone:
                reader, writer = await self._connect(node, "127.0.0.1", 8081)
                writer.write(b"GET /metrics HTTP/1.1\r\nHost: ringmesh\r\n\r\n")
                text = await reader.read()
                writer.close()
                pathlib.Path(self.network.folder, f"{node}.metrics.log").write_bytes(text)
                self.counts[node] = read_counts(text.decode())
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
