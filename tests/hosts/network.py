"""Hosts of one machine: a network namespace each, joined by a bridge in a namespace of its own.

Nothing is made in the namespace that this runs in, and all ends with `Network.close`: processes by their ids, namespaces by
their names, which hold this process's id, so that two runs do not meet. Children die with this process, even if it is
killed; the namespaces that it then leaves are taken away by the next run.
"""

import ctypes
import os
import re
import socket
import subprocess

CLONE_NEWNET = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)
PREFIX = "ringmesh-hosts"


class Network:
    """Hosts by name, their addresses in 10.0.0.0/24, and the processes that run on them."""

    def __init__(self, folder):
        self.folder = folder
        self.addresses = {}
        self.processes = {}
        _remove_leftovers()
        self._namespace("bridge")
        self._ip("bridge", "link", "add", "br0", "type", "bridge")
        self._ip("bridge", "link", "set", "br0", "up")

    def add_host(self, host, addresses):
        """A host with a cable to the bridge; `addresses` are strings, the first is its own."""
        self._namespace(host)
        self.addresses[host] = addresses[0]
        port = self._port(host)
        self._ip("bridge", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", _name(host))
        self._ip("bridge", "link", "set", port, "master", "br0")
        self._ip("bridge", "link", "set", port, "up")
        for address in addresses:
            self._ip(host, "address", "add", f"{address}/24", "dev", "eth0")
        self._ip(host, "link", "set", "eth0", "up")

    def cut(self, host):
        """Pulls the host's cable at the bridge."""
        self._ip("bridge", "link", "set", self._port(host), "down")

    def mend(self, host):
        self._ip("bridge", "link", "set", self._port(host), "up")

    def impair(self, host, *netem):
        """Has what the host sends and gets pass through netem; returns what tc says against it, or None."""
        for namespace, device in ((host, "eth0"), ("bridge", self._port(host))):
            command = ["tc", "-n", _name(namespace), "qdisc", "replace", "dev", device, "root", "netem", *netem]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                return done.stderr.strip().splitlines()[0]
        return None

    def run(self, host, *command):
        """Runs a program on the host to its end, which must be a good one."""
        return _run("ip", "netns", "exec", _name(host), *map(str, command))

    def start(self, host, *command):
        """Runs a program on the host, its output in `<host>.log` of the folder."""
        with open(os.path.join(self.folder, f"{host}.log"), "ab") as log:
            inside = ["setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", _name(host)]
            self.processes[host] = subprocess.Popen(
                [*inside, *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self, host):
        process = self.processes.pop(host)
        process.kill()
        process.wait()

    def ended(self):
        """Hosts whose program has ended by itself."""
        return [host for host, process in self.processes.items() if process.poll() is not None]

    def socket(self, host):
        """A TCP socket of the host's: it stays there, whatever thread uses it."""
        with open("/proc/self/ns/net") as here, open(f"/run/netns/{_name(host)}") as there:
            _enter(there)
            try:
                made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            finally:
                _enter(here)
        made.setblocking(False)
        return made

    def close(self):
        """Kills all processes, and takes the namespaces away."""
        for host in list(self.processes):
            self.kill(host)
        for host in [*self.addresses, "bridge"]:
            subprocess.run(["ip", "netns", "delete", _name(host)], capture_output=True)

    def _namespace(self, host):
        _run("ip", "netns", "add", _name(host))
        self._ip(host, "link", "set", "lo", "up")

    def _ip(self, host, *arguments):
        _run("ip", "-n", _name(host), *arguments)

    def _port(self, host):
        # A name of the kernel's holds 15 characters.
        return f"to-{host}"[:15]


def _name(host):
    return f"{PREFIX}-{os.getpid()}-{host}"


def _run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _enter(namespace):
    if LIBC.setns(namespace.fileno(), CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def _remove_leftovers():
    """Namespaces of runs that were killed."""
    for name in re.findall(rf"^{PREFIX}-\d+-\S+", _run("ip", "netns", "list"), re.MULTILINE):
        if not os.path.exists(f"/proc/{name.split('-')[2]}"):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)
