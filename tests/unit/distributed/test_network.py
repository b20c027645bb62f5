"""Which address a run listens at, whoever started it, and whatever names mean on this machine."""

import os
import socket
from contextlib import suppress

import pytest

from sae_dist.core.errors import SaeDistError
from sae_dist.core.place import Place
from sae_dist.distributed import network
from sae_dist.distributed.network import choose_interface, local_store, store_of
from tests.helpers.sockets import beyond_loopback, listening
from tests.helpers.warm import context

ONE, SEVERAL = Place(0, 2, 0, 2), Place(0, 4, 0, 2)
ELSEWHERE = "203.0.113.7"
"""An address for documentation, of no machine."""


def outer_address():
    """Of this machine, on the way to another; None: it has none."""
    own = network._own_address("192.0.2.1")
    return None if own is None or network._is_loopback(own) else own


def resolving(monkeypatch, *addresses):
    """Let every name mean these addresses."""

    def resolve(host, port, *_, **__):
        families = (socket.AF_INET6 if ":" in each else socket.AF_INET for each in addresses)
        return [(family, 0, 0, "", (each, port)) for family, each in zip(families, addresses, strict=True)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


def test_the_store_of_one_machine_is_the_loopbacks():
    before = listening(os.getpid())
    store = local_store()
    assert listening(os.getpid()) - before == {("127.0.0.1", store.port)}
    if outer := outer_address():
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((outer, store.port), 5)


@pytest.mark.parametrize("addresses", [("127.0.1.1",), ("127.0.1.1", "::1"), (ELSEWHERE,), ()])
def test_a_name_that_does_not_tell_an_address_is_said(monkeypatch, capsys, addresses):
    """Debian's /etc/hosts, an address that a router translates, a name that nobody knows."""
    resolving(monkeypatch, *addresses)
    with network._listener("node-1", 0) as found:
        assert found.getsockname()[0] == "0.0.0.0"
    assert "MASTER_ADDR=node-1 is no address of this machine" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_the_loopback_where_it_is_asked_for(monkeypatch, capsys, host):
    if host == "localhost":
        resolving(monkeypatch, "127.0.0.1")
    with network._listener(host, 0) as found:
        assert network._is_loopback(found.getsockname()[0])
    assert capsys.readouterr().err == ""


def test_a_name_that_means_several_addresses_is_the_one_that_others_reach(monkeypatch, capsys):
    outer = outer_address()
    if outer is None:
        pytest.skip("this machine has no address but the loopback's")
    resolving(monkeypatch, "127.0.1.1", ELSEWHERE, outer)
    with network._listener("node-1", 0) as found:
        assert found.getsockname()[0] == outer
        with pytest.raises(SaeDistError, match=f"MASTER_PORT={found.getsockname()[1]} is in use"):
            network._listener("node-1", found.getsockname()[1])
    assert capsys.readouterr().err == ""


@pytest.fixture
def no_interface(monkeypatch):
    for name in (network.INTERFACE, network.NCCLS_INTERFACE, "MASTER_ADDR"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)


def test_the_interface_of_one_machine(no_interface, monkeypatch):
    choose_interface(ONE)
    name = os.environ[network.INTERFACE]
    assert name.startswith("lo") and os.environ[network.NCCLS_INTERFACE] == f"={name}"
    monkeypatch.setenv(network.INTERFACE, "ib0")
    choose_interface(ONE)
    choose_interface(SEVERAL)
    assert os.environ[network.INTERFACE] == "ib0"


def test_the_interface_of_several_machines_leads_to_rank_0(no_interface, monkeypatch):
    outer = outer_address()
    if outer is None:
        pytest.skip("this machine has no address but the loopback's")
    for host in (outer, "127.0.0.1"):
        monkeypatch.setenv("MASTER_ADDR", host)
        choose_interface(SEVERAL)
        assert os.environ.pop(network.INTERFACE) == network._interface_of(host)
    assert network.NCCLS_INTERFACE not in os.environ
    resolving(monkeypatch, "127.0.1.1")
    monkeypatch.setenv("MASTER_ADDR", "node-1")
    choose_interface(SEVERAL)
    assert network.INTERFACE not in os.environ, "torch's own way is left"


def meet(rank: int, world: int, local_world: int, host: str, port: int, pipe) -> None:
    """Find the others as ranks do that no torchrun started."""
    os.environ |= {"MASTER_ADDR": host, "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    where = Place(rank, world, rank, local_world)
    first, second = store_of(where, 30), store_of(where, 20)  # as in the launch, and in the run
    first.set(f"came/{rank}", "")
    second.wait([f"came/{other}" for other in range(world)])
    pipe.send(sorted(listening(os.getpid())))
    with suppress(EOFError):
        pipe.recv()


@pytest.mark.parametrize("host", ["name", "outer"])
@pytest.mark.parametrize("local_world", [1, 2])
def test_ranks_of_a_launcher_without_a_store_meet(host, local_world):
    """Slurm, DeepSpeed's launcher, mpirun: rank 0 hosts the store."""
    host = socket.gethostname() if host == "name" else outer_address()
    if host is None:
        pytest.skip("this machine has no address but the loopback's")
    with socket.create_server(("", 0)) as free:
        port = free.getsockname()[1]
    pipes, processes = [], []
    for rank in range(2):
        ours, theirs = context().Pipe()
        process = context().Process(target=meet, args=(rank, 2, local_world, host, port, theirs), daemon=True)
        process.start()
        pipes.append(ours)
        processes.append(process)
    found = [pipe.recv() if pipe.poll(60) else None for pipe in pipes]
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.close()
        process.join(10)
    assert found[1] == [] and len(found[0]) == 1
    if local_world == 2:
        assert found[0] == [("127.0.0.1", port)] and not beyond_loopback(set(found[0]))
    elif host == outer_address():
        assert found[0] == [(host, port)]
