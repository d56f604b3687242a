"""The emulated network leaves nothing behind, whatever ends the program. `ip` and `tc` are fakes: no root is needed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from common import network
from common.launch import JobFailed, Launcher
from common.network import NetworkUnavailable, remove_stale, two_nodes

BENCHMARKS = Path(network.__file__).parent.parent
FAKE = """#!/bin/sh
# Namespaces are files in $FAKE_NETNS, commands run where they are; the command numbered $FAKE_FAIL fails.
echo "$@" >> "$FAKE_NETNS/.log"
if [ "$(wc -l < "$FAKE_NETNS/.log")" = "${FAKE_FAIL:-none}" ]; then echo "Operation not permitted" >&2; exit 1; fi
[ "$1" = netns ] || exit 0
case "$2" in
    add) set -C; : > "$FAKE_NETNS/$3" ;;
    del) rm "$FAKE_NETNS/$3" ;;
    list) ls "$FAKE_NETNS" ;;
    exec) [ -e "$FAKE_NETNS/$3" ] || exit 1; shift 3; exec "$@" ;;
esac
"""


@pytest.fixture
def namespaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder in which the fake keeps its namespaces; a test must leave none."""
    tools, folder = tmp_path / "tools", tmp_path / "netns"
    tools.mkdir()
    folder.mkdir()
    for tool in ("ip", "tc"):
        script = tools / tool
        script.write_text(FAKE)
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_NETNS", str(folder))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    yield folder
    assert left(folder) == []


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".log")


def commands(folder: Path) -> list[str]:
    return (folder / ".log").read_text().splitlines()


def test_nodes_are_joined_by_a_limited_link(namespaces: Path) -> None:
    with two_nodes("200mbit") as (a, b):
        assert left(namespaces) == [a.namespace, b.namespace]
        assert a.command("true") == ["ip", "netns", "exec", a.namespace, "true"]
    limits = [line for line in commands(namespaces) if line.startswith("qdisc")]
    assert len(limits) == 2 and all("tbf rate 200mbit" in line for line in limits)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_error_inside_leaves_nothing(namespaces: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), two_nodes("200mbit"):
        raise error


def test_a_refused_command_leaves_nothing_and_says_which(
    namespaces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with two_nodes("200mbit"):
        made = len(commands(namespaces))
    for number in range(1, made + 1):
        (namespaces / ".log").unlink()
        monkeypatch.setenv("FAKE_FAIL", str(number))
        with pytest.raises(NetworkUnavailable, match="failed: Operation not permitted"), two_nodes("200mbit"):
            pass
        assert left(namespaces) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing(namespaces: Path, number: signal.Signals) -> None:
    code = (
        "import os, sys, time\n"
        "from common.network import two_nodes\n"
        "os.geteuid = lambda: 0\n"
        "with two_nodes('200mbit'):\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=BENCHMARKS, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        assert len(left(namespaces)) == 2
        process.send_signal(number)
        assert process.wait(30) != 0


def test_what_a_killed_run_left_is_removed_by_the_next(namespaces: Path) -> None:
    code = (
        "import os, signal\n"
        "from common.network import two_nodes\n"
        "os.geteuid = lambda: 0\n"
        "with two_nodes('200mbit'):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=BENCHMARKS).returncode == -signal.SIGKILL
    killed = left(namespaces)
    assert len(killed) == 2
    with two_nodes("200mbit") as nodes:
        assert left(namespaces) == sorted(node.namespace for node in nodes)
        assert not set(killed) & set(left(namespaces))


def test_only_own_namespaces_of_dead_runs_are_stale(namespaces: Path) -> None:
    container, pid = network._container(), os.getpid()
    dead, reused = f"galvatron-bench-{container}-{2**30}-1-a", f"galvatron-bench-{container}-{pid}-1-b"
    others = ["somebody-elses", f"galvatron-bench-1-{2**30}-1-a", f"galvatron-bench-{network._identity(pid)}-a"]
    for name in (dead, reused, *others):
        (namespaces / name).touch()
    assert sorted(remove_stale()) == sorted([dead, reused])
    assert left(namespaces) == sorted(others)
    for name in others:
        (namespaces / name).unlink()


def test_without_root_or_tools_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NetworkUnavailable, match="there is no `ip`"), two_nodes("200mbit"):
        pass
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NetworkUnavailable, match="need root"), two_nodes("200mbit"):
        pass


RANK = """
import json, os, pathlib, sys, time
job = json.loads(sys.argv[sys.argv.index("--job") + 1])
rank = int(os.environ["RANK"])
pathlib.Path(job["pids"], str(rank)).write_text(str(os.getpid()))
if job.get("dies") == rank:
    sys.exit("this rank dies")
if "dies" in job:
    time.sleep(60)
if rank == 0:
    pathlib.Path(os.environ["JOB_RESULT"]).write_text(json.dumps({
        name: os.environ[name] for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GLOO_SOCKET_IFNAME", "MASTER_ADDR")
    }))
"""


@pytest.fixture
def rank_script(tmp_path: Path) -> Path:
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    (tmp_path / "pids").mkdir()
    return script


def test_a_job_runs_on_both_nodes(namespaces: Path, rank_script: Path) -> None:
    pids = rank_script.parent / "pids"
    with two_nodes("200mbit") as nodes:
        result = Launcher(rank_script, nodes).run({"pids": str(pids)}, [2, 1])
    assert result == {
        "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "veth-a", "MASTER_ADDR": "10.99.0.1"
    }  # fmt: skip
    assert sorted(path.name for path in pids.iterdir()) == ["0", "1", "2"]


def test_a_rank_that_dies_ends_the_job(namespaces: Path, rank_script: Path) -> None:
    pids = rank_script.parent / "pids"
    with two_nodes("200mbit") as nodes, pytest.raises(JobFailed, match="rank 2 ended with 1:\nthis rank dies"):
        Launcher(rank_script, nodes).run({"pids": str(pids), "dies": 2}, [2, 1])
    for path in pids.iterdir():
        assert not Path("/proc", path.read_text()).exists()
