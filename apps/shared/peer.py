"""Which account of this machine has the other end of a local TCP connection, found without root.

Linux: the kernel knows the account of each TCP socket, and answers a question about one (sock_diag(7); `ss` uses it).
/proc/net/tcp says the same, but costs 3 ms and more instead of 0.05, since it lists all sockets.
macOS: only root may ask about any socket, but each account may list those of its own processes. So there the answer is
either the own account or unknown.

Not covered: an end on another machine or in another network namespace (a container); its account is unknown.
"""

import contextlib
import ipaddress
import os
import socket
import struct
import sys
from pathlib import Path

import psutil

Address = tuple[str, int]  # an IP address and a port

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h
NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLM_F_REQUEST = 1
ESTABLISHED = 1
NO_COOKIE = 0xFFFFFFFF
HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port id
QUESTION = struct.Struct("=BBBBI")  # family, protocol, extensions, padding, states
PORTS = struct.Struct("!HH")
ADDRESS_BYTES = 16
INTERFACE = struct.Struct("=III")  # its index, and the socket's cookie
REPLY = struct.Struct("=BBBB")  # family, state, timer, retransmits
NUMBERS = struct.Struct("=IIIII")  # expires, two queues, uid, inode
SOCKET_ID_BYTES = PORTS.size + 2 * ADDRESS_BYTES + INTERFACE.size
TIMEOUT_SECONDS = 1.0

OVERFLOW_UID = Path("/proc/sys/kernel/overflowuid")  # stands for every account outside of a user namespace


class Peers:
    """Finds accounts. One instance for each process that asks: on macOS it tries the process found last first."""

    def __init__(self) -> None:
        self._last: psutil.Process | None = None

    def account(self, client: Address, server: Address) -> int | None:
        """The uid at the client's end of an established connection; None if it is unknown.

        On macOS it takes tenths of a second for a connection of another account.
        """
        ends = _plain(client), _plain(server)
        if sys.platform == "linux":
            return account_of_socket(*ends)
        return os.geteuid() if self._is_own(*ends) else None

    def _is_own(self, client: Address, server: Address) -> bool:
        for process in (self._last, *psutil.process_iter()):
            if process is not None and (client, server) in connections_of(process):
                self._last = process
                return True
        return False


def account_of_socket(local: Address, remote: Address) -> int | None:
    """Asks Linux for the account of the socket with these ends.

    A socket that its process has closed has uid 0 and inode 0: it belongs to nobody.
    """
    try:
        reply = _ask_kernel(local, remote)
    except (OSError, struct.error):  # no such kernel module, no such address
        return None
    _, kind, *_ = HEADER.unpack_from(reply)
    if kind != SOCK_DIAG_BY_FAMILY or len(reply) < HEADER.size + REPLY.size + SOCKET_ID_BYTES + NUMBERS.size:
        return None  # an error number: there is no such socket
    _, state, _, _ = REPLY.unpack_from(reply, HEADER.size)
    *_, uid, inode = NUMBERS.unpack_from(reply, HEADER.size + REPLY.size + SOCKET_ID_BYTES)
    return int(uid) if state == ESTABLISHED and inode and uid != _overflow_uid() else None


def connections_of(process: psutil.Process) -> set[tuple[Address, Address]]:
    """The TCP connections of a process as (local, remote); none of a process that may not be examined."""
    try:
        found = process.net_connections("tcp")
    except psutil.Error:
        return set()
    return {(_plain(each.laddr), _plain(each.raddr)) for each in found if each.laddr and each.raddr}


def _ask_kernel(local: Address, remote: Address) -> bytes:
    family = socket.AF_INET6 if ":" in local[0] else socket.AF_INET
    ends = [socket.inet_pton(family, host).ljust(ADDRESS_BYTES, b"\0") for host, _ in (local, remote)]
    socket_id = PORTS.pack(local[1], remote[1]) + b"".join(ends) + INTERFACE.pack(0, NO_COOKIE, NO_COOKIE)
    question = QUESTION.pack(family, socket.IPPROTO_TCP, 0, 0, 1 << ESTABLISHED) + socket_id
    header = HEADER.pack(HEADER.size + len(question), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as kernel:
        kernel.settimeout(TIMEOUT_SECONDS)
        kernel.sendto(header + question, (0, 0))
        return kernel.recv(4096)


def _plain(address: tuple[object, ...]) -> Address:
    """With an IPv4 address in its usual form, also if an IPv6 socket reports it."""
    host, port = str(address[0]), int(str(address[1]))
    with contextlib.suppress(ValueError):
        mapped = ipaddress.IPv6Address(host).ipv4_mapped
        return str(mapped or host), port
    return host, port


def _overflow_uid() -> int:
    try:
        return int(OVERFLOW_UID.read_text())
    except (OSError, ValueError):
        return 65534
