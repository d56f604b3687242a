"""How a person writes each ATen op: a table from the op's signature to a Python form.

The left column is the op and its schema (`aten.` left out; parameter names and defaults are torch's own, a test holds
them to that); the right column is what is written. In the right column

- a name stands for the argument, `name=` for a keyword argument that is left out when it has its default, `*name` for a
  list spread into arguments, and positional arguments at the end are left out when they have their defaults;
- `x.f(...)` is a method of the argument `x`, any other dotted name is a function;
- an operator form such as `self + other` is written as it stands.

An op that is not here, or whose arguments have no place in its form, is written `torch.ops.aten.name.overload(...)`.
Every form means exactly what its op means.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

_TABLE = """
# matrices and convolutions
linear.default(input, weight, bias=None)                         -> F.linear(input, weight, bias)
matmul.default(self, other)                                      -> self @ other
mm.default(self, mat2)                                           -> self @ mat2
bmm.default(self, mat2)                                          -> self @ mat2
addmm.default(self, mat1, mat2, *, beta=1, alpha=1)              -> torch.addmm(self, mat1, mat2, beta=, alpha=)
baddbmm.default(self, batch1, batch2, *, beta=1, alpha=1)        -> torch.baddbmm(self, batch1, batch2, beta=, alpha=)
einsum.default(equation, tensors, *, path=None)                  -> torch.einsum(equation, *tensors)
outer.default(self, vec2)                                        -> torch.outer(self, vec2)
conv1d.default(input, weight, bias=None, stride=(1,), padding=(0,), dilation=(1,), groups=1) -> F.conv1d(input, weight, bias, stride=, padding=, dilation=, groups=)
conv2d.default(input, weight, bias=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1) -> F.conv2d(input, weight, bias, stride=, padding=, dilation=, groups=)
scaled_dot_product_attention.default(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None, enable_gqa=False) -> F.scaled_dot_product_attention(query, key, value, attn_mask=, dropout_p=, is_causal=, scale=, enable_gqa=)

# arithmetic
add.Tensor(self, other, *, alpha=1)                              -> self + other
add.Scalar(self, other, alpha=1)                                 -> self + other
sub.Tensor(self, other, *, alpha=1)                              -> self - other
sub.Scalar(self, other, alpha=1)                                 -> self - other
rsub.Scalar(self, other, alpha=1)                                -> other - self
mul.Tensor(self, other)                                          -> self * other
mul.Scalar(self, other)                                          -> self * other
div.Tensor(self, other)                                          -> self / other
div.Scalar(self, other)                                          -> self / other
floor_divide.default(self, other)                                -> self // other
remainder.Tensor(self, other)                                    -> self % other
remainder.Scalar(self, other)                                    -> self % other
neg.default(self)                                                -> -self
pow.Tensor_Scalar(self, exponent)                                -> self**exponent
pow.Tensor_Tensor(self, exponent)                                -> self**exponent
pow.Scalar(self, exponent)                                       -> torch.pow(self, exponent)
div.Tensor_mode(self, other, *, rounding_mode)                   -> torch.div(self, other, rounding_mode=)
maximum.default(self, other)                                     -> torch.maximum(self, other)
minimum.default(self, other)                                     -> torch.minimum(self, other)
abs.default(self)                                                -> self.abs()
exp.default(self)                                                -> self.exp()
log.default(self)                                                -> self.log()
log1p.default(self)                                              -> self.log1p()
sqrt.default(self)                                               -> self.sqrt()
rsqrt.default(self)                                              -> self.rsqrt()
reciprocal.default(self)                                         -> self.reciprocal()
square.default(self)                                             -> self.square()
sin.default(self)                                                -> self.sin()
cos.default(self)                                                -> self.cos()
erf.default(self)                                                -> self.erf()
sign.default(self)                                               -> self.sign()
floor.default(self)                                              -> self.floor()
ceil.default(self)                                               -> self.ceil()
clamp.default(self, min=None, max=None)                          -> self.clamp(min=, max=)
clamp_min.default(self, min)                                     -> self.clamp_min(min)
clamp_max.default(self, max)                                     -> self.clamp_max(max)

# comparison and logic
eq.Tensor(self, other)                                           -> self == other
eq.Scalar(self, other)                                           -> self == other
ne.Tensor(self, other)                                           -> self != other
ne.Scalar(self, other)                                           -> self != other
lt.Tensor(self, other)                                           -> self < other
lt.Scalar(self, other)                                           -> self < other
le.Tensor(self, other)                                           -> self <= other
le.Scalar(self, other)                                           -> self <= other
gt.Tensor(self, other)                                           -> self > other
gt.Scalar(self, other)                                           -> self > other
ge.Tensor(self, other)                                           -> self >= other
ge.Scalar(self, other)                                           -> self >= other
bitwise_and.Tensor(self, other)                                  -> self & other
bitwise_or.Tensor(self, other)                                   -> self | other
bitwise_xor.Tensor(self, other)                                  -> self ^ other
__and__.Tensor(self, other)                                      -> self & other
__or__.Tensor(self, other)                                       -> self | other
bitwise_not.default(self)                                        -> ~self
logical_and.default(self, other)                                 -> torch.logical_and(self, other)
logical_or.default(self, other)                                  -> torch.logical_or(self, other)
logical_not.default(self)                                        -> torch.logical_not(self)
isnan.default(self)                                              -> self.isnan()
isin.Tensor_Tensor(elements, test_elements, *, assume_unique=False, invert=False) -> torch.isin(elements, test_elements, assume_unique=, invert=)
where.self(condition, self, other)                               -> torch.where(condition, self, other)
where.ScalarOther(condition, self, other)                        -> torch.where(condition, self, other)
where.ScalarSelf(condition, self, other)                         -> torch.where(condition, self, other)
masked_fill.Scalar(self, mask, value)                            -> self.masked_fill(mask, value)
masked_fill.Tensor(self, mask, value)                            -> self.masked_fill(mask, value)
tril.default(self, diagonal=0)                                   -> self.tril(diagonal)
triu.default(self, diagonal=0)                                   -> self.triu(diagonal)

# activations
relu.default(self)                                               -> F.relu(self)
gelu.default(self, *, approximate="none")                        -> F.gelu(self, approximate=)
silu.default(self)                                               -> F.silu(self)
mish.default(self)                                               -> F.mish(self)
glu.default(self, dim=-1)                                        -> F.glu(self, dim=)
sigmoid.default(self)                                            -> self.sigmoid()
tanh.default(self)                                               -> self.tanh()
hardswish.default(self)                                          -> F.hardswish(self)
leaky_relu.default(self, negative_slope=0.01)                    -> F.leaky_relu(self, negative_slope)
log_sigmoid.default(self)                                        -> F.logsigmoid(self)
softplus.default(self, beta=1, threshold=20)                     -> F.softplus(self, beta, threshold)
softmax.int(self, dim, dtype=None)                               -> F.softmax(self, dim=, dtype=)
log_softmax.int(self, dim, dtype=None)                           -> F.log_softmax(self, dim=, dtype=)

# normalisation, embedding, losses
layer_norm.default(input, normalized_shape, weight=None, bias=None, eps=1e-05, cudnn_enable=True) -> F.layer_norm(input, normalized_shape, weight, bias, eps)
rms_norm.default(input, normalized_shape, weight=None, eps=None) -> F.rms_norm(input, normalized_shape, weight, eps)
group_norm.default(input, num_groups, weight=None, bias=None, eps=1e-05, cudnn_enabled=True) -> F.group_norm(input, num_groups, weight, bias, eps)
embedding.default(weight, indices, padding_idx=-1, scale_grad_by_freq=False, sparse=False) -> F.embedding(indices, weight)
embedding.default(weight, indices, padding_idx=-1, scale_grad_by_freq=False, sparse=False) -> torch.embedding(weight, indices, padding_idx)
one_hot.default(self, num_classes=-1)                            -> F.one_hot(self, num_classes)
cross_entropy_loss.default(self, target, weight=None, reduction=1, ignore_index=-100, label_smoothing=0.0) -> F.cross_entropy(self, target, weight=, reduction=, ignore_index=, label_smoothing=)
nll_loss_nd.default(self, target, weight=None, reduction=1, ignore_index=-100) -> F.nll_loss(self, target, weight=, reduction=, ignore_index=)
mse_loss.default(self, target, reduction=1)                      -> F.mse_loss(self, target, reduction=)
l1_loss.default(self, target, reduction=1)                       -> F.l1_loss(self, target, reduction=)
binary_cross_entropy_with_logits.default(self, target, weight=None, pos_weight=None, reduction=1) -> F.binary_cross_entropy_with_logits(self, target, weight=, pos_weight=, reduction=)

# reductions
sum.default(self, *, dtype=None)                                 -> self.sum(dtype=)
sum.dim_IntList(self, dim, keepdim=False, *, dtype=None)         -> self.sum(dim=, keepdim=, dtype=)
mean.default(self, *, dtype=None)                                -> self.mean(dtype=)
mean.dim(self, dim, keepdim=False, *, dtype=None)                -> self.mean(dim=, keepdim=, dtype=)
prod.dim_int(self, dim, keepdim=False, *, dtype=None)            -> self.prod(dim=, keepdim=, dtype=)
var.correction(self, dim=None, *, correction=None, keepdim=False) -> self.var(dim=, correction=, keepdim=)
std.correction(self, dim=None, *, correction=None, keepdim=False) -> self.std(dim=, correction=, keepdim=)
amax.default(self, dim=(), keepdim=False)                        -> self.amax(dim=, keepdim=)
amin.default(self, dim=(), keepdim=False)                        -> self.amin(dim=, keepdim=)
argmax.default(self, dim=None, keepdim=False)                    -> self.argmax(dim=, keepdim=)
max.dim(self, dim, keepdim=False)                                -> self.max(dim=, keepdim=)
min.dim(self, dim, keepdim=False)                                -> self.min(dim=, keepdim=)
any.default(self)                                                -> self.any()
any.dim(self, dim, keepdim=False)                                -> self.any(dim=, keepdim=)
all.default(self)                                                -> self.all()
all.dim(self, dim, keepdim=False)                                -> self.all(dim=, keepdim=)
logsumexp.default(self, dim, keepdim=False)                      -> self.logsumexp(dim=, keepdim=)
cumsum.default(self, dim, *, dtype=None)                         -> self.cumsum(dim=, dtype=)
topk.default(self, k, dim=-1, largest=True, sorted=True)         -> self.topk(k, dim=, largest=, sorted=)
sort.default(self, dim=-1, descending=False)                     -> self.sort(dim=, descending=)

# shapes
view.default(self, size)                                         -> self.view(*size)
reshape.default(self, shape)                                     -> self.reshape(*shape)
expand.default(self, size, *, implicit=False)                    -> self.expand(*size)
permute.default(self, dims)                                      -> self.permute(*dims)
transpose.int(self, dim0, dim1)                                  -> self.transpose(dim0, dim1)
t.default(self)                                                  -> self.t()
unsqueeze.default(self, dim)                                     -> self.unsqueeze(dim)
squeeze.default(self)                                            -> self.squeeze()
squeeze.dim(self, dim)                                           -> self.squeeze(dim)
squeeze.dims(self, dim)                                          -> self.squeeze(dim)
flatten.using_ints(self, start_dim=0, end_dim=-1)                -> self.flatten(start_dim, end_dim)
unflatten.int(self, dim, sizes)                                  -> self.unflatten(dim, sizes)
movedim.int(self, source, destination)                           -> self.movedim(source, destination)
narrow.default(self, dim, start, length)                         -> self.narrow(dim, start, length)
repeat.default(self, repeats)                                    -> self.repeat(*repeats)
repeat_interleave.self_int(self, repeats, dim=None, *, output_size=None) -> self.repeat_interleave(repeats, dim=)
flip.default(self, dims)                                         -> self.flip(*dims)
roll.default(self, shifts, dims=())                              -> self.roll(shifts, dims)
cat.default(tensors, dim=0)                                      -> torch.cat(tensors, dim=)
stack.default(tensors, dim=0)                                    -> torch.stack(tensors, dim=)
split.Tensor(self, split_size, dim=0)                            -> self.split(split_size, dim=)
split_with_sizes.default(self, split_sizes, dim=0)               -> self.split(split_sizes, dim=)
chunk.default(self, chunks, dim=0)                               -> self.chunk(chunks, dim=)
unbind.int(self, dim=0)                                          -> self.unbind(dim=)
constant_pad_nd.default(self, pad, value=0)                      -> F.pad(self, pad, value=)
pad.default(self, pad, mode="constant", value=None)              -> F.pad(self, pad, mode=, value=)
gather.default(self, dim, index, *, sparse_grad=False)           -> self.gather(dim, index)
index_select.default(self, dim, index)                           -> self.index_select(dim, index)
scatter.src(self, dim, index, src)                               -> self.scatter(dim, index, src)
scatter.value(self, dim, index, value)                           -> self.scatter(dim, index, value)
scatter_add.default(self, dim, index, src)                       -> self.scatter_add(dim, index, src)
index_add.default(self, dim, index, source, *, alpha=1)          -> self.index_add(dim, index, source, alpha=)

# types and copies
_to_copy.default(self, *, dtype, layout=None, device=None, pin_memory=None, non_blocking=False, memory_format=None) -> self.to(dtype)
to.dtype(self, dtype, non_blocking=False, copy=False, memory_format=None) -> self.to(dtype)
type_as.default(self, other)                                     -> self.type_as(other)
clone.default(self, *, memory_format=None)                       -> self.clone(memory_format=)
contiguous.default(self, *, memory_format=torch.contiguous_format) -> self.contiguous()
detach.default(self)                                             -> self.detach()

# complex numbers
view_as_real.default(self)                                       -> torch.view_as_real(self)
complex.default(real, imag)                                      -> torch.complex(real, imag)
polar.default(abs, angle)                                        -> torch.polar(abs, angle)
real.default(self)                                               -> torch.real(self)
imag.default(self)                                               -> torch.imag(self)
conj_physical.default(self)                                      -> self.conj_physical()

# creation
arange.default(end, *, dtype=None, layout=None, device=None, pin_memory=None) -> torch.arange(end, dtype=, device=)
arange.start(start, end, *, dtype=None, layout=None, device=None, pin_memory=None) -> torch.arange(start, end, dtype=, device=)
arange.start_step(start, end, step=1, *, dtype=None, layout=None, device=None, pin_memory=None) -> torch.arange(start, end, step, dtype=, device=)
full.default(size, fill_value, *, dtype=None, layout=None, device=None, pin_memory=None) -> torch.full(size, fill_value, dtype=, device=)
zeros.default(size, *, dtype=None, layout=None, device=None, pin_memory=None) -> torch.zeros(size, dtype=, device=)
ones.default(size, *, dtype=None, layout=None, device=None, pin_memory=None) -> torch.ones(size, dtype=, device=)
scalar_tensor.default(s, *, dtype=None, layout=None, device=None, pin_memory=None) -> torch.scalar_tensor(s, dtype=, device=)
zeros_like.default(self, *, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None) -> torch.zeros_like(self, dtype=, memory_format=)
ones_like.default(self, *, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None) -> torch.ones_like(self, dtype=, memory_format=)
full_like.default(self, fill_value, *, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None) -> torch.full_like(self, fill_value, dtype=, memory_format=)
new_zeros.default(self, size, *, dtype=None, layout=None, device=None, pin_memory=None) -> self.new_zeros(size, dtype=)
new_ones.default(self, size, *, dtype=None, layout=None, device=None, pin_memory=None) -> self.new_ones(size, dtype=)
new_full.default(self, size, fill_value, *, dtype=None, layout=None, device=None, pin_memory=None) -> self.new_full(size, fill_value, dtype=)

# random numbers
dropout.default(input, p, train)                                 -> F.dropout(input, p, train)
bernoulli.default(self, *, generator=None)                       -> torch.bernoulli(self)
rand.default(size, *, dtype=None, layout=None, device=None, pin_memory=None) -> torch.rand(size, dtype=, device=)
randn.default(size, *, dtype=None, layout=None, device=None, pin_memory=None) -> torch.randn(size, dtype=, device=)
rand_like.default(self, *, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None) -> torch.rand_like(self, dtype=, memory_format=)
randn_like.default(self, *, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None) -> torch.randn_like(self, dtype=, memory_format=)
"""  # noqa: E501

REQUIRED = object()
"""In place of a default: the parameter has none."""

CONTIGUOUS_FORMAT = object()
"""The default `torch.contiguous_format`, here without torch."""


@dataclass(frozen=True)
class Form:
    """One line of the table, read.

    `parameters` maps each parameter of the op to its default. Exactly one of `operator` (the text between, or before,
    the operands) and `function` is set; a `receiver` makes the function a method of that argument.
    """

    target: str
    parameters: tuple[tuple[str, Any], ...]
    positional: tuple[str, ...] = ()
    spread: str = ""
    keywords: tuple[str, ...] = ()
    operator: str = ""
    function: str = ""
    receiver: str = ""

    @property
    def written(self) -> frozenset[str]:
        """The parameters that have a place in the form."""
        return frozenset((*self.positional, self.spread, *self.keywords, self.receiver)) - {""}


@lru_cache(maxsize=1)
def forms() -> dict[str, tuple[Form, ...]]:
    """The table: the forms of each target (`aten.add.Tensor`), the preferred one first."""
    table: dict[str, tuple[Form, ...]] = {}
    for row in _TABLE.splitlines():
        if row and not row.startswith("#"):
            form = _read_row(row)
            table[form.target] = (*table.get(form.target, ()), form)
    return table


def _read_row(row: str) -> Form:
    signature, _, text = (part.strip() for part in row.partition("->"))
    name, _, parameter_text = signature[:-1].partition("(")
    target, parameters = f"aten.{name}", _read_parameters(parameter_text)
    if not text.endswith(")"):
        words = re.findall(r"\w+|[^\w\s]+", text)
        operands = tuple(w for w in words if w.isidentifier())
        return Form(target, parameters, positional=operands, operator=next(w for w in words if not w.isidentifier()))
    function, _, argument_text = text[:-1].partition("(")
    head, _, method = function.partition(".")
    receiver = head if head in dict(parameters) else ""
    arguments = [a.strip() for a in argument_text.split(",") if a.strip()]
    return Form(
        target,
        parameters,
        positional=tuple(a for a in arguments if a.isidentifier()),
        spread=next((a[1:] for a in arguments if a.startswith("*")), ""),
        keywords=tuple(a[:-1] for a in arguments if a.endswith("=")),
        function=method if receiver else function,
        receiver=receiver,
    )


def _read_parameters(text: str) -> tuple[tuple[str, Any], ...]:
    parameters: list[tuple[str, Any]] = []
    for item in re.split(r",\s*(?![^()]*\))", text):
        name, _, default = item.partition("=")
        if name == "*":
            continue
        if default == "torch.contiguous_format":
            parameters.append((name, CONTIGUOUS_FORMAT))
        else:
            parameters.append((name, ast.literal_eval(default) if default else REQUIRED))
    return tuple(parameters)
