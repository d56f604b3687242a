"""Capture: from an unmodified `nn.Module` and one example batch to a `Program` in the captured form.

The way: `batch` reads the example inputs, `export` runs `torch.export` on the model together with its loss, under the
watch of `tracing`, `gradients` and `repeat`, which refuse what a graph would lose in silence, while `restore` and
`leftovers` see that it leaves no trace in the user's objects; `arithmetic` and `registered` spare torch what it would
do again and again, and `lists` has lists of as many parts as there are samples. `derivatives` writes down the gradients
that forward takes itself, `regions` dissolves `no_grad` and `autocast`, `samples` tells the inputs that hold samples
from others, `state` gives tied parameters one name, `convert` turns the ATen graph into a `Program` and `numbers` what
is computed from sizes, `selections` makes all rows of those that a mask selects and `turns` all turns of a loop over
them, and `diagnose` turns whatever torch raises into a `CaptureError` naming the user's line, found by `sources`.
`losses` finds the loss, and `outputs` what the model is to give besides. The first refusal ends a capture, but for who
asks `refusals` for all of them. Under a `precision` the
model is traced as if it had been converted to another element type.

What is not preserved: `torch.utils.checkpoint` regions of the model are dropped (Galvatron decides on recomputation
itself), and so are outputs that nobody asked for.
"""

from galvatron.ir.capture.batch import BatchDims, Dynamic, read_batch
from galvatron.ir.capture.export import Captured, capture_graph
from galvatron.ir.capture.losses import LossFunction, loss_of
from galvatron.ir.capture.outputs import Outputs
from galvatron.ir.capture.refusals import listing
from galvatron.ir.capture.restore import unchanged
from galvatron.ir.capture.stand_ins import device_of

__all__ = [
    "BatchDims",
    "Captured",
    "Dynamic",
    "LossFunction",
    "Outputs",
    "capture_graph",
    "device_of",
    "listing",
    "loss_of",
    "read_batch",
    "unchanged",
]
