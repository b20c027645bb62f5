"""Two hosts: network namespaces, torchrun on each; producers on one, consumers on the other.

torchrun's own agent waits for an answer of the rendezvous as long as TCP does, 15 minutes by Linux' default;
net.ipv4.tcp_retries2=6 makes that half a minute in the namespaces. The ranks end by topology.timeout_s.
"""

import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.helpers.commands import TINY, rows, train
from tests.helpers.runs import relative, values
from tests.helpers.sockets import listening
from tests.parity.test_world_size import EXACT

pytestmark = pytest.mark.long

SHORT = [*EXACT, "train_tokens=5760"]
SPLIT = ["topology.producers=2", "topology.shard=2", "name=hosts"]
ADDRESSES = ("10.97.1.1", "10.97.1.2")
TIMEOUT_S = 20


def cannot():
    """Why this machine cannot play two hosts; None: it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "the command ip is missing (iproute2)"
    tried = subprocess.run(["ip", "netns", "add", f"sae{os.getpid()}t"], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "del", f"sae{os.getpid()}t"], capture_output=True)
    return f"no network namespaces here: {tried.stderr.strip()}" if tried.returncode else None


class Hosts:
    """Two namespaces, the link between them, and the launchers that run there."""

    def __init__(self):
        self.names = [f"sae{os.getpid()}{letter}" for letter in "ab"]
        self.links = [f"v{os.getpid()}{letter}" for letter in "ab"]
        self.launchers = []

    def make(self):
        for name in self.names:
            ip("netns", "add", name)
        (a, b), (link_a, link_b) = self.names, self.links
        ip("link", "add", link_a, "netns", a, "type", "veth", "peer", "name", link_b, "netns", b)
        for name, link, address in zip(self.names, self.links, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", link)
            ip("-n", name, "link", "set", link, "up")
            ip("-n", name, "link", "set", "lo", "up")
            patience = "echo 6 > /proc/sys/net/ipv4/tcp_retries2"
            ip("netns", "exec", name, "sh", "-c", patience)

    def cut(self):
        ip("-n", self.names[1], "link", "set", self.links[1], "down")

    def torchrun(self, folder, *arguments, elastic=True):
        """`sae-dist ...` on two ranks of each host; returns the launchers."""
        for number, name in enumerate(self.names):
            # Which interface leads to the other host is found out: the name of this host is the loopback's.
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            environment.pop("GLOO_SOCKET_IFNAME", None)
            meeting = ["--node-rank", str(number), "--master-addr", ADDRESSES[0], "--master-port", "29511"]
            if elastic:
                meeting = [
                    "--rdzv-backend",
                    "c10d",
                    "--rdzv-endpoint",
                    f"{ADDRESSES[0]}:29511",
                    "--rdzv-id",
                    "t",
                ]
                # A host is recognised by the name of its address, which namespaces do not have.
                meeting += ["--rdzv-conf", f"is_host={1 - number}"]
            meeting += ["--local-addr", ADDRESSES[number]]
            run = ["torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "2", *meeting]
            command = [
                "ip",
                "netns",
                "exec",
                name,
                sys.executable,
                "-m",
                *run,
                "-m",
                "sae_dist.cli",
                *arguments,
            ]
            with open(folder / f"host_{number}.log", "w") as log:
                options = {"cwd": folder, "env": environment, "stdout": log, "stderr": log}
                self.launchers.append(subprocess.Popen(command, start_new_session=True, **options))
        return self.launchers

    def processes(self):
        """Processes that live in the namespaces."""
        found = [subprocess.run(["ip", "netns", "pids", name], capture_output=True) for name in self.names]
        return [int(number) for each in found for number in each.stdout.split()]

    def remove(self):
        for number in self.processes():
            os.kill(number, signal.SIGKILL)
        for launcher in self.launchers:
            launcher.wait(10)
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def ip(*words):
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
    return done.stdout


@pytest.fixture
def hosts():
    reason = cannot()
    if reason:
        pytest.skip(reason)
    hosts = Hosts()
    try:
        hosts.make()
        yield hosts
    finally:
        hosts.remove()


def test_two_hosts_are_one_process(hosts, tmp_path):
    alone = train(tmp_path, "alone", *SHORT)
    launchers = hosts.torchrun(tmp_path, "train", *TINY, *SHORT, *SPLIT, elastic=False)
    codes = [launcher.wait(240) for launcher in launchers]
    assert codes == [0, 0], (tmp_path / "host_0.log").read_text() + (tmp_path / "host_1.log").read_text()
    found = rows(tmp_path / "outputs" / "hosts")
    assert len(found) == 30
    assert values(found, "stream/batch_hash") == values(alone, "stream/batch_hash")
    assert max(relative(values(found, "loss/total"), values(alone, "loss/total"))) < 1e-9


def said(folder, host):
    lines = (folder / f"host_{host}.log").read_text().splitlines()
    return [line.removeprefix("sae-dist: error: ") for line in lines if line.startswith("sae-dist: error: ")]


def test_a_link_that_is_cut(hosts, tmp_path):
    timeout = f"topology.timeout_s={TIMEOUT_S}"
    launchers = hosts.torchrun(tmp_path, "train", *TINY, *SPLIT, timeout, "train_tokens=50M")
    metrics, until = tmp_path / "outputs" / "hosts" / "metrics.jsonl", time.monotonic() + 180
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 5:
        assert time.monotonic() < until and all(each.poll() is None for each in launchers), said(tmp_path, 0)
        time.sleep(0.1)
    ranks = [pid for pid in hosts.processes() if "RANK" in psutil.Process(pid).environ()]
    sockets = set().union(*map(listening, ranks))
    assert len(ranks) >= 4 and {address for address, _ in sockets} == set(ADDRESSES)
    hosts.cut()
    began = time.monotonic()
    while len(said(tmp_path, 1)) < 2 or not said(tmp_path, 0):
        assert time.monotonic() - began < TIMEOUT_S + 10, (said(tmp_path, 0), said(tmp_path, 1))
        time.sleep(0.1)

    codes = [launcher.wait(120) for launcher in launchers]
    assert 0 not in codes and hosts.processes() == []
    # Consumers miss a producer, or both producers' signs of life, and the second what the first said, unless
    # torchrun has stopped it by then.
    consumers, producers = said(tmp_path, 0), said(tmp_path, 1)
    silent = f"was silent for {TIMEOUT_S} s (topology.timeout_s)"
    for line in consumers:
        assert "producer rank" in line and silent in line or "show no sign of life" in line, consumers
    assert len(consumers) <= 2
    # The producers' host reaches neither the store nor a consumer; which one a rank asked last is chance.
    assert len(producers) == 2
    named = (f"the run's store at {ADDRESSES[0]} ", "consumer rank ")
    said_so = [line.startswith(named) and (silent in line or " is gone (" in line) for line in producers]
    assert all(said_so), producers
