"""From the blocks that a worker collated to one rank's part of a batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from galvatron.errors import GalvatronError
from galvatron.facts import content_of, digest_of_values
from galvatron.runtime import Part, Rows

_UNLIKE = (
    "collate_fn makes {name} without a row for each sample, and with other values for other {where}: pass "
    "whole_batches=True to the dataloader, so that it is made of all samples of a batch"
)

ByName = Callable[[Any], dict[str, Any]]
"""What a collated batch has for each argument of forward."""

_ROWWISE = (
    "collate_fn must give one row for each of the samples it is given, in their order and in sizes that do not depend "
    "on the others (pad to a fixed length); pass whole_batches=True for one that needs all samples of a batch"
)


def joined(blocks: Sequence[Any], rows: Rows, by_name: ByName, batched: Collection[str]) -> dict[str, Any]:
    """The blocks of a rank as one batch: rows laid end to end, and what has none from the first.

    Args:
        batched: the inputs that have one row for each sample.

    Raises:
        GalvatronError: a collated block has not one row for each of its samples, or blocks have unlike rows.
    """
    named = [by_name(block) for block in blocks]
    for found, block in zip(named, rows.wanted, strict=True):
        for name, value in found.items():
            if name in batched and isinstance(value, Tensor) and value.shape[:1] != (len(block),):
                raise GalvatronError(
                    f"collate_fn made {name!r} of shape {tuple(value.shape)} of {len(block)} samples: {_ROWWISE}"
                )
    if len(named) == 1:
        return named[0]
    for name, value in named[0].items():
        if name not in batched and isinstance(value, Tensor):
            for other in named[1:]:
                if not (isinstance(found := other.get(name), Tensor) and torch.equal(found, value)):
                    raise GalvatronError(_UNLIKE.format(name=repr(name), where="parts of the batch"))
    try:
        return {
            name: torch.cat([found[name] for found in named]) if name in batched else value
            for name, value in named[0].items()
        }
    except (KeyError, TypeError, RuntimeError) as error:
        raise GalvatronError(
            f"what collate_fn made of the samples of a batch does not fit together: {error}; {_ROWWISE}"
        ) from error


ONE_LENGTH = (
    "the batch (a collate_fn that pads to the longest sample must pad to a fixed length, or whole_batches=True)"
)
"""How a batch of parts is called where ranks differ on its shape."""


def whole_shapes(part: Part, batched: Collection[str]) -> dict[str, Any]:
    """A part with the shapes that the whole batch has."""
    return {
        name: value[:1].expand(part.samples, *value.shape[1:]) if name in batched else value
        for name, value in part.items()
    }


def digests(values: Mapping[str, Any], rows: Rows, batched: Collection[str]) -> dict[tuple[int, ...], str]:
    """Of each block, what its values are, in a word; and of no samples, those without rows."""
    found: dict[tuple[int, ...], str] = {}
    at = 0
    tensors = {name: values[name] for name in sorted(batched) if isinstance(values.get(name), Tensor)}
    for block in rows.wanted:
        own = {name: value[at : at + len(block)] for name, value in tensors.items()}
        found[block] = f"{content_of(own)} {digest_of_values(own.values())}"
        at += len(block)
    rest = {name: values[name] for name in sorted(values) if name not in batched and isinstance(values[name], Tensor)}
    if rest:
        found[()] = f"{content_of(rest)} {digest_of_values(rest.values())}"
    return found


def check_shared(ranks: Sequence[Mapping[tuple[int, ...], str]]) -> None:
    """
    Raises:
        GalvatronError: of what several ranks have they have other values.
    """
    first: dict[tuple[int, ...], int] = {}
    for rank, found in enumerate(ranks):
        for block, digest in found.items():
            other = first.setdefault(block, rank)
            if ranks[other][block] != digest and not block:
                raise GalvatronError(_UNLIKE.format(name="something", where=f"samples (ranks {other} and {rank})"))
            if ranks[other][block] != digest:
                raise GalvatronError(
                    f"rank {other} and rank {rank} read the same samples of the first batch, from number {block[0]} "
                    "on, and got other values: what a data set and collate_fn give must follow from the index; random "
                    "numbers of torch, numpy and random are seeded for each sample, those of a generator that they "
                    "keep are not"
                )
