"""Sample calls of every op in the rule table, on random shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from hypothesis import strategies as st

from galvatron.ir.graph import Arg, Const, Graph, Op, Ref, Value
from galvatron.ir.interpreter import torch_op
from galvatron.ir.types import TORCH_DTYPE_NAMES, TensorType


@dataclass(frozen=True)
class Sample:
    """One op as a graph of its own, with a tensor for every operand."""

    op: Op
    tensors: dict[str, torch.Tensor]

    @property
    def differentiable(self) -> frozenset[str]:
        """The operands that have a gradient."""
        return frozenset(n for n, t in self.tensors.items() if continuous(t) and not hasattr(t, "constant"))

    @property
    def graph(self) -> Graph:
        inputs = tuple(Value(name, type_of(tensor)) for name, tensor in self.tensors.items())
        return Graph(inputs, (), (self.op,), tuple(v.name for v in self.op.results))


def type_of(tensor: torch.Tensor) -> TensorType:
    dtype = next(k for k, name in TORCH_DTYPE_NAMES.items() if getattr(torch, name) == tensor.dtype)
    return TensorType(dtype, tuple(tensor.shape))


def continuous(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def sample(target: str, *args: Any, **kwargs: Any) -> Sample:
    """The call `aten.<target>(*args, **kwargs)`; tensors among the arguments become operands."""
    tensors: dict[str, torch.Tensor] = {}

    def argument(value: Any) -> Arg:
        if isinstance(value, torch.Tensor):
            tensors[f"x{len(tensors)}"] = value
            return Ref(f"x{len(tensors) - 1}")
        if isinstance(value, torch.dtype):
            return Const("dtype", next(k for k, n in TORCH_DTYPE_NAMES.items() if getattr(torch, n) == value))
        return tuple(argument(v) for v in value) if isinstance(value, (list, tuple)) else value

    made = torch_op(f"aten.{target}")(*args, **kwargs)
    results = made if isinstance(made, (list, tuple)) else (made,)
    values = tuple(Value(f"y{i}", type_of(result)) for i, result in enumerate(results))
    ir_args, ir_kwargs = tuple(argument(a) for a in args), tuple((k, argument(v)) for k, v in kwargs.items())
    return Sample(Op(f"aten.{target}", ir_args, ir_kwargs, values), tensors)


class Draw:
    """Draws what a sample needs; sizes are such that `ranks` ranks can often share them."""

    def __init__(self, data: st.DataObject, ranks: int) -> None:
        self._data = data
        self._sizes = (1, ranks, 2 * ranks, ranks * ranks, 5)

    def one_of(self, *options: Any) -> Any:
        return self._data.draw(st.sampled_from(options))

    def size(self) -> int:
        return self.one_of(*self._sizes)

    def shape(self, low: int = 0, high: int = 3) -> tuple[int, ...]:
        return tuple(self.size() for _ in range(self._data.draw(st.integers(low, high))))

    def index(self, count: int) -> int:
        return self._data.draw(st.integers(0, count - 1))

    def broadcast(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """A shape that broadcasts to `shape`: leading dimensions left out, others of size one."""
        return tuple(self.one_of(size, 1) for size in shape[self.index(len(shape) + 1) :])


def real(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def positive(*shape: int) -> torch.Tensor:
    return torch.rand(shape, dtype=torch.float64) * 0.8 + 0.1


def constant(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, marked as an operand by which the op cannot be differentiated."""
    tensor.constant = True  # type: ignore[attr-defined]  # tensors take attributes
    return tensor


def below(high: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, high, shape)


Case = Callable[[Draw], Sample]
CASES: dict[str, list[Case]] = {}
"""Sample calls per entry of the rule table."""
POINTWISE: list[Case] = []
"""Sample calls of ops that have no rule of their own."""


def case(*rules: str) -> Callable[[Case], Case]:
    def register(function: Case) -> Case:
        for rule in rules:
            CASES.setdefault(rule, []).append(function)
        return function

    return register


def each(rules: tuple[str, ...], function: Callable[[Draw, str], Sample]) -> None:
    """One case per rule, all alike but for the name of the op."""
    for rule in rules:
        case(rule)(lambda d, rule=rule: function(d, rule))


# products


@case("linear")
def _linear(d: Draw) -> Sample:
    (k, n), lead = (d.size(), d.size()), d.shape(0, 2)
    bias = [real(n)] if d.one_of(True, False) else []
    return sample("linear.default", real(*lead, k), real(n, k), *bias)


@case("mm")
def _mm(d: Draw) -> Sample:
    m, k, n = d.shape(3, 3)
    return sample("mm.default", real(m, k), real(k, n))


@case("bmm")
def _bmm(d: Draw) -> Sample:
    b, m, k, n = d.shape(4, 4)
    return sample("bmm.default", real(b, m, k), real(b, k, n))


@case("addmm")
def _addmm(d: Draw) -> Sample:
    m, k, n = d.shape(3, 3)
    bias = real(*d.one_of((n,), (m, n), (1, n), (m, 1)))
    return sample("addmm.default", bias, real(m, k), real(k, n), beta=d.one_of(1, 2), alpha=d.one_of(1, 0.5))


@case("baddbmm")
def _baddbmm(d: Draw) -> Sample:
    b, m, k, n = d.shape(4, 4)
    return sample("baddbmm.default", real(*d.broadcast((b, m, n))), real(b, m, k), real(b, k, n))


@case("matmul")
def _matmul(d: Draw) -> Sample:
    m, k, n, b, c = d.shape(5, 5)
    left, right = d.one_of(
        ((k,), (k,)), ((m, k), (k,)), ((k,), (k, n)), ((m, k), (k, n)), ((k,), (b, k, n)), ((b, m, k), (k,)),
        ((b, m, k), (k, n)), ((b, m, k), (b, k, n)), ((c, b, m, k), (b, k, n)), ((b, m, k), (1, k, n)),
    )  # fmt: skip
    return sample("matmul.default", real(*left), real(*right))


@case("mul", "div.Tensor")
def _mul(d: Draw) -> Sample:
    shape = d.shape()
    left, right = d.one_of((shape, d.broadcast(shape)), (d.broadcast(shape), shape))
    other = d.one_of(positive(*right), 2.0)
    return sample(d.one_of("mul.Tensor", "div.Tensor"), real(*left), other)


@case("convolution")
def _convolution(d: Draw) -> Sample:
    n, c, o = d.shape(3, 3)
    groups = d.one_of(1, c)
    bias = d.one_of(None, real(o * groups))
    transposed = d.one_of(False, True) if groups == 1 else False
    weight = real(c, o, 3) if transposed else real(o * groups, c // groups, 3)
    return sample("convolution.default", real(n, c, 5), weight, bias, [1], [1], [1], transposed, [0], groups)


def _convolution_nd(d: Draw, rule: str) -> Sample:
    n, c, o = d.shape(3, 3)
    spatial = int(rule[4])
    lead = d.one_of((n,), ())
    bias = d.one_of([], [real(o)])
    return sample(f"{rule}.default", real(*lead, c, *[4] * spatial), real(o, c, *[2] * spatial), *bias)


each(("conv1d", "conv2d", "conv3d"), _convolution_nd)


@case("scaled_dot_product_attention")
def _attention(d: Draw) -> Sample:
    b, h, q, k = d.shape(4, 4)
    groups = d.one_of(1, 2, 3)
    lead = d.one_of((b,), (b, 2), ()) if groups == 1 else (b,)
    heads = d.one_of(h, 1) if groups == 1 else h  # one for all queries needs no groups
    query, key, value = real(*lead, h * groups, q, 2), real(*lead, heads, k, 2), real(*lead, heads, k, 3)
    if d.one_of(True, False):
        kwargs = {"is_causal": True}
    else:
        # A row of False would have no value to attend to.
        full = (*lead, h * groups, q, k)
        mask = d.one_of(tuple(d.one_of(size, 1) for size in full), (q, k), (1, k), None)
        kwargs = {} if mask is None else {"attn_mask": d.one_of(real(*mask), torch.ones(mask, dtype=torch.bool))}
    return sample("scaled_dot_product_attention.default", query, key, value, **kwargs, enable_gqa=groups > 1)


# sums


@case("add", "sub")
def _add(d: Draw) -> Sample:
    shape = d.shape()
    left, right = d.one_of((shape, d.broadcast(shape)), (d.broadcast(shape), shape))
    other = d.one_of(real(*right), 2.0)
    return sample(d.one_of("add.Tensor", "sub.Tensor"), real(*left), other, **d.one_of({}, {"alpha": 2}))


each(("neg", "clone", "_to_copy", "detach"), lambda d, rule: sample(f"{rule}.default", real(*d.shape())))


@case("sum")
def _sum(d: Draw) -> Sample:
    shape = d.shape()
    x = d.one_of(real(*shape), below(4, *shape), below(2, *shape).bool())
    if not shape or d.one_of(True, False):
        return sample("sum.default", x)
    dims = d.one_of([d.index(len(shape))], list(range(len(shape))), [])
    return sample("sum.dim_IntList", x, dims, d.one_of(True, False))


# views


def _views(d: Draw, rule: str) -> Sample:
    """A random cut of the elements, of which the operand and the result each join some neighbours."""
    cut = d.shape(1, 5)

    def joined() -> list[int]:
        dims = [cut[0]]
        for size in cut[1:]:
            if d.one_of(True, False):
                dims[-1] *= size
            else:
                dims.append(size)
        return dims

    return sample(f"{rule}.default", real(*joined()), joined())


each(("view", "reshape"), _views)


@case("view.dtype")
def _reinterpreted(d: Draw) -> Sample:
    return sample("view.dtype", real(*d.shape(1, 3)), d.one_of(torch.int64, torch.int32))


@case("view", "reshape")
def _incommensurable(d: Draw) -> Sample:
    shape, result = d.one_of(
        ((4, 6), (6, 4)), ((2, 3, 4), (4, 3, 2)), ((6, 2), (4, 3)), ((12, 2, 3), (12, 6)), ((8,), (2, 4))
    )
    lead = d.shape(0, 1)
    return sample("reshape.default", real(*lead, *shape), (*lead, *result))


@case("expand")
def _expand(d: Draw) -> Sample:
    shape = d.shape()
    return sample("expand.default", real(*d.broadcast(shape)), shape)


@case("squeeze")
def _squeeze(d: Draw) -> Sample:
    shape = (*d.shape(0, 2), 1, *d.shape(0, 1))
    dim = shape.index(1)
    return d.one_of(sample("squeeze.dim", real(*shape), dim), sample("squeeze.dims", real(*shape), [dim]))


@case("unsqueeze")
def _unsqueeze(d: Draw) -> Sample:
    shape = d.shape()
    return sample("unsqueeze.default", real(*shape), d.index(len(shape) + 1))


@case("flatten")
def _flatten(d: Draw) -> Sample:
    shape = d.shape(1, 4)
    start = d.index(len(shape))
    return sample("flatten.using_ints", real(*shape), start, start + d.index(len(shape) - start))


@case("unflatten")
def _unflatten(d: Draw) -> Sample:
    lead, parts, tail = d.shape(0, 1), d.shape(2, 2), d.shape(0, 1)
    return sample("unflatten.int", real(*lead, prod(parts), *tail), len(lead), parts)


@case("permute")
def _permute(d: Draw) -> Sample:
    a, b, c = d.shape(3, 3)
    return sample("permute.default", real(a, b, c), d.one_of([1, 0, 2], [2, 0, 1], [1, 2, 0]))


@case("transpose")
def _transpose(d: Draw) -> Sample:
    return sample("transpose.int", real(*d.shape(3, 3)), d.index(3), d.index(3))


each(("t", "numpy_T"), lambda d, rule: sample(f"{rule}.default", real(*d.shape(1, 2))))


@case("split")
def _split(d: Draw) -> Sample:
    shape = d.shape(1, 3)
    dim = d.index(len(shape))
    parts, size = d.one_of(1, 2, 3), shape[dim]
    whole = (*shape[:dim], size * parts, *shape[dim + 1 :])
    return d.one_of(sample("split.Tensor", real(*whole), size, dim), sample("split.Tensor", real(*shape), 2, dim))


@case("split_with_sizes")
def _split_with_sizes(d: Draw) -> Sample:
    shape = d.shape(1, 3)
    dim, other = d.index(len(shape)), d.size()
    sizes = d.one_of([shape[dim]] * 3, [shape[dim], other])
    whole = (*shape[:dim], sum(sizes), *shape[dim + 1 :])
    return sample("split_with_sizes.default", real(*whole), sizes, dim)


@case("chunk")
def _chunk(d: Draw) -> Sample:
    shape = d.shape(1, 3)
    return sample("chunk.default", real(*shape), d.one_of(1, 2, 3), d.index(len(shape)))


@case("slice")
def _slice(d: Draw) -> Sample:
    shape = d.shape(1, 3)
    dim = d.index(len(shape))
    start = d.index(shape[dim])
    return sample("slice.Tensor", real(*shape), dim, start, start + 1 + d.index(shape[dim] - start), d.one_of(1, 2))


@case("select")
def _select(d: Draw) -> Sample:
    shape = d.shape(1, 3)
    dim = d.index(len(shape))
    return sample("select.int", real(*shape), dim, d.index(shape[dim]))


@case("narrow")
def _narrow(d: Draw) -> Sample:
    shape = d.shape(1, 3)
    return sample("narrow.default", real(*shape), dim := d.index(len(shape)), 0, 1 + d.index(shape[dim]))


@case("unbind")
def _unbind(d: Draw) -> Sample:
    shape = d.shape(1, 3)
    return sample("unbind.int", real(*shape), d.index(len(shape)))


@case("cat")
def _cat(d: Draw) -> Sample:
    shape = d.shape(1, 3)
    dim, other = d.index(len(shape)), d.size()
    return sample("cat.default", [real(*shape), real(*shape[:dim], other, *shape[dim + 1 :])], dim)


@case("stack")
def _stack(d: Draw) -> Sample:
    shape = d.shape()
    return sample("stack.default", [real(*shape) for _ in range(d.one_of(1, 2, 3))], d.index(len(shape) + 1))


each(
    ("pad", "constant_pad_nd"),
    lambda d, rule: sample(f"{rule}.default", real(*d.shape(2, 3)), d.one_of([0, 1], [1, -1, 0, 0], [0, 0, 2, 0])),
)

# along one dimension


def _dim(d: Draw, rule: str) -> Sample:
    shape = d.shape(1, 3)
    dim = d.index(len(shape))
    target, *rest = {
        "softmax": ("softmax.int", dim),
        "_softmax": ("_softmax.default", dim, False),
        "log_softmax": ("log_softmax.int", dim),
        "_log_softmax": ("_log_softmax.default", dim, False),
        "cumsum": ("cumsum.default", dim),
        "logsumexp": ("logsumexp.default", [dim], d.one_of(True, False)),
        "mean": d.one_of(("mean.dim", [dim], d.one_of(True, False)), ("mean.default",)),
        "amax": ("amax.default", d.one_of([dim], []), d.one_of(True, False)),
        "amin": ("amin.default", [dim], d.one_of(True, False)),
        "argmax": ("argmax.default", d.one_of(dim, None)),
        "flip": ("flip.default", [dim]),
        "roll": ("roll.default", [1], d.one_of([dim], [])),
        "topk": ("topk.default", 1 + d.index(shape[dim]), dim),
        "sort": ("sort.default", dim),
    }[rule]
    return sample(target, real(*shape), *rest)


each(
    ("softmax", "_softmax", "log_softmax", "_log_softmax", "cumsum", "logsumexp", "mean", "amax", "amin", "argmax",
     "flip", "roll", "topk", "sort"), _dim,
)  # fmt: skip


@case("var")
def _var(d: Draw) -> Sample:
    shape = d.shape(1, 2)
    return sample(
        "var.correction", real(*shape, 5), [len(shape)], correction=d.one_of(0, 1), keepdim=d.one_of(True, False)
    )


@case("diff")
def _diff(d: Draw) -> Sample:
    shape = (*d.shape(0, 2), 5)
    return sample("diff.default", real(*shape), 1, len(shape) - 1, *d.one_of([], [real(*shape[:-1], 1)]))


@case("gather")
def _gather(d: Draw) -> Sample:
    shape = d.shape(1, 3)
    dim = d.index(len(shape))
    other = d.one_of(shape, tuple(1 + d.index(size) for size in shape))
    index = below(shape[dim], *other[:dim], d.size(), *other[dim + 1 :])
    return sample("gather.default", real(*shape), dim, index)


@case("scatter")
def _scatter(d: Draw) -> Sample:
    shape = d.shape(1, 3)
    dim = d.index(len(shape))
    other = d.one_of(shape, tuple(1 + d.index(size) for size in shape))
    # Without repeats in the index, so that what is written last does not matter.
    index = torch.rand((*other[:dim], shape[dim], *other[dim + 1 :])).argsort(dim)
    source = d.one_of(("scatter.src", real(*index.shape)), ("scatter.value", 2.0))
    return sample(source[0], real(*shape), dim, index, source[1])


@case("scatter_add")
def _scatter_add(d: Draw) -> Sample:
    shape = d.shape(1, 3)
    dim = d.index(len(shape))
    index = below(shape[dim], *shape[:dim], d.size(), *shape[dim + 1 :])
    return sample("scatter_add.default", real(*shape), dim, index, real(*index.shape))


@case("slice_scatter")
def _slice_scatter(d: Draw) -> Sample:
    shape = d.shape(1, 3)
    dim = d.index(len(shape))
    step = d.one_of(1, 2)
    part = torch.empty(shape).transpose(0, dim)[::step].transpose(0, dim).shape
    return sample("slice_scatter.default", real(*shape), real(*part), dim, 0, shape[dim], step)


@case("index_add", "index_copy", "index_fill")
def _index_write(d: Draw) -> Sample:
    shape = d.shape(1, 3)
    dim = d.index(len(shape))
    rows = torch.randperm(shape[dim])[: 1 + d.index(shape[dim])]
    source = real(*shape[:dim], len(rows), *shape[dim + 1 :])
    target, value = d.one_of(
        ("index_add.default", source),
        ("index_copy.default", source),
        ("index_fill.int_Scalar", 2.0),
        ("index_fill.int_Tensor", real()),
    )
    return sample(target, real(*shape), dim, rows, value)


@case("index_put")
def _index_put(d: Draw) -> Sample:
    shape = d.shape(1, 3)
    first = d.index(len(shape))
    count = 1 + d.index(len(shape) - first)
    # Without repeats among the positions, so that what is written last does not matter.
    rows = torch.randperm(shape[first])[: 1 + d.index(shape[first])]
    indices = [None] * first + [rows] + [below(size, len(rows)) for size in shape[first + 1 : first + count]]
    written = (*shape[:first], len(rows), *shape[first + count :])
    return sample("index_put.default", real(*shape), indices, real(*d.broadcast(written)), d.one_of(False, True))


@case("diagonal", "diagonal_scatter")
def _diagonal(d: Draw) -> Sample:
    shape = d.shape(2, 3)
    dims = d.one_of((0, 1), (-2, -1), (len(shape) - 1, 0))
    whole = real(*shape)
    if d.one_of(True, False):
        return sample("diagonal.default", whole, d.one_of(0, 1), *dims)
    return sample("diagonal_scatter.default", whole, real(*whole.diagonal(0, *dims).shape), 0, *dims)


each(("triu", "tril"), lambda d, rule: sample(f"{rule}.default", real(*d.shape(2, 3)), d.one_of(0, 1, -1)))


def _numbers(*shape: int) -> torch.Tensor:
    return torch.complex(real(*shape), real(*shape))


case("view_as_complex")(lambda d: sample("view_as_complex.default", real(*d.shape(), 2)))
each(("view_as_real", "real", "imag", "conj_physical"), lambda d, rule: sample(f"{rule}.default", _numbers(*d.shape())))
each(("complex", "polar"), lambda d, rule: sample(f"{rule}.default", *(real(*s) for s in [d.shape()] * 2)))

# normalisation and lookup


@case("layer_norm")
def _layer_norm(d: Draw) -> Sample:
    lead, inner = d.shape(0, 2), d.one_of((4,), (2, 3))
    affine = d.one_of([], [real(*inner)], [real(*inner), real(*inner)], [None, real(*inner)])
    return sample("layer_norm.default", real(*lead, *inner), inner, *affine)


@case("rms_norm")
def _rms_norm(d: Draw) -> Sample:
    lead, inner = d.shape(0, 2), d.one_of((4,), (2, 3))
    return sample("rms_norm.default", real(*lead, *inner), inner, *d.one_of([], [real(*inner)]))


@case("embedding")
def _embedding(d: Draw) -> Sample:
    v, h = d.shape(2, 2)
    frequency = d.one_of(False, True)
    return sample("embedding.default", real(v, h), below(v, *d.shape(0, 2)), d.one_of(-1, 0), frequency)


@case("index")
def _index(d: Draw) -> Sample:
    x, i = d.shape(3, 3), d.shape(1, 2)
    first, second = below(x[0], *i), below(x[1], *d.broadcast(i))
    last = below(x[2], *d.broadcast(i))
    indices = d.one_of([first], [None, second], [first, second], [first, None, last], [None, second, last])
    return sample("index.Tensor", real(*x), indices)


@case("index_select")
def _index_select(d: Draw) -> Sample:
    shape = d.shape(1, 3)
    dim = d.index(len(shape))
    return sample("index_select.default", real(*shape), dim, below(shape[dim], d.size()))


# numbers


def _created(d: Draw, rule: str) -> Sample:
    shape = d.shape()
    size = [] if rule.endswith("_like") else [shape]
    self = [real(*shape)] if "_" in rule else []
    number = [2.0] if "full" in rule else []
    overload = "memory_format" if rule == "empty" else "default"
    return sample(f"{rule}.{overload}", *self, *size, *number, **d.one_of({}, {"dtype": torch.float64}))


each(
    ("full", "zeros", "ones", "empty", "new_zeros", "new_ones", "new_full", "full_like", "zeros_like", "ones_like"),
    _created,
)
each(("arange", "scalar_tensor"), lambda d, rule: sample(f"{rule}.default", d.size()))

# losses


def _loss_reduction(d: Draw) -> int:
    return d.one_of(0, 2, 2, 1)


@case("cross_entropy_loss")
def _cross_entropy(d: Draw) -> Sample:
    v, tail = d.one_of(2, 5, 6), d.shape(0, 1)
    lead = d.one_of((d.size(),), ()) if not tail else (d.size(),)
    labels = below(v, *lead, *tail)
    labels = torch.where(torch.rand(labels.shape) < 0.2, -100, labels)
    target = d.one_of(labels, positive(*lead, v, *tail))
    weight = d.one_of(None, constant(positive(v)))
    return sample(
        "cross_entropy_loss.default",
        real(*lead, v, *tail),
        target,
        weight,
        _loss_reduction(d),
        -100,
        d.one_of(0.0, 0.1),
    )


@case("nll_loss")
def _nll_loss(d: Draw) -> Sample:
    n, v = d.size(), d.one_of(2, 5)
    return sample(
        "nll_loss.default", real(n, v), below(v, n), d.one_of(None, constant(positive(v))), _loss_reduction(d), 0
    )


def _elementwise_loss(d: Draw, rule: str) -> Sample:
    shape = d.shape()
    return sample(f"{rule}.default", positive(*shape), positive(*shape), _loss_reduction(d))


each(("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "kl_div"), _elementwise_loss)


@case("binary_cross_entropy")
def _binary_cross_entropy(d: Draw) -> Sample:
    shape = d.shape()
    weight = d.one_of(None, constant(positive(*d.broadcast(shape))))
    return sample("binary_cross_entropy.default", positive(*shape), positive(*shape), weight, _loss_reduction(d))


@case("binary_cross_entropy_with_logits")
def _binary_cross_entropy_with_logits(d: Draw) -> Sample:
    shape = d.shape()
    weight, positive_weight = (d.one_of(None, constant(positive(*d.broadcast(shape)))) for _ in range(2))
    return sample(
        "binary_cross_entropy_with_logits.default",
        real(*shape), positive(*shape), weight, positive_weight, _loss_reduction(d),
    )  # fmt: skip


def _where_number(d: Draw, rule: str) -> Sample:
    shape = d.shape()
    chosen = (real(*d.broadcast(shape)), -1.0)
    return sample(rule, below(2, *shape).bool(), *(chosen if rule.endswith("Other") else chosen[::-1]))


each(("where.ScalarOther", "where.ScalarSelf"), _where_number)


# ops without a rule of their own


def _pointwise(target: str, *rest: Any) -> None:
    POINTWISE.append(lambda d: sample(target, positive(*d.shape()), *rest))


for _target in ("gelu.default", "silu.default", "tanh.default", "rsqrt.default", "relu.default", "exp.default",
                "cos.default", "sigmoid.default", "log.default"):  # fmt: skip
    _pointwise(_target)
_pointwise("pow.Tensor_Scalar", 2)
_pointwise("clamp.default", 0.3, 0.6)
_pointwise("ne.Scalar", 0)


@POINTWISE.append
def _where(d: Draw) -> Sample:
    shape = d.shape()
    condition = below(2, *d.broadcast(shape)).bool()
    return sample("where.self", condition, real(*shape), real(*d.broadcast(shape)))


@POINTWISE.append
def _binary(d: Draw) -> Sample:
    shape = d.shape()
    target = d.one_of("maximum.default", "pow.Tensor_Tensor", "le.Tensor", "div.Tensor_mode", "arctan2.default")
    kwargs = {"rounding_mode": "floor"} if target == "div.Tensor_mode" else {}
    return sample(target, positive(*shape), positive(*d.broadcast(shape)), **kwargs)


@POINTWISE.append
def _of_whole_numbers(d: Draw) -> Sample:
    shape = d.shape()
    target = d.one_of("floor_divide.default", "less.Tensor", "isclose.default", "__or__.Tensor", "multiply.Tensor")
    return sample(target, below(9, *shape), 1 + below(9, *d.broadcast(shape)))


@POINTWISE.append
def _masked_fill(d: Draw) -> Sample:
    shape = d.shape()
    return sample("masked_fill.Scalar", real(*shape), below(2, *d.broadcast(shape)).bool(), -1.0)
