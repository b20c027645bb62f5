"""The sockets that processes listen at, from /proc."""

import ipaddress
import os
import socket
from pathlib import Path

import psutil

LISTENS = "0A"


def listening(pid: int) -> set[tuple[str, int]]:
    """Address and port of each TCP socket that a process listens at."""
    inodes = set()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(file)
        except FileNotFoundError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = set()
    for table in ("tcp", "tcp6"):  # of the process's own network namespace
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENS and fields[9] in inodes:
                address, port = fields[1].split(":")
                found.add((_address(address), int(port, 16)))
    return found


def listening_of(pid: int) -> set[tuple[str, int]]:
    """Those of a process and of all that it started."""
    found = set()
    for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
        try:
            found |= listening(process.pid)
        except (FileNotFoundError, ProcessLookupError, PermissionError):  # it has ended
            continue
    return found


def beyond_loopback(found: set[tuple[str, int]]) -> set[tuple[str, int]]:
    """Those that another machine may reach."""
    return {each for each in found if not ipaddress.ip_address(each[0]).is_loopback}


def _address(text: str) -> str:
    """An address as /proc has it: words of four bytes in the machine's order."""
    raw = b"".join(bytes.fromhex(text[at : at + 8])[::-1] for at in range(0, len(text), 8))
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)
