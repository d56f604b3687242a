"""Profiles as JSON that people can read and send each other: one measurement on each line.

    {"format": "galvatron-profile", "version": 1, "profiles": [
     {"name": "local:1x4", "environment": {...}, "taken": "2026-11-27T10:00:00+00:00", "facts": {...},
      "measurements": [
       {"name": "product", "how": "nt", "dtype": "f32", "sizes": {"m": 512, ...}, "seconds": 0.0081, ...},
       ...

A document is data, and checked as what a stranger may have written: nothing in it is executed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from galvatron.errors import ClusterError
from galvatron.ir.documents import read_json, shown
from galvatron.ir.records import fields_of, read_members
from galvatron.profiler.profile import ENTRIES, LayerTime, Measurement, Overlap, Profile

FORMAT, VERSION = "galvatron-profile", 1

_PROFILES = 256
"""Profiles of one document at the most."""

_ENTRIES = ("measurements", "overlaps", "classes")


def print_profiles(profiles: Iterable[Profile]) -> str:
    """The document of some profiles."""
    parts = ",\n".join(map(_profile_text, profiles))
    return f'{{"format": "{FORMAT}", "version": {VERSION}, "profiles": [\n{parts}\n]}}\n'


def read_profiles(text: str, what: str = "profile") -> list[Profile]:
    """The profiles of a document.

    Args:
        what: it is, for messages; such as the name of a file.

    Raises:
        ParseError: malformed JSON.
        ClusterError: it is no document of profiles, of another version, or a profile in it cannot be.
    """
    document = read_json(text, what)
    if not is_document(document):
        raise ClusterError(f"{what} is no document of profiles: it has no 'format' {FORMAT!r}")
    if (version := document.get("version")) != VERSION:
        raise ClusterError(
            f"{what} has version {shown(version)} of the format, and this is one that reads version {VERSION}; "
            "measure again with galvatron profile hardware"
        )
    found = document.get("profiles")
    if not isinstance(found, list) or len(found) > _PROFILES or document.keys() > {"format", "version", "profiles"}:
        raise ClusterError(f"{what} must have 'format', 'version' and at most {_PROFILES} 'profiles', and nothing else")
    profiles = [_read_profile(members, what) for members in found]
    for profile in profiles:
        profile.check()
    return profiles


def is_document(value: object) -> bool:
    """Whether a JSON value says that it is a document of profiles."""
    return isinstance(value, dict) and value.get("format") == FORMAT


def _read_profile(members: Any, what: str) -> Profile:
    if isinstance(members, dict):
        members = {**_pairs(members, "facts"), **{n: _entries(n, members[n]) for n in _ENTRIES if n in members}}
    return read_members(Profile, members, what, ClusterError)


def _entries(name: str, values: Any) -> Any:
    if not isinstance(values, list) or len(values) > ENTRIES:
        raise ClusterError(f"profile field {name!r} must be a list of at most {ENTRIES} entries")
    return [_pairs(value, "sizes") for value in values]


def _pairs(members: Any, name: str) -> Any:
    """Members of which one is a table: an object in JSON, pairs in a record."""
    if isinstance(members, dict) and isinstance(members.get(name), dict):
        return {**members, name: [[key, value] for key, value in members[name].items()]}
    return members


def _profile_text(profile: Profile) -> str:
    lines = [
        f' {{"name": {json.dumps(profile.name)}',
        f'  "environment": {_line(profile.environment)}',
        f'  "taken": {json.dumps(profile.taken)}',
        f'  "facts": {json.dumps(_value(profile.facts))}',
        *(f'  "{name}": {_list_text(getattr(profile, name))}' for name in _ENTRIES),
    ]
    return ",\n".join(lines) + "}"


def _list_text(entries: Sequence[Measurement | Overlap | LayerTime]) -> str:
    if not entries:
        return "[]"
    return "[\n" + ",\n".join(f"   {_line(entry)}" for entry in entries) + "\n  ]"


def _line(record: Any) -> str:
    """A record on one line, times to four digits: no clock knows more."""
    members = {f.name: getattr(record, f.name) for f in fields_of(type(record))}
    return json.dumps({name: _value(value) for name, value in members.items()})


def _value(value: Any) -> Any:
    if isinstance(value, tuple):
        return {name: int(n) if n == int(n) else n for name, n in value}
    return float(f"{value:.4g}") if isinstance(value, float) else value
