"""A network of two levels on one machine: two nodes, joined by a link of limited rate.

A node is a network namespace; a veth pair joins the two, and a token bucket (`tc ... tbf`) at both ends limits what
crosses it. Ranks of one node talk over the namespace's own loopback, at memory speed. Needs Linux, root, `ip` and `tc`.

Namespaces outlive the processes that made them, so each carries the identity of its maker in its name: whoever comes
next removes those whose maker is gone, together with the ranks that still run inside.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

_PREFIX = "galvatron-bench"
_NAME = re.compile(rf"{_PREFIX}-(\d+-\d+-\d+)-[ab]")
_BURST = "128kb"
_LATENCY = "100ms"
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class NetworkUnavailable(Exception):
    """This machine or user cannot make the network; the message says what is missing."""


@dataclass(frozen=True)
class Node:
    """One of the two nodes: its namespace, and its end of the link. Without a namespace it is this machine."""

    namespace: str
    interface: str
    address: str

    def command(self, *words: str) -> list[str]:
        """A command that runs on this node."""
        return ["ip", "netns", "exec", self.namespace, *words] if self.namespace else [*words]


HERE = Node("", "lo", "127.0.0.1")
"""This machine as it is, whose ranks talk over its own loopback."""


@contextmanager
def two_nodes(rate: str) -> Iterator[tuple[Node, Node]]:
    """Makes both nodes and the link between them, and removes them whatever happens inside.

    SIGTERM and SIGHUP end the program as Ctrl-C does, by an exception, while the nodes exist. Call it from the main
    thread.

    Args:
        rate: of the link in each direction, as `tc` writes it: "200mbit".

    Raises:
        NetworkUnavailable: no Linux, root or tools, or the kernel refused a step.
    """
    _check_tools()
    remove_stale()
    a, b = (
        Node(f"{_PREFIX}-{_identity(os.getpid())}-{end}", f"veth-{end}", f"10.99.0.{number}")
        for number, end in ((1, "a"), (2, "b"))
    )
    with _signals_as_exceptions():
        try:
            _make(a, b, rate)
            yield a, b
        finally:
            with _signals_ignored():
                for node in (a, b):
                    _remove(node.namespace)


def remove_stale() -> list[str]:
    """Removes the namespaces of earlier runs that could not, killed ones for instance; returns their names.

    Those of a run that goes on stay, and so do those made in another container, whose processes cannot be seen here.
    """
    stale = []
    for line in _run("ip", "netns", "list").splitlines():
        match = _NAME.match(line)
        if match is None:
            continue
        container, pid, _ = match[1].split("-")
        if container == _container() and _identity(int(pid)) != match[1]:
            _remove(match[0])
            stale.append(match[0])
    return stale


def _check_tools() -> None:
    if os.name != "posix" or not Path("/proc/self/stat").exists():
        raise NetworkUnavailable("network namespaces need Linux")
    if os.geteuid() != 0:
        raise NetworkUnavailable("network namespaces need root")
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            raise NetworkUnavailable(f"there is no `{tool}` (package iproute2)")


def _make(a: Node, b: Node, rate: str) -> None:
    for node in (a, b):
        _run("ip", "netns", "add", node.namespace)
    # The pair is made inside the namespaces: its names are then nobody else's business, and it goes with them.
    _run("ip", "-n", a.namespace, "link", "add", a.interface, "type", "veth", "peer", "name", b.interface,
         "netns", b.namespace)  # fmt: skip
    for node in (a, b):
        _run("ip", "-n", node.namespace, "addr", "add", f"{node.address}/24", "dev", node.interface)
        _run("ip", "-n", node.namespace, "link", "set", "lo", "up")
        _run("ip", "-n", node.namespace, "link", "set", node.interface, "up")
        _run(*node.command("tc", "qdisc", "replace", "dev", node.interface, "root", "tbf", "rate", rate,
                           "burst", _BURST, "latency", _LATENCY))  # fmt: skip


def _remove(namespace: str) -> None:
    """Ends what runs in a namespace and deletes it, and the ends of links in it; does nothing when there is none."""
    inside = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True)
    for pid in inside.stdout.split():
        try:
            os.kill(int(pid), signal.SIGKILL)
        except ProcessLookupError:
            continue
    subprocess.run(["ip", "netns", "del", namespace], capture_output=True)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise NetworkUnavailable(f"`{' '.join(command)}` failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _identity(pid: int) -> str:
    """What names a process for good: its container, its id, and when it started. Only the container if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return _container()
    started = text.rpartition(")")[2].split()[19]  # in clock ticks since boot
    return f"{_container()}-{pid}-{started}"


def _container() -> str:
    """The number of the namespace in which process ids here mean something."""
    return str(os.stat("/proc/self/ns/pid").st_ino)


@contextmanager
def _signals_as_exceptions() -> Iterator[None]:
    def end(number: int, frame: FrameType | None) -> None:
        for other in _ENDING:  # the first one ends the program; more of them would only disturb it
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    with _handling(_ENDING, end):
        yield


@contextmanager
def _signals_ignored() -> Iterator[None]:
    """Nothing must stop a removal that has begun."""
    with _handling(_ENDING, signal.SIG_IGN):
        yield


@contextmanager
def _handling(numbers: Sequence[signal.Signals], handler: object) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in numbers}  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
