"""Programs whose parts do not fit together: for each rule the program, words of the message and of the line."""

from __future__ import annotations

from dataclasses import replace

from galvatron.ir.layout import REPLICATE
from galvatron.ir.program import (
    Check,
    LayerKind,
    Program,
    Reached,
    Result,
    Update,
)
from galvatron.ir.types import BATCH, LOCAL_BATCH, TensorType
from tests.ir.breaking import (
    F32,
    SUFFIX,
    closing,
    converted,
    mask_before_count,
    telling,
    two_masks,
    with_class,
    with_graph,
    with_input,
    with_layer,
    with_state,
    with_update,
    with_value,
)
from tests.ir.programs import (
    block_state,
    captured,
    clustered,
    op,
    planned,
    rounded,
    sharded,
    staged,
    value,
    with_candidates,
)

BROKEN: dict[str, list[tuple[Program, str, str]]] = {
    "form-fields": [
        (replace(captured(), graph=None), "a captured program needs graph", "program Net"),
        (replace(clustered(), classes=()), "needs classes", "program Net"),
        (replace(clustered(), graph=captured().graph), "a clustered program has no graph", "program Net"),
        (replace(planned(), plan=None), "a planned program needs plan", "program Net"),
        (replace(staged(), stages=()), "a staged program needs stages", "program Net"),
        (
            replace(sharded(), candidates=with_candidates().candidates),
            "a sharded program has no candidates", "program Net",
        ),
    ],
    "program-names": [
        (with_state(clustered(), "unused", name="embed.weight"), "stands for several", "embed.weight"),
        (with_state(clustered(), "unused", aliases=("embed.weight",)), "stands for several", "embed.weight"),
        (with_layer(staged(), "block_2", name="block_0"), "the layer name 'block_0' stands for several", "block_0"),
        (with_layer(clustered(), "block_1", name="block_0"), "the layer name 'block_0'", "block_0"),
        (
            replace(clustered(), classes=clustered().classes + clustered().classes[:1]),
            "the class name 'count'", "@count",
        ),
    ],
    "program-signature": [
        (with_state(clustered(), "unused", kind="thing"), "unknown kind of state 'thing'", "thing unused"),
        (with_state(clustered(), "unused", trainable=True), "a buffer does not train", "unused"),
        (with_state(clustered(), "unused", type=TensorType("f32", (BATCH,))), "no type of state", "f32[B]"),
        (replace(clustered(), batch_size=0), "a batch of 0 samples", "program Net"),
        (
            with_input(staged(), "extra", TensorType("f32", (4, BATCH))),
            "its samples are not those of B along dimension 0 alone", "input %extra",
        ),
        (with_input(sharded(), "extra", TensorType("f32", (LOCAL_BATCH,))), "b is no size of a batch", "input %extra"),
        (with_input(clustered(), "extra", TensorType("f32", (BATCH, -3))), "%extra is f32[B, -3]: negative", "%extra"),
    ],
    "masters": [
        (replace(clustered(), precision="bf61"), "unknown precision 'bf61'; did you mean 'bf16'?", "program Net"),
        (
            with_state(rounded(clustered()), "embed.weight", type=TensorType("bf16", (12, 8))),
            "embed.weight trains in bf16, not in f32", "parameter embed.weight",
        ),
    ],
    "graph-matches-program": [
        (replace(captured(), precision="bf16"), "as f32[12, 8], the program has it as bf16[12, 8]", "state %embed"),
        (replace(rounded(captured()), precision=None), "has it as f32[12, 8]", "state %embed.weight"),
        (replace(captured(), inputs=captured().inputs[:1]), "inputs differ", "graph {"),
        (
            with_state(captured(), "embed.weight", type=TensorType("f32", (99, 8))),
            "the program has it as f32[99, 8]", "state %embed.weight",
        ),
        (replace(captured(), output="h0"), "must return the program's output %h0", "return %loss"),
    ],
    "known-classes": [
        (with_layer(clustered(), "block_1", cls="blok"), "unknown class @blok; did you mean 'block'?", "@blok"),
        (replace(clustered(0)), "no layer calls @block", "class @block"),
    ],
    "layer-signatures": [
        (with_layer(clustered(), "block_1", operands=("h1",)), "binds 1 operands, but @block has 2", "block_1"),
        (with_layer(clustered(), "block_1", state=()), "binds 0 state", "block_1"),
        (with_layer(clustered(), "block_1", results=("h2", "h2b")), "binds 2 results", "block_1"),
    ],
    "layers-in-order": [
        (with_layer(clustered(), "block_1", operands=("h3", "mask")), "reads %h3 before it is defined", "block_1"),
        (with_layer(clustered(), "block_1", operands=("hh", "mask")), "reads %hh undefined", "block_1"),
        (with_layer(clustered(), "block_1", results=("h1",)), "defines %h1 again", "block_1"),
        (with_layer(staged(), "block_2", operands=("h0", "mask")), "reads %h0 undefined", "block_2"),
    ],
    "state-is-bound": [
        (with_layer(clustered(), "head", state=("embd.weight",)), "did you mean 'embed.weight'", "head"),
        (
            with_state(clustered(), "embed.weight", type=TensorType("f32", (12, 9))),
            "embed.weight is f32[12, 9]", "state %embed.weight",
        ),
        (replace(clustered(), precision="f16"), "embed.weight is f16[12, 8], but %embed.weight", "state %embed.weight"),
        (
            with_value(rounded(clustered()), "block", "up.weight", type=TensorType("f32", (16, 8))),
            "blocks.0.up.weight is bf16[16, 8], but %up.weight of @block is f32[16, 8]", "state %up.weight",
        ),
    ],
    "operand-types": [
        (with_layer(clustered(), "block_1", operands=("mask", "mask")), "%mask is bool[B, 6, 1], but %x", "block_1"),
    ],
    "cheap-layers": [
        (
            with_graph(sharded(), f"mask{SUFFIX}", lambda g: replace(g, ops=(*g.ops, op(
                "random.rand.default", ((6,),), value("drawn", "f32", 6, layout=(REPLICATE, REPLICATE)),
                site=0, axes=(), per_step=True)))),
            "the preamble layer mask draws random numbers, in random.rand.default", "preamble mask",
        ),
        (with_layer(clustered(), "mask", kind=LayerKind.STEP), "a bool[B, 6, 1] with samples", "mask"),
        (
            with_layer(clustered(), "embedding", kind=LayerKind.PREAMBLE),
            "reads the trainable state embed.weight", "embedding",
        ),
        (
            mask_before_count(),
            "the step layer count reads %mask@1, which a micro-batch layer computes", "count",
        ),
        (
            with_layer(clustered(), "block_0", kind=LayerKind.STEP),
            "reads %h0, which a micro-batch layer computes", "block_0",
        ),
    ],
    "output-is-loss": [
        (replace(clustered(), output="lss"), "nothing defines %lss", "output %lss"),
        (replace(clustered(), output="h1"), "a loss is a floating-point scalar", "output %h1"),
        (
            with_graph(with_input(clustered(), "given", F32), "head", lambda g: replace(g, outputs=("c",))),
            "head gives as the loss %loss what it is given", "layer    head",
        ),
    ],
    "copies-say-what-they-are": [
        (
            with_layer(clustered(), "mask", origin=("mask",)),
            "mask is a copy or a conversion, but a clustered program has none", "preamble mask",
        ),
        (
            with_layer(sharded(), "block_1", origin=("h0",)),
            "block_1 makes values of its own, it has no origin", "block_1",
        ),
        (with_layer(sharded(), "mask@1", origin=("mask", "n")), "has 1 results, of 2 values", "mask@1"),
        (
            with_layer(sharded(), "mask@1", origin=("h1",)),
            "mask@1 is a copy of %h1, which is made once", "mask@1",
        ),
    ],
    "conversions-change-layout-only": [
        (
            with_layer(sharded(), "block_1", kind=LayerKind.CONVERSION, origin=("h1",)),
            "the conversion block_1 takes one value to another layout", "block_1",
        ),
        (converted("aten.neg.default"), "the conversion moved computes something", "moved"),
        (converted(origin="h1"), "the conversion moved reads %h2, which is not %h1", "moved"),
        (converted(base="block"), "moved is a conversion, but @move was sharded from @block", "moved"),
        (
            with_class(sharded(), f"mask{SUFFIX}", base=""),
            f"mask is a preamble, but @mask{SUFFIX} was sharded from no class", "preamble mask",
        ),
    ],
    "shared-layers-are-one": [
        (
            with_layer(two_masks(), "mask@1", origin=("mask@1",)),
            "mask@1 computes %mask@1 otherwise than another stage", "preamble mask@1",
        ),
        (
            with_class(two_masks(), "other", base="block"),
            "mask@1 computes %mask otherwise than another stage", "preamble mask@1",
        ),
    ],
    "epilogue-ends": [
        (
            with_layer(clustered(), "block_3", kind=LayerKind.EPILOGUE),
            "the epilogue block_3 must come last and make the loss %loss alone", "epilogue block_3",
        ),
        (
            with_layer(clustered(), "block_3", kind=LayerKind.EPILOGUE),
            "reads %mask of the preamble, which it must compute itself", "epilogue block_3",
        ),
    ],
    "closings-only-write": [
        (closing("more", "labels"), "reads %labels, which no planned layer makes", "%closed = @close("),
        (closing("n"), "reads nothing that micro-batches make", "%closed = @close("),
        (closing("h2"), "reads %h2, which has samples", "%closed = @close("),
        (closing("more", state="embed.weight"), "reads the trainable state embed.weight", "%closed = @close("),
        (
            closing("more", target="aten.bernoulli.default"),
            "draws random numbers, in aten.bernoulli", "%closed = @close(",
        ),
        (
            replace(closing("more"), outputs=(Result("kept", "closed"),)),
            "makes %closed, which is not a new value of state alone", "%closed = @close(",
        ),
    ],
    "updates-fit": [
        (with_update(clustered(), Update("conted", "more")), "unknown state 'conted'; did you", "update conted"),
        (with_update(clustered(), Update("counted", "more"), again=True), "updated several times", "update counted"),
        (with_update(clustered(), Update("embed.weight", "more")), "embed.weight is trained", "update embed.weight"),
        (with_update(clustered(), Update("counted", "n")), "no layer computes %n, the new value", "update counted"),
        (with_update(clustered(), Update("unused", "more")), "%more is f32[], but unused is bf16[3]", "update unused"),
    ],
    "outputs-fit": [
        (replace(clustered(), outputs=(Result("kept", "n"),)), "no layer computes %n, the", "result kept"),
        (replace(clustered(), outputs=(Result("kept", "loss"),) * 2), "'kept' stands for several", "result kept"),
    ],
    "gradients-told": [
        (
            replace(closing("more"), reached=(Reached("more", block_state(0)),)),
            "no layer that runs when a step ends makes %more, which", "gradient %more",
        ),
        (telling("embed.weight"), "%told is bool[3]: no vector of truth values for 1 parameters", "gradient %told"),
        (telling(*block_state(0)[:2], "unused"), "unused is not trained, so that it has no", "gradient %told"),
        (telling(*("embed.weight",) * 3), "of embed.weight it is said several times when it has", "gradient %told"),
    ],
    "checks-fit": [
        (replace(clustered(), checks=(Check("kept", "n"),)), "no layer computes %n, which the check", "never %n"),
        (replace(clustered(), checks=(Check("kept", "loss"),)), "is of f32, but the check 'kept' asks", "never %loss"),
    ],
}  # fmt: skip
