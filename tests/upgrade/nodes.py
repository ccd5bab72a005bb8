"""The programs under test: a Redis of its own and three nodes, on ports of the loopback interface."""

import asyncio
import contextlib
import json
import pathlib
import random
import signal
import socket
import time

READY_MAX = 30.0  # seconds; a killed node's lease lasts for 10 s
STOP_MAX = 20.0  # seconds; `shutdown_timeout` is 10 s
POLL_EVERY = 0.05  # seconds


class Failed(Exception):
    """The scenario cannot go on."""


async def until(condition, seconds, what, check=lambda: None):
    """Waits for a condition, which may be a coroutine function. Returns the seconds that it took."""
    start = time.monotonic()
    while True:
        check()
        met = condition()
        if asyncio.iscoroutine(met):
            met = await met
        if met:
            return time.monotonic() - start
        if time.monotonic() > start + seconds:
            raise Failed(f"waited {seconds:.0f} s in vain for {what}")
        await asyncio.sleep(POLL_EVERY)


def free_port(taken):
    """A port below those that the kernel gives to outgoing connections, which could take it while a node is down."""
    lowest = int(pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(1000):
        port = random.randrange(max(1024, lowest - 12_000), lowest)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            if port not in taken:
                taken.add(port)
                return port
    raise Failed("no free port")


class Program:
    """A process and its log. It dies with this one."""

    def __init__(self, name, folder):
        self.name, self.log = name, pathlib.Path(folder, f"{name}.log")
        self.process = None

    async def start(self, *command):
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                "setpriv", "--pdeathsig", "KILL", *map(str, command), stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
            )

    def check(self):
        """It must be running."""
        if self.process.returncode is not None:
            raise Failed(f"{self.name} has ended with {self.process.returncode}: ...{self.tail()}")

    def tail(self):
        return self.log.read_text(errors="replace")[-1500:]

    def is_running(self):
        return self.process is not None and self.process.returncode is None

    async def terminate(self):
        """SIGTERM. Returns the seconds until it exited with 0."""
        self.process.send_signal(signal.SIGTERM)
        start = time.monotonic()
        try:
            async with asyncio.timeout(STOP_MAX):
                status = await self.process.wait()
        except TimeoutError:
            raise Failed(f"{self.name} has not ended {STOP_MAX:.0f} s after SIGTERM: ...{self.tail()}") from None
        if status != 0:
            raise Failed(f"{self.name} exited with {status} after SIGTERM: ...{self.tail()}")
        return time.monotonic() - start

    async def kill(self):
        if self.is_running():
            self.process.kill()
            await self.process.wait()


class RedisServer(Program):
    def __init__(self, folder, port):
        super().__init__("redis", folder)
        self.folder, self.port = folder, port
        self.url = f"redis://127.0.0.1:{port}"

    async def run(self):
        await self.start(
            "redis-server", "--port", self.port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", self.folder
        )  # fmt: skip
        await until(self._answers, 10, "Redis to answer", self.check)

    async def _answers(self):
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.close()
            return True
        return False


class Node(Program):
    """A place for a node, with its port, whichever binary runs there."""

    def __init__(self, ids, folder, port, redis):
        # ids: version -> the node's id.
        super().__init__(next(iter(ids.values())), folder)
        self.ids, self.port, self.redis = ids, port, redis
        self.id = self.name
        self.version = None
        self.takes_connections = False

    async def run(self, version, binary):
        """Starts that version. Returns the seconds until it was ready."""
        self.version, self.id = version, self.ids[version]
        await self.start(
            binary, "serve", "--node-id", self.id, "--shards", "1", "--redis", self.redis, "--listen", f"127.0.0.1:{self.port}",
            "--admin-listen", "127.0.0.1:0", "--connects-per-address-max", "0",
        )  # fmt: skip
        took = await until(self._is_ready, READY_MAX, f"{self.id} ({version}) to be ready", self.check)
        said = json.loads((await self._ask("/health")).partition(b"\r\n\r\n")[2])["node_id"]
        if said != self.id:
            raise Failed(f"{self.id} ({version}) says that it is {said}")
        self.takes_connections = True
        return took

    async def _is_ready(self):
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(2):
                return b" 200 " in (await self._ask("/ready")).partition(b"\r\n")[0]
        return False

    async def _ask(self, path):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: ringmesh\r\n\r\n".encode())
            return await reader.read()
        finally:
            writer.close()

    async def stop(self):
        self.takes_connections = False
        return await self.terminate()


class Cluster:
    def __init__(self, folder, binaries, suffixes):
        # binaries: version -> path. suffixes: version -> what its nodes' ids end with.
        taken = set()
        self.binaries = binaries
        self.redis = RedisServer(folder, free_port(taken))
        self.nodes = []
        for name in ("n1", "n2", "n3"):
            ids = {version: name + suffix for version, suffix in suffixes.items()}
            self.nodes.append(Node(ids, folder, free_port(taken), self.redis.url))

    def takes_connections(self):
        return [node for node in self.nodes if node.takes_connections]

    def check(self):
        """What should be running is."""
        self.redis.check()
        for node in self.takes_connections():
            node.check()

    async def close(self):
        for program in [*self.nodes, self.redis]:
            await program.kill()
