"""Where profiles are kept: in the user's cache directory a document for each environment, and in files that are named.

A profile is merged into what a document has of the same environment, and stands beside those of others.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from galvatron.errors import ClusterError, GalvatronError
from galvatron.ir.files import cache_directory, read_text, write_text
from galvatron.profiler.document import print_profiles, read_profiles
from galvatron.profiler.profile import Environment, Profile


@dataclass(frozen=True)
class Found:
    """What a search for an environment found: a profile, or else why those that are there do not fit."""

    profile: Profile | None
    reasons: tuple[str, ...] = ()


def store_directory(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where profiles are kept that nobody gave a name: under `cache_dir`, or in the user's cache directory."""
    return cache_directory(cache_dir) / "profiles"


def store_file(environment: Environment, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The document of an environment: one each, so that jobs in different ones never write the same file."""
    device = re.sub(r"[^a-z0-9]+", "-", environment.device.lower()).strip("-")[:40] or "device"
    digest = hashlib.sha256(repr(_named_by(environment)).encode()).hexdigest()[:8]
    name = f"{device}-{environment.nodes}x{environment.devices_per_node}-{environment.backend}-{digest}.json"
    return store_directory(cache_dir) / name


def stored_files(cache_dir: str | os.PathLike[str] | None = None) -> list[Path]:
    """All documents of the store, in the order of their names."""
    directory = store_directory(cache_dir)
    return sorted(directory.glob("*.json")) if directory.is_dir() else []


def load(path: str | os.PathLike[str]) -> list[Profile]:
    """The profiles of a file.

    Raises:
        ParseError, ClusterError: it is no document of profiles; names the file.
        OSError: it cannot be read.
    """
    try:
        text = read_text(path)
    except UnicodeDecodeError:
        raise ClusterError(f"{path} is not a text file") from None
    except ValueError as error:
        raise ClusterError(f"cannot read {str(path)!r}: {error}") from None
    return read_profiles(text, str(path))


def require(path: str | os.PathLike[str], environment: Environment) -> None:
    """Sees to it that a file has a profile of an environment, to merge another one into.

    Raises:
        ClusterError: it has none; says in what those that it has differ.
        ParseError, OSError: see `load`.
    """
    found = find([Path(path)], environment)
    if found.profile is None:
        reasons = "; ".join(found.reasons) or f"{path} has no profiles"
        raise ClusterError(f"{reasons}; measure where that was taken, or name another file with -o")


def find(files: Iterable[Path], environment: Environment) -> Found:
    """The profile of an environment in some files, the latest of several; what cannot be read has a reason as well."""
    fitting: list[Profile] = []
    reasons: list[str] = []
    for path in files:
        try:
            profiles = load(path)
        except (GalvatronError, OSError) as error:
            reasons.append(f"{path.name} cannot be read: {error}")
            continue
        for profile in profiles:
            if different := environment.differences(profile.environment):
                reasons.append(f"{profile.name} in {path.name} is of another environment: {', '.join(different)}")
            else:
                fitting.append(profile)
    if not fitting:
        return Found(None, tuple(reasons))
    return Found(max(fitting, key=lambda profile: profile.taken), tuple(reasons))


def save(path: str | os.PathLike[str], profile: Profile) -> Profile:
    """Merges a profile into a file, which is replaced as a whole; returns it with what the file had of its environment.

    What is there and is no document of profiles is not written over.

    Raises:
        ParseError, ClusterError: see `load`.
        OSError: it cannot be written.
    """
    kept = load(path) if Path(path).exists() else []
    merged, others = _merged(kept, profile)
    write_text(path, print_profiles([*others, merged]))
    return merged


def _merged(kept: Sequence[Profile], profile: Profile) -> tuple[Profile, list[Profile]]:
    others: list[Profile] = []
    for earlier in kept:
        if profile.environment.differences(earlier.environment):
            others.append(earlier)
        else:
            profile = earlier.updated(profile)
    return profile, others


def _named_by(environment: Environment) -> tuple[object, ...]:
    """What the name of a document depends on: all but the memory, which is not quite the same after each start."""
    e = environment
    return e.device, e.kind, e.cores, e.threads, e.nodes, e.devices_per_node, e.backend, e.torch
