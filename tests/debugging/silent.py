"""Bugs that people report from parallel code written by hand, each as an edit of a right program that a person could
make: nothing crashes, the shapes fit, and the numbers are wrong.

A case says which command tells it, by which rule and at which line, and how the numbers show that the bug is one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from galvatron.ir.graph import Graph, Op, Ref
from galvatron.ir.layout import REPLICATE, Layout, Placement, Shard
from galvatron.ir.program import LayerClass, Program
from galvatron.ir.random import without_site
from galvatron.ir.spmd import is_spmd, without_axis
from galvatron.ir.types import MICRO_BATCHES
from tests.debugging.silent_models import LENGTH, WORDS

Edit = Callable[[Program], Program]


@dataclass(frozen=True)
class Bug:
    """An edit of the staged program of a `model` under a `plan`.

    `rule` is the rule of the verifier that it breaks, at a line with `line` in it; `numbers` what of a class departs
    from the class that it was sharded from, where that can be run, and empty where it is shown in another way; `mended`
    is in what is said of mending it, empty where nothing is.
    """

    edit: Edit
    model: str
    plan: str
    rule: str
    line: str
    numbers: str = ""
    mended: str = ""


BUGS: dict[str, Bug] = {}


def bug(model: str, plan: str, rule: str, line: str, numbers: str = "", mended: str = "") -> Callable[[Edit], Edit]:
    """Makes a case of an edit, called by its name."""

    def added(edit: Edit) -> Edit:
        BUGS[edit.__name__.replace("_", "-")] = Bug(edit, model, plan, rule, line, numbers, mended)
        return edit

    return added


# Edits that cases are made of


def in_class(
    program: Program, wanted: Callable[[LayerClass], bool], edit: Callable[[LayerClass], LayerClass]
) -> Program:
    """The program with the first class changed for which something holds."""
    old = next(cls for cls in program.classes if wanted(cls))
    return replace(program, classes=tuple(edit(old) if cls is old else cls for cls in program.classes))


def with_ops(
    program: Program,
    wanted: Callable[[Op], bool],
    edit: Callable[[Op, Graph], tuple[Op, ...]],
    within: str = "",
) -> Program:
    """The program with the first op for which something holds replaced by others, or none: then what it reads is read
    in its place. The first in a class whose name begins so."""

    def changed(cls: LayerClass) -> LayerClass:
        place = next(i for i, op in enumerate(cls.graph.ops) if wanted(op))
        old = cls.graph.ops[place]
        new = edit(old, cls.graph)
        rest, outputs = cls.graph.ops[place + 1 :], cls.graph.outputs
        if not new:
            names = {old.result.name: old.operands[0]}
            rest = tuple(op.map_refs(lambda name: names.get(name, name)) for op in rest)
            outputs = tuple(names.get(name, name) for name in outputs)
        return replace(cls, graph=replace(cls.graph, ops=(*cls.graph.ops[:place], *new, *rest), outputs=outputs))

    return in_class(program, lambda cls: cls.name.startswith(within) and any(map(wanted, cls.graph.ops)), changed)


def left_out(op: Op, graph: Graph) -> tuple[Op, ...]:
    """No op."""
    return ()


def with_keywords(**keywords: object) -> Callable[[Op, Graph], tuple[Op, ...]]:
    """An op with other keyword arguments."""

    def edit(op: Op, graph: Graph) -> tuple[Op, ...]:
        return (replace(op, kwargs=tuple((name, keywords.get(name, arg)) for name, arg in op.kwargs)),)  # type: ignore[misc]

    return edit


def moved(layout: Layout, axis: int, placement: Placement) -> Layout:
    return (*layout[:axis], placement, *layout[axis + 1 :])


def with_state(program: Program, name: str, axis: str, placement: Placement) -> Program:
    """The program in which a parameter, and those of equal layers, are placed otherwise on an axis, wherever they are
    read or kept."""
    classes, bound = {}, set()
    for layer in program.all_layers:
        cls = program.class_of[layer.cls]
        for own, formal in zip(layer.state, cls.graph.state, strict=True):
            if own.endswith(name):
                bound.add(own)
                classes[cls.name] = (cls, formal)
    edited = {}
    for cls, formal in classes.values():
        at = [one.name for one in cls.mesh].index(axis)
        new = replace(formal, layout=moved(formal.layout or (), at, placement))
        state = tuple(new if value is formal else value for value in cls.graph.state)
        edited[cls.name] = replace(cls, graph=replace(cls.graph, state=state))
    stages = tuple(
        replace(
            stage,
            state=tuple(
                replace(kept, layout=moved(kept.layout, [a.name for a in kept.mesh].index(axis), placement))
                if kept.state in bound
                else kept
                for kept in stage.state
            ),
        )
        for stage in program.stages
    )
    return replace(program, classes=tuple(edited.get(cls.name, cls) for cls in program.classes), stages=stages)


def is_collective(name: str, axis: str) -> Callable[[Op], bool]:
    return lambda op: op.target == f"comm.{name}" and op.kwarg("axis") == axis


# Gradients


@bug("words", "dp2-tp2", "ops-on-slices", "layer_norm", "gradient", "be R' on dp: its gradient is then summed over dp")
def gradient_of_a_replicated_parameter_is_not_summed(program: Program) -> Program:
    """A parameter that every rank has whole is read with other samples on each, and nobody adds up its gradient:
    https://github.com/areal-project/AReaL/issues/313
    """
    return with_state(program, "norm_1.weight", "dp", REPLICATE)


@bug("words", "tp2+sp", "ops-on-slices", "layer_norm", "gradient")
def gradient_of_a_norm_under_sequence_parallelism_is_not_summed(program: Program) -> Program:
    """Under sequence parallelism a norm sees a part of the sequence on each rank of tp, so that its gradient is a sum
    over tp too:
    https://github.com/NVIDIA/Megatron-LM/issues/1446
    https://github.com/EleutherAI/gpt-neox/pull/1257
    """
    return with_state(program, "norm_1.weight", "tp", REPLICATE)


@bug("words", "tp2", "ops-on-slices", "linear", "gradient", 'which comm.copy(%layer_norm, axis="tp") gives')
def gradient_of_the_input_of_a_column_is_not_summed(program: Program) -> Program:
    """Each rank has some columns of a matrix, and so a term of the gradient of what all of them read:
    https://github.com/NovaSky-AI/SkyRL/pull/1886
    """
    return with_ops(program, is_collective("copy", "tp"), left_out, "blocks")


@bug(
    "words", "pp2/m4/1f1b/dp2", "state-is-kept", "keep", mended="its gradient is summed over the axes on which it is R'"
)
def gradient_is_summed_over_another_group(program: Program) -> Program:
    """The class says that the gradient of a weight is a sum over dp, and the stage adds it up over nothing; as where
    a wrong group is taken:
    https://github.com/ByteDance-Seed/VeOmni/issues/184
    """
    first = program.stages[0]
    kept = next(kept for kept in first.state if kept.state.endswith("up.weight"))
    state = tuple(replace(one, layout=(REPLICATE,)) if one is kept else one for one in first.state)
    return replace(program, stages=(replace(first, state=state), *program.stages[1:]))


@bug("words", "pp2/m4/1f1b/dp2", "state-is-kept", "keep words.weight")
def gradient_of_tied_words_is_summed_on_one_stage_only(program: Program) -> Program:
    """Words at both ends of a pipeline are one parameter, whose gradient has terms of both stages on all ranks:
    https://github.com/NVIDIA/Megatron-LM/issues/844
    https://github.com/uw-syfi/piper/issues/13
    """
    last = program.stages[-1]

    state = tuple(replace(k, layout=(REPLICATE,)) if k.state.endswith("words.weight") else k for k in last.state)
    return replace(program, stages=(*program.stages[:-1], replace(last, state=state)))


# Sums


@bug(
    "words",
    "tp2",
    "ops-on-slices",
    "dropout",
    "value",
    'which comm.all_reduce(%linear_1, axis="tp", grad="identity") gives',
)
def partial_sum_is_read_as_if_whole(program: Program) -> Program:
    """Each rank has the terms of some rows of a matrix, and goes on with those:
    https://github.com/FlashML-org/FreeToken/pull/429
    """
    return with_ops(program, is_collective("all_reduce", "tp"), left_out, "blocks")


@bug("words", "tp2", "collectives", "comm.all_reduce", "value")
def sum_is_taken_twice(program: Program) -> Program:
    """What is whole is added up once more, so that it is as many times as large as there are ranks:
    https://github.com/meta-pytorch/autoparallel/pull/517
    """

    def again(op: Op, graph: Graph) -> tuple[Op, ...]:
        first = replace(op, results=(replace(op.result, name="once"),))
        return first, replace(op, args=(Ref("once"),))

    return with_ops(program, is_collective("all_reduce", "tp"), again, "blocks")


@bug("words", "dp2-tp2", "collectives", "comm.all_reduce", "value", "name the axis tp")
def sum_is_over_another_axis(program: Program) -> Program:
    """The group of a collective is that of the data-parallel ranks, in place of the tensor-parallel ones:
    https://github.com/NVIDIA/Megatron-LM/issues/906
    """
    return with_ops(program, is_collective("all_reduce", "tp"), with_keywords(axis="dp"))


@bug("words", "tp2", "ops-on-slices", "linear", "value")
def bias_is_added_on_every_rank(program: Program) -> Program:
    """Each rank adds the bias to its terms, of which the sum then has it as often as there are ranks:
    https://github.com/huggingface/text-generation-inference/issues/1036
    https://github.com/awslabs/slapo/issues/10
    """
    return with_ops(program, is_collective("first", "tp"), left_out)


@bug("words", "m2/dp2", "ops-on-slices", "cross_entropy")
def loss_is_a_mean_of_means(program: Program) -> Program:
    """Each rank and micro-batch takes the mean over the tokens that it has, of which there are unequally many:
    https://github.com/huggingface/blog/pull/2414
    https://github.com/ml-explore/mlx-lm/pull/1544
    """
    return with_ops(
        program,
        lambda op: op.name == "cross_entropy_loss",
        lambda op, graph: (op.changed(reduction=1),),
    )


@bug("words", "m2/dp2", "micro-batches-add-up", "micro_batches")
def penalty_counts_in_every_micro_batch(program: Program) -> Program:
    """What has no samples is a part of the loss of each micro-batch, and so counts as often as there are some:
    https://github.com/verl-project/verl/pull/3332
    """
    return with_ops(program, lambda op: any(arg == MICRO_BATCHES for arg in op.args), left_out)


@bug("pictures", "dp2", "ops-on-slices", "batch_norm", "value")
def batch_norm_has_statistics_of_its_own_samples(program: Program) -> Program:
    """Each rank normalises by the mean of the samples that it has, and keeps running statistics of those:
    https://github.com/pytorch/pytorch/issues/2584
    """
    return with_ops(program, lambda op: is_spmd(op.target), lambda op, graph: (without_axis(op),))


@bug("pairs", "dp2", "ops-on-slices", "matmul")
def samples_are_compared_with_those_of_a_rank_only(program: Program) -> Program:
    """A contrastive loss has the samples of its own rank for negatives, and not those of the whole batch:
    https://github.com/Lightning-Universe/lightning-bolts/issues/179
    """

    def local(cls: LayerClass) -> LayerClass:
        gather, product, places, cut, loss, share = cls.graph.ops
        samples = cut.result.type.shape
        scores = replace(product.result, type=product.result.type.with_shape(samples * 2))
        ops = (
            replace(product, args=(product.args[0], gather.args[0]), results=(scores,)),
            replace(places, args=samples, results=cut.results),
            loss,
            share,
        )
        return replace(cls, graph=replace(cls.graph, ops=ops))

    return in_class(program, lambda cls: cls.name.startswith("epilogue"), local)


# Slices


@bug("words", "tp2", "ops-on-slices", "linear", "value")
def heads_are_cut_across_queries_keys_and_values(program: Program) -> Program:
    """The rows of the one matrix for queries, keys and values are halved, so that a rank has all queries and half of
    the keys and takes them for its heads of each:
    https://github.com/deepspeedai/DeepSpeed/pull/3844
    https://github.com/pytorch/pytorch/pull/179509
    """
    return with_state(with_state(program, "qkv.weight", "tp", Shard(0)), "qkv.bias", "tp", Shard(0))


@bug("words", "cp2", "ops-on-slices", "scaled_dot_product_attention")
def ring_takes_folded_slices_for_plain_ones(program: Program) -> Program:
    """A rank has a piece from the front of the sequence and one from its back, and masks as if it had a stretch of it:
    https://github.com/AI-Hypercomputer/maxtext/pull/5015
    """

    def plain(op: Op, graph: Graph) -> tuple[Op, ...]:
        return (replace(op, kwargs=tuple((name, arg) for name, arg in op.kwargs if name != "folded")),)

    return with_ops(program, lambda op: op.kwarg("folded") is True and is_spmd(op.target), plain)


@bug("words", "cp2", "ops-on-slices", "arange", "value")
def positions_begin_at_zero_on_every_rank(program: Program) -> Program:
    """A rank counts the positions of its part of the sequence from zero:
    https://github.com/NVIDIA/Megatron-LM/issues/560
    https://github.com/vllm-project/speculators/pull/871
    """

    def counted(cls: LayerClass) -> LayerClass:
        whole, cut = (next(op for op in cls.graph.ops if op.result.name == name) for name in ("arange", "arange.slice"))
        own = replace(whole, args=(LENGTH // 2,), results=cut.results)
        ops = tuple(own if op is whole else op for op in cls.graph.ops if op is not cut)
        return replace(cls, graph=replace(cls.graph, ops=ops))

    return in_class(program, lambda cls: cls.name.startswith("embedding"), counted)


@bug("words", "tp2", "ops-on-slices", "spmd.cross_entropy_loss", "value")
def filler_of_the_words_is_in_the_softmax(program: Program) -> Program:
    """The words do not divide into the ranks, and the rows that fill the last part up have logits like others:
    https://github.com/unslothai/unsloth/pull/10616
    """
    return with_ops(program, lambda op: op.target == "spmd.cross_entropy_loss", with_keywords(size=WORDS + 1))


# Random numbers


@bug("words", "dp2", "random-draws", "random.dropout")
def dropout_is_equal_on_ranks_with_other_samples(program: Program) -> Program:
    """All data-parallel ranks draw the same mask:
    https://github.com/huggingface/transformers/issues/31412
    https://github.com/huggingface/accelerate/issues/114
    """
    return with_ops(program, lambda op: op.name == "dropout", with_keywords(axes=()))


@bug("words", "dp2-tp2", "random-draws", "random.dropout")
def dropout_is_unequal_on_ranks_with_the_same_values(program: Program) -> Program:
    """Tensor-parallel ranks that hold the same activations drop other elements of them:
    https://github.com/tenstorrent/tt-metal/issues/55947
    """
    return with_ops(program, lambda op: op.name == "dropout", with_keywords(axes=("dp", "tp")))


@bug("words", "dp2-recompute", "random-draws", "aten.dropout")
def dropout_is_drawn_anew_when_recomputed(program: Program) -> Program:
    """A draw without a key of its own takes what the generator has next, which in a recomputed layer is another one:
    https://github.com/allenai/OLMo-core/pull/828
    https://github.com/pytorch/pytorch/issues/190758
    """
    return with_ops(program, lambda op: op.name == "dropout", lambda op, graph: (without_site(op),))


# Bugs that leave a right program, which is another one


@dataclass(frozen=True)
class Other:
    """An edit of the text of a `model` under a `plan`, before it is sharded or `staged`: `old` becomes `new`. Beside
    the program before, `told` is said of it."""

    model: str
    plan: str
    form: str
    old: str
    new: str
    told: str


_VALUE = "the value of %"
_NOT_KNOWN = "nothing is known of"

OTHERS = {
    "labels that are ignored are counted": Other("words", "tp2", "planned", "other=-100", "other=-1", _VALUE),
    "labels that are ignored are counted on ranks": Other(
        "words", "tp2+sp", "staged", "other=-100", "other=-1", "in class @step@dp1: the value of %ne"
    ),
    "other labels are ignored": Other(
        "words", "tp2", "planned", "reduction=2", "reduction=2, ignore_index=-1", "it fails with numbers that"
    ),
    "a word of a later rank is ignored": Other(
        "words", "tp2+sp", "staged", "reduction=2,", "reduction=2, ignore_index=30,", "in class @head@tp2+sp: the "
    ),
    "a loss is divided by the samples of one batch": Other("marks", "dp2", "planned", "64*B", "128", _VALUE),
    "a loss is divided by samples times samples": Other("marks", "dp2", "planned", "64*B", "32*B**2", _VALUE),
    "ranks divide by the samples of one batch": Other("marks", "dp2", "staged", "64*B", "256", _VALUE),
    "ranks divide by samples times samples": Other("marks", "dp2", "staged", "64*B", "16*B**2", _VALUE),
    "a count is added to itself": Other(
        "marks", "dp2", "planned", "update count = ", "update count += ", "the sum of the update of count is"
    ),
    "the names of results are exchanged": Other(
        "pictures", "dp2", "planned",
        "update norm.running_mean        = %first.native_batch_norm_legit_functional\nupdate norm.running_var  ",
        "update norm.running_var         = %first.native_batch_norm_legit_functional\nupdate norm.running_mean ",
        _VALUE,
    ),
    "ranks drop more": Other("words", "dp2", "staged", "p=0.1", "p=0.9", "the value of %dropout"),
    "ranks drop nothing": Other("words", "dp2", "staged", "train=true", "train=false", "the value of %dropout"),
    "ranks cut off at a smaller number": Other("marks", "dp2", "staged", "min=0.0001", "min=1e-07", _VALUE),
    "a large number is cut off later": Other("marks", "dp2", "planned", "max=10000.0", "max=20000.0", _NOT_KNOWN),
    "another row has no gradient": Other(
        "marks", "dp2", "planned", "padding_idx=7", "padding_idx=8", "the gradient of %rows.weight"
    ),
    "all rows have gradients": Other(
        "marks", "dp2", "planned", ", padding_idx=7", "", "the gradient of %rows.weight"
    ),
    "another word does not count": Other("marks", "dp2", "planned", "other=4000", "other=4001", _VALUE),
    "what is no number is another one": Other("roots", "dp2", "planned", "%linear, 2.0", "%linear, 7.0", _NOT_KNOWN),
    "what is no number is another one on ranks": Other(
        "roots", "dp2", "staged", "%linear, 2.0", "%linear, 7.0", _NOT_KNOWN
    ),
}  # fmt: skip
