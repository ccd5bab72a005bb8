#!/usr/bin/env python3
"""Which settings of tuning/host matter on this machine: the same runs with and without them, interleaved.

An arm is a way for the host to be: `defaults` as it was found, `all` after `tune apply`, and each group below alone; a
single key of tuning/host/settings is an arm too. In each round every arm has its turn at every case, with a server that
was started after the settings were made, the arms in another order each time. What a round changes on the host, `tune
rollback` takes back at the end of each arm, also after a signal. Rounds gather in the folder of results: run it again for
more of them. Needs root, and the loopback interface for load.
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True
ROOT = pathlib.Path(__file__).resolve().parents[1]
TUNE = ROOT / "tuning/host/tune"
STATE = pathlib.Path("/var/lib/ringmesh/host-tuning")
OPTIONS = ["--quiet", "--profile", "server,lb,loadgen"]  # of tune
CONNECTIONS_MAX = 150_000
START_SECONDS, CASE_SECONDS = 10, 80

# name -> arguments of ringmesh-bench
CASES = {
    "storm-18000-at-once": "storm -c 18000 --concurrency 18000 --connect-timeout 20s",
    "storm-18000-at-a-pause": "storm -c 18000 --concurrency 18000 --connect-timeout 20s",
    "storm-18000-by-64": "storm -c 18000 --concurrency 64",
    "unicast-500": "unicast -c 500 --rate 20k -d 4s",
    "echo-500x16": "echo -c 500 --inflight 16 -d 3s",
    "fanout-5000": "fanout -c 5000 --rate 10 -d 4s",
    "unicast-100k": "unicast -c 100000 --rate 10k -d 4s --connect-timeout 30s",
}
# The node stands still for so long while clients come, as it does on a host that is short of time.
PAUSED_SECONDS = {"storm-18000-at-a-pause": 0.5}
# name -> keys of tuning/host/settings; a star stands for the rest of a key
GROUPS = {
    "listen-queues": ["net.core.somaxconn", "net.ipv4.tcp_max_syn_backlog", "net.ipv4.tcp_syncookies"],
    "packet-queue": ["net.core.netdev_max_backlog"],
    "ports": ["net.ipv4.ip_local_port_range", "net.ipv4.tcp_tw_reuse"],
    "sending": ["net.ipv4.tcp_slow_start_after_idle", "net.ipv4.tcp_notsent_lowat", "net.ipv4.tcp_retries2"],
    "memory": ["vm.*", "kernel.numa_balancing", "/sys/kernel/mm/*"],
    "cards-and-clocks": ["net.core.rps_sock_flow_entries", "/sys/class/net/*", "/proc/irq/*", "/sys/devices/system/cpu/*"],
}  # fmt: skip
# What the kernel counts while a case runs: name -> how to read it.
COUNTED = {
    "listen overflows": lambda: tcp_counter("netstat", "TcpExt", "ListenOverflows"),
    "packets dropped at the core's queue": lambda: softnet_drops(),
    "segments sent again": lambda: tcp_counter("snmp", "Tcp", "RetransSegs"),
    "SYNs sent again": lambda: tcp_counter("netstat", "TcpExt", "TCPSynRetrans"),
}


def tcp_counter(file, protocol, name):
    lines = [line.split() for line in pathlib.Path("/proc/net", file).read_text().splitlines()]
    names, values = (line for line in lines if line[0] == f"{protocol}:")
    return int(values[names.index(name)])


def softnet_drops():
    return sum(int(line.split()[1], 16) for line in pathlib.Path("/proc/net/softnet_stat").read_text().splitlines())


def tune(verb, *options):
    done = subprocess.run([TUNE, verb, *OPTIONS, *options], capture_output=True, text=True)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[0]
        sys.exit(f"tune {verb}: {said}" + ("; --assume-host if it is none" if "container" in said else ""))
    return done.stdout.strip()


def table_of(arm, folder):
    """The table of settings for an arm, as a file; None for `defaults`."""
    if arm == "defaults":
        return None
    if arm == "all":
        return ROOT / "tuning/host/settings"
    keys = GROUPS.get(arm, [arm])
    paragraphs = (ROOT / "tuning/host/settings").read_text().split("\n\n")
    named = [text for text in paragraphs if any(is_named(text.split("\n")[0], key) for key in keys)]
    if not named:
        sys.exit(f"--arms {arm}: neither a group ({', '.join(GROUPS)}) nor a key of tuning/host/settings")
    path = pathlib.Path(folder, "settings")
    path.write_text("\n\n".join(named) + "\n")
    return path


def is_named(name, key):
    return name == key or (key.endswith("*") and name.startswith(key[:-1]))


@contextlib.contextmanager
def host_as(arm):
    """The host as the arm wants it; as it was found afterwards, whatever happens."""
    with tempfile.TemporaryDirectory(prefix="ringmesh-tuning-") as folder:
        table = table_of(arm, folder)
        if table is None:
            yield "0 changes."
            return
        try:
            yield tune("apply", "--settings", table)
        finally:
            # Nothing interrupts this.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
            try:
                if (STATE / "values").exists():
                    tune("rollback")
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def server(binary, folder):
    """A node with one shard on core 0: its process and its address."""
    log = pathlib.Path(folder, "server.log")
    command = ["taskset", "-c", "0", binary, "serve", "--listen", "127.0.0.1:0", "--admin-listen", "off", "--shards", "1",
               "--connects-per-address-max", "0", "--connections-max", str(CONNECTIONS_MAX)]  # fmt: skip
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not (found := re.search(r"listening addr=(\S+)", log.read_text())):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start: {log.read_text()}")
            time.sleep(0.05)
        yield process.pid, found[1]
    finally:
        # Whoever stands still does not end either.
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.wait()


def measure(case, arguments, folder):
    """One run of a case: the report of ringmesh-bench, with what the kernel counted beside it."""
    report = pathlib.Path(folder, "run.json")
    with server(arguments.server, folder) as (pid, address):
        before = {name: read() for name, read in COUNTED.items()}
        command = [arguments.bench, *CASES[case].split(), "--url", f"ws://{address}/ws", "--cpu", "1", "--server-pid", str(pid),
                   "--name", case, "--quiet", "--json", report]  # fmt: skip
        if case in PAUSED_SECONDS:
            os.kill(pid, signal.SIGSTOP)
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            time.sleep(PAUSED_SECONDS.get(case, 0))
            os.kill(pid, signal.SIGCONT)
            complaint = run.communicate(timeout=CASE_SECONDS)[1]
        finally:
            run.kill()
        counted = {name: read() - before[name] for name, read in COUNTED.items()}
    if not report.exists():
        raise RuntimeError(f"{case}: {complaint.strip()}")
    found = json.loads(report.read_text())
    found["runs"][0]["counted"] = counted
    report.unlink()
    return found


def keep(found, path):
    if path.exists():
        old = json.loads(path.read_text())
        found = {**found, "runs": old["runs"] + found["runs"]}
    path.write_text(json.dumps(found))


def show(arms, arguments):
    """For each arm what `ringmesh-bench compare` says against the defaults, and what the kernel counted."""
    folder = pathlib.Path(arguments.results)
    mattered, not_mattered = [], []
    for arm in arms:
        if arm == "defaults" or not (folder / "defaults.json").exists():
            continue
        command = [arguments.bench, "compare", folder / "defaults.json", folder / f"{slug(arm)}.json"]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        print(f"\n== {arm} (B) against defaults (A)\n{text}")
        verdicts = [line for line in text.splitlines() if line.endswith(("better", "WORSE"))]
        few = any("too few runs" in line for line in text.splitlines())
        (mattered if verdicts else not_mattered).append((arm, verdicts, few))
    print("\nWhat the kernel counted, a run (median):")
    cases = dict.fromkeys(run["name"] for arm in arms for run in runs_of(folder, arm))
    print(f"{'run':<22} {'arm':<40} {'runs':>4} " + " ".join(f"{name:>36}" for name in COUNTED))
    for case in cases:
        for arm in arms:
            runs = [run["counted"] for run in runs_of(folder, arm) if run["name"] == case]
            if runs:
                middle = " ".join(f"{median([run[name] for run in runs]):>36}" for name in COUNTED)
                print(f"{case:<22} {arm:<40} {len(runs):>4} {middle}")
    print("\nMade a difference here:")
    for arm, verdicts, _ in mattered:
        print(f"  {arm}: " + "; ".join(" ".join(line.split()) for line in verdicts))
    if not mattered:
        print("  nothing")
    none = [arm + (" (too few runs to tell)" if few else "") for arm, _, few in not_mattered]
    print(f"Made none: {', '.join(none) or 'nothing'}\nOf twenty comparisons one differs by chance.")


def runs_of(folder, arm):
    path = folder / f"{slug(arm)}.json"
    return json.loads(path.read_text())["runs"] if path.exists() else []


def slug(arm):
    return re.sub(r"[^a-z0-9_.-]+", "-", arm.strip("/").lower())


def median(values):
    return sorted(values)[len(values) // 2]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default=ROOT / "target/release/ringmesh", help="the gateway (target/release/ringmesh)")
    parser.add_argument("--bench", default=ROOT / "target/release/ringmesh-bench", help="the load generator")
    parser.add_argument("--results", default="target/bench-tuning", metavar="FOLDER", help="(target/bench-tuning)")
    parser.add_argument("--rounds", type=int, default=5, help="(5) fewer than four tell nothing from chance")
    parser.add_argument("--arms", default=",".join(["defaults", "all", *GROUPS]), help="with commas between (all of them)")
    parser.add_argument("--cases", default=",".join(CASES), help="with commas between (all of them)")
    parser.add_argument("--assume-host", action="store_true", help="for tune: this is no container, although it looks like one")
    arguments = parser.parse_args()
    arms, cases = arguments.arms.split(","), arguments.cases.split(",")
    for case in cases:
        if case not in CASES:
            sys.exit(f"--cases {case}: known are {', '.join(CASES)}")
    if os.geteuid() != 0:
        sys.exit("settings of the host take root")
    if (STATE / "values").exists():
        sys.exit(f"this host is tuned ({STATE}): what it is like without cannot be measured before `tuning/host/tune rollback`")
    if arguments.assume_host:
        OPTIONS.append("--assume-host")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    folder = pathlib.Path(arguments.results)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(arguments.rounds):
        # Whoever comes first finds another machine than whoever comes last.
        turn = len(runs_of(folder, arms[0])) % len(arms)
        for arm in arms[turn:] + arms[:turn]:
            with host_as(arm) as changes, tempfile.TemporaryDirectory(prefix="ringmesh-tuning-") as scratch:
                for case in cases:
                    print(f"round {number + 1} of {arguments.rounds}, {arm} ({changes}), {case}", file=sys.stderr, flush=True)
                    keep(measure(case, arguments, scratch), folder / f"{slug(arm)}.json")
    show(arms, arguments)


if __name__ == "__main__":
    main()
