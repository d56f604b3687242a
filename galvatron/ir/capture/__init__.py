"""Capture: from an unmodified `nn.Module` and one example batch to a `Program` in the captured form.

The only part of the IR that knows torch. The way: `batch` reads the example inputs, `export` runs `torch.export` on the
model together with its loss, `convert` turns the ATen graph into a `Graph`, `state` gives tied parameters one name, and
`diagnose` turns whatever torch raises into a `CaptureError` that names the user's line.

What is not preserved: `torch.utils.checkpoint` regions of the model are dropped (Galvatron decides on recomputation
itself), outputs other than the loss are dropped, and counters in buffers that the loss does not read are not advanced.
"""

from galvatron.ir.capture.export import Captured, capture_graph

__all__ = ["Captured", "capture_graph"]
