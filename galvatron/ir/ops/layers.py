"""Rules of ops that are a layer by themselves, and of products whose dimensions are written in an argument."""

from __future__ import annotations

from galvatron.ir.ops.call import Call, DimsFunction, by_line, known, unnamed, whole
from galvatron.ir.ops.notation import DimNames, OpDims, Shape
from galvatron.ir.types import Dim, exact_quotient


def convolution(call: Call) -> OpDims:
    """Channels are (groups, channels of a group); the number of groups is an argument, so that groups stay whole.

    An unbatched convolution stays whole, and so does space.
    """
    shape, weight, groups = call.shape("input"), call.shape("weight"), call["groups"]
    assert isinstance(groups, int)
    if len(shape) != len(weight):
        return whole(call)
    transposed = "transpose" in call.op.name or bool(call.arguments.get("transposed"))
    inside, outside = (exact_quotient(weight[0], groups), weight[1])[:: 1 if transposed else -1]
    assert inside is not None and outside is not None
    sizes = {"n": shape[0], "g": groups, "c": inside, "o": outside}
    sizes = {name: size for name, size in sizes.items() if size != 1}

    def dim(*names: str) -> DimNames:
        return known(sizes, *names)

    space = ((),) * (len(shape) - 2)
    channels, filters = dim("g", "c"), dim("g", "o")
    matrix = (channels, dim("o")) if transposed else (filters, dim("c"))
    has_bias = call.has("bias")
    bias = ((filters,),) if has_bias else ()
    return OpDims(
        ((dim("n"), channels, *space), (*matrix, *space), *bias),
        ((dim("n"), filters, *space),),
        sizes,
        frozenset({"g"} & sizes.keys()),
        products=frozenset({0, 1}),
        sums=frozenset({2}) if has_bias else frozenset(),
    )


def recurrent(states: int) -> DimsFunction:
    """A recurrent network with so many hidden states: samples are independent, time and features are whole."""

    def rule(call: Call) -> OpDims:
        input_, *others = call.operand_shapes()
        samples = input_[0 if call["batch_first"] else 1]
        name: DimNames = () if samples == 1 else ("n",)
        sequence = (name, (), ()) if call["batch_first"] else ((), name, ())
        hidden = ((), name, ())
        parameters = map(unnamed, others[states:])
        sizes: dict[str, Dim] = {} if samples == 1 else {"n": samples}
        return OpDims((sequence, *(hidden,) * states, *parameters), (sequence, *(hidden,) * states), sizes)

    return rule


def recurrent_cell(states: int) -> DimsFunction:
    """One step of such a network."""

    def rule(call: Call) -> OpDims:
        input_, *others = call.operand_shapes()
        name: DimNames = () if input_[0] == 1 else ("n",)
        row, parameters = (name, ()), map(unnamed, others[states:])
        return OpDims((row, *(row,) * states, *parameters), (row,) * states, {"n": input_[0]} if name else {})

    return rule


def batch_norm(call: Call) -> OpDims:
    """With statistics that are given, element by element; with those of the batch, each channel sees all samples."""
    if not call["training"]:
        return by_line(call, "n c d*, c?, c?, c?, c? -> n c d*")
    if call.has("running_mean"):
        return whole(call)
    return by_line(call, "n! c d*!, c?, c? -> n! c d*!")


def instance_norm(call: Call) -> OpDims:
    """Statistics of each sample and channel; running ones mix samples."""
    if call.has("running_mean"):
        return whole(call)
    return by_line(call, "n c d*!, c?, c? -> n c d*!")


def group_norm(call: Call) -> OpDims:
    """The number of groups is an argument, so that channels stay whole."""
    present = [name for name in ("weight", "bias") if call.has(name)]
    sample = ((),) * (len(call.shape("input")) - 1)
    size = call.shape("input")[0]
    name: DimNames = () if size == 1 else ("n",)
    operands = ((name, *sample), *(((),) for _ in present))
    return OpDims(operands, ((name, *sample),), {} if size == 1 else {"n": size})


def grid_samples(call: Call) -> OpDims:
    """Each point of the grid is looked up by itself in the whole of space."""
    space = len(call.shape("input")) - 2
    inside = " ".join(f"x{i}!" for i in range(space))
    points = " ".join(f"y{i}" for i in range(space))
    return by_line(call, f"n c {inside}, n {points} w! -> n c {points}")


def einsum(call: Call) -> OpDims:
    """The equation names the dimensions; a letter that one operand has twice is whole."""
    equation = call["equation"]
    assert isinstance(equation, str)
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        letters = left.replace("...", "").replace(",", "")
        right = ("..." if "..." in left else "") + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    sizes: dict[str, Dim] = {}
    shapes = call.operand_shapes()
    named = [_letters(term, len(shape)) for term, shape in zip(terms, shapes, strict=True)]
    for names, shape in zip(named, shapes, strict=True):
        sizes.update((n, s) for n, s in zip(names, shape, strict=True) if s != 1)
    twice = frozenset(n for names in named for n in names if names.count(n) > 1) & sizes.keys()
    (result,) = call.results
    return OpDims(
        tuple(_placed(names, shape) for names, shape in zip(named, shapes, strict=True)),
        (_placed(_letters(right, len(result)), result),),
        sizes,
        twice,
        products=frozenset(range(len(shapes))),
    )


def tensordot(call: Call) -> OpDims:
    """Dims of the first operand and of the second, but for those that are summed in pairs."""
    left, right = call.shape("self"), call.shape("other")
    pairs = zip(call.dims("dims_other", len(right)), call.dims("dims_self", len(left)), strict=False)
    summed = dict(pairs) if call["dims_self"] else {}
    first = [f"a{i}" for i in range(len(left))]
    second = [f"a{summed[i]}" if i in summed else f"b{i}" for i in range(len(right))]
    sizes = {n: s for n, s in zip((*first, *second), (*left, *right), strict=True) if s != 1}
    rest = [f"a{i}" for i in range(len(left)) if i not in summed.values()]
    rest += [f"b{i}" for i in range(len(right)) if i not in summed]
    return OpDims(
        (_placed(first, left), _placed(second, right)),
        (_placed(rest, call.results[0]),),
        sizes,
        products=frozenset({0, 1}),
    )


def kronecker(call: Call) -> OpDims:
    """Each dim is (first, second); of unequal ranks both stay whole."""
    left, right = call.operand_shapes()
    if len(left) != len(right):
        return whole(call)
    sizes = {f"{x}{i}": s for x, shape in (("a", left), ("b", right)) for i, s in enumerate(shape) if s != 1}
    first, second = (tuple(known(sizes, f"{x}{i}") for i in range(len(left))) for x in "ab")
    result = tuple((*a, *b) for a, b in zip(first, second, strict=True))
    return OpDims((first, second), (result,), sizes, products=frozenset({0, 1}))


def solution(call: Call) -> OpDims:
    """`linalg.solve`: the columns of the right-hand side are independent, and each system of a batch."""
    matrix, side = call.shape("A"), call.shape("B")
    vectors = len(side) == 1 or (len(side) == len(matrix) - 1 and side == matrix[:-1])
    if vectors:
        return by_line(call, "b* m! k!, b* k! -> b* m!")
    return by_line(call, "b* m! k!, b* k! n -> b* m! n" if call["left"] else "b* m! k!, b* n k! -> b* n m!")


def _letters(term: str, rank: int) -> list[str]:
    """The names of a term's dims; those of an ellipsis are numbered from the right."""
    head, dots, tail = term.partition("...")
    run = range(rank - len(head) - len(tail)) if dots else ()
    return [*head, *(f"...{i}" for i in reversed(run)), *tail]


def _placed(names: list[str], shape: Shape) -> tuple[DimNames, ...]:
    return tuple(() if size == 1 else (name,) for name, size in zip(names, shape, strict=True))
