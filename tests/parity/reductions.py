"""Small models whose loss is a random chain of words, many of which look across the samples of a batch.

A chain is read from the left by a machine with a stack: `h gram softmax0 diagonal h norm /`. A word that does not fit
what is on the stack is left out, so that every chain means something and gets shorter word by word.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 6
Batch = dict[str, Tensor]


def batch_of(size: int, seed: int) -> Batch:
    """Two views of each sample, a target, labels of which some are ignored, and a weight."""
    generator = torch.Generator().manual_seed(seed)
    x, view, target = torch.randn(3, size, WIDTH, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, WIDTH, (size,), generator=generator)
    labels[1::3] = -100
    weight = torch.rand(size, generator=generator, dtype=torch.float64) + 0.5
    return {"x": x, "view": view, "target": target, "labels": labels, "weight": weight}


def _dims(name: str, function: Callable[[Tensor, int], Tensor]) -> dict[str, Callable[[Tensor], Tensor]]:
    return {f"{name}{dim}": lambda t, dim=dim: function(t, dim) for dim in (0, 1)}


ONE: dict[str, Callable[[Tensor], Tensor]] = {
    "square": torch.square,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "root": lambda t: t.abs().sqrt(),
    "log": lambda t: (1 + t * t).log(),
    "third": lambda t: t * 0.3,
    "more": lambda t: t + 0.5,
    "less": lambda t: 2 - t,
    "sum": torch.sum,
    "mean": torch.mean,
    "norm": torch.norm,
    "max": torch.max,
    "var": torch.var,
    "gram": lambda t: t @ t.T,
    "moments": lambda t: t.T @ t,
    "diagonal": torch.diagonal,
    "copies": lambda t: t.repeat(t.shape[0], *[1] * (t.dim() - 1)),
    "pairs": lambda t: t.unsqueeze(1).expand(-1, t.shape[0], *t.shape[1:]),
    "cut": lambda t: t.detach(),
    **_dims("sum", torch.sum),
    **_dims("mean", torch.mean),
    **_dims("max", torch.amax),
    **_dims("std", torch.std),
    **_dims("norm", lambda t, dim: torch.linalg.vector_norm(t, dim=dim)),
    **_dims("unit", lambda t, dim: F.normalize(t, dim=dim)),
    **_dims("softmax", torch.softmax),
    **_dims("logsoftmax", torch.log_softmax),
    **_dims("lse", torch.logsumexp),
    **_dims("cumsum", torch.cumsum),
    **_dims("centred", lambda t, dim: t - t.mean(dim, keepdim=True)),
    **_dims("best", lambda t, dim: t.gather(dim, t.argmax(dim, keepdim=True))),
}
"""Words for functions of the uppermost value."""

TWO: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "+": torch.add,
    "-": torch.sub,
    "*": torch.mul,
    "/": torch.div,
    "mse": F.mse_loss,
    "@": lambda a, b: a @ b.T,
}
"""Words for functions of the two uppermost values."""

VALUES = ("h", "first", "second", "both", "target", "weight", "matrix", "bias", "likelihood", "terms", "kept")
"""Words for what is put on the stack."""

WORDS = (*ONE, *TWO, *VALUES)


class Reductions(nn.Module):
    """Two layers, and the loss that a chain of words makes of their output."""

    def __init__(self, words: tuple[str, ...]) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.words: tuple[str, ...] = ()
        self.double()
        for word in words:
            if self._fits((*self.words, word)):
                self.words += (word,)

    def _fits(self, words: tuple[str, ...]) -> bool:
        if words.count("copies") + words.count("pairs") > 2 or words.count("copies") > 1:
            return False  # each makes a matrix of a vector of samples
        before, self.words = self.words, words
        try:
            return all(self(**batch_of(size, 0)).requires_grad for size in (5, 7))
        except (RuntimeError, IndexError):
            return False
        finally:
            self.words = before

    def forward(self, x: Tensor, view: Tensor, target: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
        pairs = any(word in self.words for word in ("first", "second", "both"))
        encoded = self.outer(torch.tanh(self.inner(torch.cat([x, view]) if pairs else x)))
        h = encoded[: x.shape[0]]
        values = {
            "h": lambda: h,
            "first": lambda: h,
            "second": lambda: encoded[x.shape[0] :],
            "both": lambda: encoded,
            "target": lambda: target,
            "weight": lambda: weight,
            "matrix": lambda: self.inner.weight,
            "bias": lambda: self.outer.bias,
            "likelihood": lambda: F.cross_entropy(h, labels),
            "terms": lambda: F.cross_entropy(h, labels, reduction="none"),
            "kept": lambda: (labels != -100).to(x.dtype),
        }
        stack = [encoded.square().mean()]
        for word in self.words:
            if word in ONE:
                stack[-1] = ONE[word](stack[-1])
            elif word in TWO:
                last = stack.pop()
                stack[-1] = TWO[word](stack[-1], last)
            else:
                stack.append(values[word]())
        return torch.stack([value.mean() for value in stack]).sum()
