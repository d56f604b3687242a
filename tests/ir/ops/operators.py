"""Which operators of the installed torch a program may contain, by criteria on their schemas.

`python -m tests.ir.ops.operators` writes `galvatron/ir/ops/operators.txt` anew: an operator that this version of torch
does not have keeps its line.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from galvatron.ir.ops.schemas import REQUIRED, Parameter, parse_schema
from galvatron.ir.ops.table import of_target

FILE = Path(str(files("galvatron.ir.ops").joinpath("operators.txt")))

_WRITTEN = frozenset(
    ("Tensor", "SymInt", "int", "float", "bool", "Scalar", "str", "ScalarType", "MemoryFormat", "Layout", "Device")
) | {"Generator"}
"""Kinds of parameters that a program can write, or leave out."""

_LEFT_OUT = frozenset({"Layout", "Device", "Generator"})
"""Kinds of parameters that a program never gives: an operator that needs one is of no use to it."""

_INTERNAL = """
    __and__ __or__ __xor__ __lshift__ __rshift__ _adaptive_avg_pool2d _adaptive_avg_pool3d _batch_norm_no_update
    _batch_norm_with_update_functional _cdist_forward _conj _conj_copy _conj_physical _convolution _convolution_mode
    _ctc_loss _embedding_bag _embedding_bag_forward_only _euclidean_dist _fft_c2c _fft_c2r _fft_r2c _fused_rms_norm
    _grouped_mm _int_mm _linalg_det _linalg_eigh _linalg_eigvals _linalg_slogdet _linalg_solve_ex _linalg_svd
    _log_softmax _logcumsumexp _masked_softmax _native_batch_norm_legit _native_batch_norm_legit_functional
    _native_batch_norm_legit_no_training _neg_view _neg_view_copy _pad_circular _pad_enum _pdist_forward _prelu_kernel
    _safe_softmax _softmax _to_copy _trilinear _unsafe_index _unsafe_index_put _unsafe_masked_index
    _unsafe_masked_index_put_accumulate _unsafe_view _upsample_bicubic2d_aa _upsample_bilinear2d_aa
    _upsample_lanczos2d_aa _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d _weight_norm
    _weight_norm_interface
"""
"""Operators with a leading underscore that models reach through public functions."""

REFUSED = {
    "reads or writes files, or hands out memory": r"from_file|pin_memory|set|resize|resize_as|data|hash_tensor",
    "depends on where in memory elements are, which a tensor of a program does not say": r"as_strided(_\w+)?",
    "is a step of a backward": r".*_backward(_\w+)?|.*_jvp",
    "is one library's or one device's": r"(cudnn|miopen|mkldnn|mps|fbgemm)_.*|.*_(mps|mkldnn|overrideable)|thnn_conv2d",
    "needs sparse, quantised or nested tensors, which the IR does not have":
        r"(?!fake_quantize).*(sparse|quantize|qparams|csr|padded_tensor|int_repr|coalesce).*|q_per_channel_\w+"
        r"|(c?col_|c?row_|)(indices|values)(_copy)?|hspmm|sspaddmm|smm|to_dense|fake_quantize.*_cachemask",
    "has results whose sizes depend on values": r"argwhere|bincount|masked_select|nonzero|nonzero_numpy|unique_.*",
    "is for optimizers or statistics across ranks":
        r"(un)?flatten_dense_tensors|batch_norm_(elemt|stats|gather|update).*",
    "draws numbers that cannot be drawn slice by slice":
        r"(feature_|alpha_|feature_alpha_)dropout|random|rrelu_with_noise\w*|multinomial|randperm|binomial",
}  # fmt: skip
"""Operators that are no part of a program although their schemas are pure, by the reason."""

_SWITCHES = {"train", "training", "dropout"}
"""Arguments of operators that draw random numbers only if asked to."""


@cache
def known() -> dict[str, Any]:
    """The schemas of all operators of `aten` that torch dispatches, by `name.overload`."""
    names = set(torch._C._dispatch_get_all_op_names())
    schemas = {
        f"{s.name}.{s.overload_name or 'default'}": s
        for s in torch._C._jit_get_all_schemas()
        if f"{s.name}{'.' * bool(s.overload_name)}{s.overload_name}" in names
    }
    return {name.removeprefix("aten::"): s for name, s in schemas.items() if name.startswith("aten::")}


def text(name: str) -> str:
    """The line of an operator: its schema, and what torch's tags say of it."""
    traits = [trait for trait, tag in TRAITS.items() if tag in tags(name)]
    signature = str(known()[name]).partition("(")[2]
    return f"{name}({signature}{'  # ' * bool(traits)}{', '.join(traits)}"


TRAITS = {"pointwise": torch.Tag.pointwise, "random": torch.Tag.nondeterministic_seeded}


def tags(name: str) -> list[torch.Tag]:
    packet, overload = name.split(".")
    return getattr(getattr(torch.ops.aten, packet), overload).tags


def problem(name: str) -> str:
    """Why an operator may not stand in a program; empty if it may."""
    schema, base = known()[name], name.split(".")[0]
    if schema.is_mutable or "out" in name.split(".")[1].split("_"):
        return "writes to its arguments"
    if not schema.returns or any(str(r.type) not in ("Tensor", "List[Tensor]") for r in schema.returns):
        return "returns more than tensors"
    if len(schema.returns) > 1 and any(str(r.type) != "Tensor" for r in schema.returns) or "..." in str(schema):
        return "has more than a list of arguments and of results"
    try:
        parameters = parse_schema(text(name)).parameters
    except ValueError:
        return "takes more than tensors, numbers, strings and types"
    if any(p.kind not in _WRITTEN or _is_dimension_name(p) for p in parameters):
        return "takes more than tensors, numbers, strings and types"
    if any(p.kind in _LEFT_OUT and p.default is REQUIRED for p in parameters):
        return "needs a device, a layout or a generator"
    if base.startswith("_") and base not in _INTERNAL.split():
        return "is internal"
    for reason, pattern in REFUSED.items():
        if re.fullmatch(pattern, base):
            return reason
    random = torch.Tag.nondeterministic_seeded in tags(name)
    if random and of_target(f"aten.{name}").draws is None and all(p.name not in _SWITCHES for p in parameters):
        return "draws numbers that cannot be drawn slice by slice"
    return ""


def _is_dimension_name(parameter: Parameter) -> bool:
    """Whether a string is the name of a dimension: schemas do not tell these apart."""
    named = parameter.length is not None or parameter.name.rstrip("01") in ("dim", "start_dim", "end_dim", "out_dim")
    return parameter.kind == "str" and named


def main() -> None:
    kept = FILE.read_text().splitlines() if FILE.exists() else []
    lines = {name: line for line in kept if (name := line.partition("(")[0]) not in known()}
    lines.update((name, text(name)) for name in known() if not problem(name))
    FILE.write_text("".join(f"{lines[name]}\n" for name in sorted(lines)))


if __name__ == "__main__":
    main()
