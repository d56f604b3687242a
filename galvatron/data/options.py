"""What a loader is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.utils.data import IterableDataset

from galvatron.errors import GalvatronError


@dataclass(frozen=True)
class Options:
    """Arguments of `compiled.dataloader` beside the data set."""

    batch_size: int
    collate_fn: Callable[[list[Any]], Any]
    shuffle: bool
    seed: int
    drop_last: bool
    workers: int
    prefetch: int
    timeout_s: float
    whole_batches: bool
    shards: int
    name: str

    def check(self, dataset: Any) -> None:
        """
        Raises:
            GalvatronError: an argument is wrong, or does not go with the data set.
        """
        for name, least in (("batch_size", 1), ("seed", 0), ("workers", 0), ("prefetch", 1), ("shards", 1)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise GalvatronError(f"{name} must be a whole number of at least {least}, not {value!r}")
        for name in ("shuffle", "drop_last", "whole_batches"):
            if not isinstance(getattr(self, name), bool):
                raise GalvatronError(f"{name} must be True or False, not {getattr(self, name)!r}")
        if type(self.timeout_s) not in (int, float) or not self.timeout_s >= 0:
            raise GalvatronError(f"timeout_s must be a number of seconds, 0 for none, not {self.timeout_s!r}")
        if not isinstance(self.name, str) or not self.name:
            raise GalvatronError(f"name must be a text, not {self.name!r}")
        if not callable(self.collate_fn):
            raise GalvatronError(f"collate_fn must be a function from samples to a batch, not {self.collate_fn!r}")
        if not is_stream(dataset):
            self._check_indexed(dataset)
            return
        self._check_stream(dataset)

    def _check_stream(self, dataset: Any) -> None:
        if self.shuffle:
            raise GalvatronError("an iterable data set gives its samples in its own order: shuffle there")
        elif self.workers > 1:
            raise GalvatronError(
                f"an iterable data set is read in its order, by one worker: pass workers=1, not {self.workers}"
            )
        if self.shards == 1:
            return
        if not callable(getattr(dataset, "shard", None)):
            raise GalvatronError(
                f"shards={self.shards} asks for dataset.shard(num_shards={self.shards}, index=i), which "
                f"{type(dataset).__name__} does not have"
            )
        if self.batch_size % self.shards or not self.drop_last:
            raise GalvatronError(
                f"each of {self.shards} shards gives as many samples of a batch, of {self.batch_size}, and an epoch "
                "ends with the first that has no more: pass a batch_size that divides, and drop_last=True"
            )

    def _check_indexed(self, dataset: Any) -> None:
        if self.shards != 1:
            raise GalvatronError("a data set with indices needs no shards: a rank asks it for its own samples alone")
        length = length_of(dataset)
        if length is None or not hasattr(dataset, "__getitem__"):
            kind = type(dataset).__name__
            raise GalvatronError(f"a data set has __getitem__ and __len__, or is iterable; {kind} is neither")
        if length < (self.batch_size if self.drop_last else 1):
            raise GalvatronError(
                f"the data set has {length} samples, and drop_last={self.drop_last}: there is no batch of "
                f"{self.batch_size}"
            )


def is_stream(dataset: Any) -> bool:
    """Whether samples come in the order of the data set, not by their index."""
    if isinstance(dataset, IterableDataset):
        return True
    return hasattr(dataset, "__iter__") and not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"))


def length_of(dataset: Any) -> int | None:
    """The samples of an epoch; None where nobody knows.

    Raises:
        GalvatronError: the data set cannot say.
    """
    if is_stream(dataset):
        return None
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):
        return None
    except Exception as error:
        raise GalvatronError(
            f"the data set does not say how many samples it has: its __len__ raises {type(error).__name__}: {error}"
        ) from error
