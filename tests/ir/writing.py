"""Random functions that look at tensors in several ways and write into them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

_NEW: dict[str, Callable[[Tensor], Tensor]] = {
    "double": lambda x: x * 2,
    "copied": lambda x: x.clone(),
    "sorted": lambda x: x.sort(-1)[0],
    "wide": lambda x: x.to(torch.float64),
    "narrow": lambda x: x.float().double(),
    "contiguous": lambda x: x.contiguous(),
}
_VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "turned": lambda x: x.transpose(-1, -2),
    "left": lambda x: x[..., : x.shape[-1] // 2 + 1],
    "reshaped": lambda x: x.reshape(x.shape),
    "unsqueezed": lambda x: x.unsqueeze(0).squeeze(0),
    "half": lambda x: x.chunk(2, -1)[0],
    "last": lambda x: x.unbind(-1)[-1].unsqueeze(-1),
}
_WRITES: dict[str, Callable[[Tensor, Tensor], object]] = {
    "scaled": lambda x, _: x.mul_(3),
    "filled": lambda x, _: x.masked_fill_(x > 0, 0.5),
    "added": lambda x, y: x.add_(y.detach().sum()),
    "assigned": lambda x, _: x.__setitem__((..., 0), 1.0),
    "raised": lambda x, _: x.index_add_(-1, torch.zeros(1, dtype=torch.long), x[..., :1].detach() * 2),
    "lowered": lambda x, _: x.sub_(x.mean().detach()),
}
KINDS = [*_NEW, *_VIEWS, *_WRITES]


@dataclass(frozen=True)
class Step:
    """One operation, on the tensor at a place among those that there are, and another."""

    kind: str
    place: int
    other: int


class Writing(nn.Module):
    """What a linear layer gives goes through random steps; all that was made is in the loss."""

    def __init__(self, steps: Sequence[Step], read: Sequence[int]) -> None:
        super().__init__()
        self.linear, self.steps, self.read = nn.Linear(6, 6, dtype=torch.float64), steps, read

    def forward(self, x: Tensor) -> Tensor:
        made = [self.linear(x) + 1]
        for step in self.steps:
            on, other = made[step.place % len(made)], made[step.other % len(made)]
            if step.kind in _WRITES:
                _WRITES[step.kind](on, other)
            else:
                made.append((_NEW | _VIEWS)[step.kind](on))
        read = [made[place % len(made)] for place in self.read]
        return torch.stack([made[-1].mean(), *(value.square().mean() for value in read)]).sum()


steps = st.builds(Step, st.sampled_from(KINDS), st.integers(0, 5), st.integers(0, 5))
models = st.builds(Writing, st.lists(steps, min_size=2, max_size=7), st.lists(st.integers(0, 7), max_size=3))
