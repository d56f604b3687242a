"""Real text that every machine has: the sources of the Python standard library, as bytes."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import torch

VOCABULARY = 256
"""One token per byte."""


class SourceText:
    """Batches of byte sequences cut at random from the standard library's sources; the same on every rank."""

    def __init__(self, length: int, *, seed: int = 0, size: int = 2**22) -> None:
        folder = Path(sysconfig.get_paths()["stdlib"])
        content = bytearray()
        for path in sorted(folder.glob("*.py")):
            content += path.read_bytes()
            if len(content) >= size:
                break
        self._bytes = torch.frombuffer(content, dtype=torch.uint8)
        self._length = length
        self._generator = torch.Generator().manual_seed(seed)

    def batch(self, size: int) -> dict[str, torch.Tensor]:
        """`input_ids` and `labels`, both i64[size, length]; labels are shifted by the model."""
        starts = torch.randint(len(self._bytes) - self._length, (size,), generator=self._generator)
        ids = torch.stack([self._bytes[s : s + self._length] for s in starts.tolist()]).long()
        return {"input_ids": ids, "labels": ids.clone()}
