"""The sockets of a run: which address each of them listens at.

On one machine that is the loopback's. Over several it is that of one interface: the one that
GLOO_SOCKET_IFNAME names, else the one that leads to rank 0. Nobody who reaches a socket is asked who he is:
torch has no password there. What a launcher opens for itself is its own (torchrun: all interfaces).
"""

import errno
import os
import socket
from datetime import timedelta
from functools import cache

import psutil
import torch.distributed as dist

from sae_dist.core.errors import SaeDistError
from sae_dist.core.place import Place
from sae_dist.core.text import print_line

LOCAL = "127.0.0.1"
INTERFACE = "GLOO_SOCKET_IFNAME"
NCCLS_INTERFACE = "NCCL_SOCKET_IFNAME"
AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"


def local_store() -> dist.TCPStore:
    """Return a store for processes of this machine; this one hosts it, on a port that the system chose."""
    listener = socket.create_server((LOCAL, 0))
    port = listener.getsockname()[1]
    return dist.TCPStore(
        LOCAL, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
    )


def store_of(where: Place, timeout_s: float) -> dist.Store:
    """Return the store of all ranks: the launcher's, or one that rank 0 hosts at MASTER_ADDR and MASTER_PORT.

    Raises:
        SaeDistError: the port is in use.
    """
    _slurm_rendezvous()
    timeout = timedelta(seconds=timeout_s)
    if os.environ.get(AGENT_STORE) == str(True):
        return _env_store(where, timeout)
    if _is_one_machine(where):
        os.environ["MASTER_ADDR"] = LOCAL
    if where.rank:
        return _env_store(where, timeout)
    store = _hosted(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    store.set_timeout(timeout)
    return store


def choose_interface(where: Place) -> None:
    """Choose the interface of gloo, and on one machine of NCCL, by their variables, unless they are set."""
    if _is_one_machine(where):
        name = _interface_of(LOCAL)
        if name is not None:
            os.environ.setdefault(INTERFACE, name)
            os.environ.setdefault(NCCLS_INTERFACE, f"={name}")
        return
    if INTERFACE in os.environ:
        return
    # What gloo takes else is the address of this host's name, which in /etc/hosts is often the loopback's.
    own = _own_address(os.environ["MASTER_ADDR"])
    if own is None or _is_loopback(own) and not _is_loopback(os.environ["MASTER_ADDR"]):
        return
    name = _interface_of(own)
    if name is not None:
        os.environ[INTERFACE] = name


def _is_one_machine(where: Place) -> bool:
    return where.local_world == where.world


def _slurm_rendezvous() -> None:
    """Set MASTER_ADDR and MASTER_PORT inside a Slurm step, as torch expects them; elsewhere they are set."""
    if "MASTER_ADDR" not in os.environ:
        os.environ["MASTER_ADDR"] = os.environ["SLURM_LAUNCH_NODE_IPADDR"]
        os.environ["MASTER_PORT"] = str(20000 + int(os.environ["SLURM_JOB_ID"]) % 20000)


def _env_store(where: Place, timeout: timedelta) -> dist.Store:
    store, _, _ = next(dist.rendezvous("env://", where.rank, where.world, timeout=timeout))
    return store


@cache
def _hosted(host: str, port: int) -> dist.TCPStore:
    """Return the store that this process hosts; the same for as long as it lives."""
    listener = _listener(host, port)
    return dist.TCPStore(
        host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
    )


def _listener(host: str, port: int) -> socket.socket:
    """Return a socket that listens at the address that the other ranks are given for this one.

    Where that cannot be found out it listens at all addresses, as torch itself does, and says so.
    """
    found = [(family, place) for family, _, _, _, place in _resolved(host, port)]
    others = [each for each in found if not _is_loopback(str(each[1][0]))]
    if not others and not _is_loopback(host):
        found = []  # A name that means the loopback here, and something else elsewhere.
    for family, place in others or found:
        try:
            return socket.create_server(place[:2], family=family)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise SaeDistError(
                    f"MASTER_PORT={port} is in use on this machine; give another one, or end what uses it"
                ) from None
    print_line(
        f"MASTER_ADDR={host} is no address of this machine: the run's store listens at all of its addresses; "
        "give one that the other machines reach"
    )
    return socket.create_server(("", port))


def _resolved(host: str, port: int) -> list[tuple[int, int, int, str, tuple[str, int]]]:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)  # type: ignore[return-value]
    except OSError:
        return []


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def _own_address(host: str) -> str | None:
    """Return this machine's address on the way to a host; nothing is sent. None: there is no way."""
    for family, _, _, _, place in _resolved(host, 9):
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(place)
                return str(probe.getsockname()[0])
            except OSError:
                continue
    return None


def _interface_of(address: str) -> str | None:
    """Return the name of the interface that has an address."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address.split("%")[0] == address for each in addresses):
            return name
    return None
