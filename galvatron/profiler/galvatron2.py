"""Profiles of Galvatron-2: a directory of its JSON files as a profile of ours.

    allreduce_bandwidth_2nodes_8gpus_per_node.json   {"allreduce_size_4_consec_0": 16.22, ...}
    p2p_bandwidth_2nodes_8gpus_per_node.json         {"pp_size_4": 8.02, ...}
    sp_time_1nodes_8gpus_per_node.json               {"all2all_size_8_16MB_time": 0.2003, ...}
    overlap_coefficient.json                         {"overlap_coe": 1.1256}

Bandwidths are bus bandwidths of nccl-tests in GB/s (10⁹ bytes), means over messages from 16 to 512 MiB; times are in
milliseconds, of messages in MiB. Groups of `consec` 1 follow each other, those of 0 are as far apart as can be, and so
are those of a pipeline. Which device it was the files do not say.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from galvatron.errors import ClusterError, ParseError, did_you_mean
from galvatron.ir import limits, presets
from galvatron.ir.documents import read_json, shown
from galvatron.ir.files import read_text
from galvatron.profiler.profile import Environment, Measurement, Profile

MEAN_BYTES = 2**27
"""The message that stands for those of 16 to 512 MiB, over which a bandwidth is a mean."""

_SHAPE = re.compile(r"(allreduce_bandwidth|p2p_bandwidth|sp_time)_([0-9]{1,6})nodes_([0-9]{1,6})gpus_per_node\.json")
_OVERLAP = "overlap_coefficient.json"
_KEYS = {
    "allreduce_bandwidth": re.compile(r"allreduce_size_([0-9]{1,6})_consec_([01])"),
    "p2p_bandwidth": re.compile(r"pp_size_([0-9]{1,6})"),
    "sp_time": re.compile(r"(allreduce|all2all)_size_([0-9]{1,6})_([0-9]{1,6})MB_time"),
}
_NOT_OURS = (
    (r"computation_profiling_.*", "times of a model's layers: ours are by the fingerprint of a layer's graph, which "
     "the file does not have; kernels are priced by the preset of the device"),
    (r"memory_profiling_.*", "memory of a model's layers: what a plan takes follows from the program"),
    (r"galvatron_config_.*", "a plan: Plan.from_galvatron2 reads it"),
)  # fmt: skip

_GB_PER_S = (1e-3, 1e4)
_MS = (1e-4, 1e6)
_ALIKE = 8.0
"""By how much times and bandwidths of one shape of groups may differ, before their units are in doubt."""


@dataclass(frozen=True)
class Imported:
    """A profile, and the files or keys that are not in it, with the reason."""

    profile: Profile
    left_out: tuple[tuple[str, str], ...]


@dataclass
class _Found:
    """What files say of the job that is asked for, by (name, group, stride)."""

    rates: dict[tuple[str, int, int], float] = field(default_factory=dict)
    times: dict[tuple[str, int, int], dict[int, float]] = field(default_factory=dict)
    slowdown: float | None = None


def import_directory(path: str | os.PathLike[str], device: str, shape: tuple[int, int] | None = None) -> Imported:
    """The profile in a directory.

    Args:
        device: the preset of the device, whose kernels the files know nothing of.
        shape: nodes and devices of each, where the directory has several; default: the most devices.

    Raises:
        ClusterError: no such directory, preset or profile, or a file has what no machine does; names file and key.
        ParseError: malformed JSON.
        OSError: a file cannot be read.
    """
    directory = Path(path)
    if device not in presets.PRESETS:
        raise ClusterError(f"unknown device {device!r}; {did_you_mean(device, presets.PRESETS)}")
    if not directory.is_dir():
        raise ClusterError(f"{path} is no directory; name the one with the JSON files of Galvatron-2")
    files = sorted(directory.glob("*.json"))
    found_shapes = {(int(m[2]), int(m[3])) for f in files if (m := _SHAPE.fullmatch(f.name)) and m[1] != "sp_time"}
    if not found_shapes:
        raise ClusterError(f"{path} has no allreduce_bandwidth_…nodes_…gpus_per_node.json of Galvatron-2")
    nodes, per_node = shape or max(found_shapes, key=lambda found: (found[0] * found[1], found))
    if (nodes, per_node) not in found_shapes:
        known = ", ".join(f"{n}x{d}" for n, d in sorted(found_shapes))
        raise ClusterError(f"{path} has no bandwidths of {nodes}x{per_node} devices; it has {known}")
    found, left_out = _Found(), []
    for file in sorted(files, key=lambda f: _nearness(f.name, nodes)):
        if reason := _take(file, found, nodes, per_node):
            left_out.append((file.name, reason))
    _check_units(found, directory)
    left_out += [
        (f"bandwidth of all-reduces of {size} devices, {stride} apart", "there are times of the same groups by size")
        for name, size, stride in sorted(found.rates.keys() & found.times.keys())
    ]
    taken = max(f.stat().st_mtime for f in files)
    profile = Profile(
        f"{device}:{nodes}x{per_node}",
        _environment(device, nodes, per_node),
        datetime.fromtimestamp(taken, timezone.utc).isoformat(timespec="seconds"),
        () if found.slowdown is None else (("overlap_slowdown", found.slowdown),),
        tuple(_measurements(found, nodes, per_node)),
    )
    profile.check()
    return Imported(profile, tuple(left_out))


def _environment(device: str, nodes: int, per_node: int) -> Environment:
    preset = presets.device(device)
    return Environment(device, preset.kind, preset.memory_bytes, 1, 1, nodes, per_node, "nccl", "unknown")


def _nearness(name: str, nodes: int) -> tuple[int, str]:
    """Files of the whole job first: what they say counts."""
    match = _SHAPE.fullmatch(name)
    return (abs(int(match[2]) - nodes) if match else 0), name


def _take(file: Path, found: _Found, nodes: int, per_node: int) -> str:
    """Takes what a file says; returns why it is not taken, if so."""
    if file.name == _OVERLAP:
        members = _members(file)
        if members.keys() != {"overlap_coe"}:
            raise ClusterError(f"{file} must have 'overlap_coe' and nothing else")
        found.slowdown = _number(file, "overlap_coe", members["overlap_coe"], (1.0, 100.0), "a slowdown")
        return ""
    match = _SHAPE.fullmatch(file.name)
    if match is None:
        reasons = (reason for pattern, reason in _NOT_OURS if re.fullmatch(pattern, file.name))
        return next(reasons, "no file of Galvatron-2 is called so")
    kind, its_nodes, its_per_node = match[1], int(match[2]), int(match[3])
    if its_per_node != per_node or its_nodes > nodes:
        return f"of {its_nodes}x{its_per_node} devices, not {nodes}x{per_node}"
    world = its_nodes * its_per_node
    for key, value in _members(file).items():
        if (parts := _KEYS[kind].fullmatch(key)) is None:
            raise ClusterError(f"{file}: key {shown(key)} is not one of {_KEYS[kind].pattern}")
        size = int(parts[2] if kind == "sp_time" else parts[1])
        if size < 2 or world % size:
            raise ClusterError(f"{file}: {key!r} has groups of {size} of {world} devices")
        if kind == "sp_time":
            name = "all_reduce" if parts[1] == "allreduce" else "all_to_all"
            if not 1 <= int(parts[3]) <= 2**20:
                raise ClusterError(f"{file}: {key!r} is of no size from 1 MB to 1 TB")
            milliseconds = _number(file, key, value, _MS, "milliseconds")
            found.times.setdefault((name, size, 1), {}).setdefault(int(parts[3]) * 2**20, milliseconds / 1e3)
        else:
            name = "all_reduce" if kind == "allreduce_bandwidth" else "p2p"
            stride = 1 if kind == "allreduce_bandwidth" and parts[2] == "1" else world // size
            found.rates.setdefault((name, size, stride), _number(file, key, value, _GB_PER_S, "GB/s") * 1e9)
    return ""


def _members(file: Path) -> Mapping[str, object]:
    try:
        document = read_json(read_text(file), str(file))
    except UnicodeDecodeError:
        raise ClusterError(f"{file} is not a text file") from None
    if not isinstance(document, dict) or len(document) > limits.LIST_ITEMS:
        raise ParseError(f"{file} must be a JSON object of at most {limits.LIST_ITEMS} numbers")
    return document


def _number(file: Path, key: str, value: object, between: tuple[float, float], unit: str) -> float:
    least, most = between
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not least <= value <= most:
        raise ClusterError(f"{file}: {key!r} is {shown(value)}, which is not {unit} from {least:g} to {most:g}")
    return float(value)


def _check_units(found: _Found, directory: Path) -> None:
    """Times and bandwidths of one shape of groups must be of one machine.

    Raises:
        ClusterError: they are too far apart.
    """
    for shape in sorted(found.rates.keys() & found.times.keys()):
        (name, size, _), times = shape, found.times[shape]
        nbytes = min(times, key=lambda each: abs(each - MEAN_BYTES))
        expected = _rated_s(name, size, nbytes, found.rates[shape])
        if not 1 / _ALIKE <= times[nbytes] / expected <= _ALIKE:
            raise ClusterError(
                f"{directory}: an all-reduce of {nbytes >> 20} MiB among {size} devices takes {times[nbytes]:.3g} s in "
                f"sp_time_…json and {expected:.3g} s by the rate in allreduce_bandwidth_…json: rates must be bus "
                "bandwidths in GB/s, and times milliseconds"
            )


def _rated_s(name: str, size: int, nbytes: float, rate: float) -> float:
    """Seconds by a bus bandwidth: of an all-reduce each byte goes over a link 2(n-1)/n times."""
    return nbytes / rate * (2 * (size - 1) / size if name == "all_reduce" else 1)


def _measurements(found: _Found, nodes: int, per_node: int) -> Iterator[Measurement]:
    for (name, size, stride), times in sorted(found.times.items()):
        for nbytes, seconds in sorted(times.items()):
            yield _measurement(name, size, stride, nbytes, seconds)
    across = found.rates.get(("all_reduce", nodes * per_node, 1))
    for (name, size, stride), rate in sorted(found.rates.items()):
        if (name, size, stride) in found.times:
            continue
        if across is not None and size * stride > per_node:
            # One group was measured at a time. In training all of them send, and leave a node by the same cards.
            rate = min(rate, across / min(stride, per_node))
        yield _measurement(name, size, stride, MEAN_BYTES, _rated_s(name, size, MEAN_BYTES, rate))


def _measurement(name: str, size: int, stride: int, nbytes: float, seconds: float) -> Measurement:
    how = ("one way" if size == 2 else "both ways") if name == "p2p" else ""
    sizes = (("group", float(size)), ("stride", float(stride)), ("bytes", float(nbytes)))
    return Measurement(name, how, "f32", sizes, seconds, 0.0, 1)
