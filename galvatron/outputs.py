"""What a model returns besides its loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from galvatron.errors import did_you_mean
from galvatron.facts import described


class ModelOutputs(Mapping[str, Tensor]):
    """What the model returns besides its loss, by name: `outputs["logits"]` or `outputs.logits`.

    Whole tensors, equal on every rank, in the order of the batch and in the types that the model gives.

    Attributes:
        loss: the loss on the whole batch; None where it was not asked for.
    """

    def __init__(self, values: Mapping[str, Tensor], loss: Tensor | None) -> None:
        self._values = dict(values)
        self.loss = loss

    def __getitem__(self, name: str) -> Tensor:
        return self._values[name]

    def __getattr__(self, name: str) -> Tensor:
        if name.startswith("_") or name not in self._values:
            raise AttributeError(f"there is no output {name!r}; {did_you_mean(name, self.__dict__.get('_values', ()))}")
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"ModelOutputs({described(self._values)}, loss={self.loss})"
