"""What single ops take on the device, as a document that a profiler can read: `galvatron-device`, version 1.

Every row is one call of an op: its name, its element type, its sizes by name, `seconds` (spread over repeats), how they
were timed (`how`, see `common.clocks.OpTime`), and what the call computes (`flop`) and must at least read and write
(`bytes`), both of exact arithmetic. Operands are random, since products of zeros are faster than real ones, and stay
the same over the repeats, so that what fits the caches is in them.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from common.clocks import op_time, synchronize
from common.measure import Spread
from torch import Tensor

from checks import Setting
from checks.report import Report

FORMAT, VERSION = "galvatron-device", 1
DTYPES = {"f64": torch.float64, "f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}

SQUARE = (512, 1024, 2048, 4096, 8192)
LAYER = tuple(
    itertools.product((256, 1024, 2048, 4096, 8192), ((2048, 2048), (2048, 5632), (5632, 2048), (4096, 4096)))
)
"""Rows, then columns and sum of the matrices of decoders."""
UNALIGNED = ((4096, 4096, 4095), (4096, 4095, 4096), (4095, 4096, 4096), (4096, 50257, 1024), (8192, 11007, 4096))
SKINNY = ((1, 4096, 4096), (8, 4096, 4096), (64, 4096, 4096), (4096, 16, 4096), (4096, 64, 64), (8192, 32000, 2048))
WEIGHTS = ((2048, 2048, 4096), (5632, 2048, 8192), (32000, 2048, 4096))
"""Gradients of weights: the sum is over rows."""

Row = dict[str, Any]
Case = tuple[str, Callable[[], Row]]
Cases = Iterator[Case]


def run(report: Report, setting: Setting) -> None:
    """Kind by kind; of each kind what there is time for."""
    report.document["measurements"] = {"format": FORMAT, "version": VERSION, "tiny": setting.tiny}
    report.attempt("properties", lambda: report.document.update(device=properties(setting.device)))
    kinds = (matmuls, products_in_32_bits, attention, norms, pointwise, lookups, losses, copies)
    for kind in kinds:
        for name, make in _few(kind(setting), setting):
            report.attempt(f"{kind.__name__} {name}", lambda make=make: report.add(make()), needs_s=1.0)
    for one in (launches, waits, allocator):
        report.attempt(one.__name__, lambda one=one: [report.add(row) for row in one(setting)])


def _few(cases: Cases, setting: Setting) -> Cases:
    return itertools.islice(cases, 2) if setting.tiny else cases


def properties(device: torch.device) -> Row:
    """What the driver says."""
    if device.type != "cuda":
        return {"name": "cpu"}
    found = torch.cuda.get_device_properties(device)
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    return {
        "name": found.name,
        "capability": [found.major, found.minor],
        "multiprocessors": found.multi_processor_count,
        "total_bytes": total_bytes,
        "free_bytes": free_bytes,
        "context_bytes": total_bytes - free_bytes - torch.cuda.memory_reserved(device),
        "l2_bytes": getattr(found, "L2_cache_size", None),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": list(torch.cuda.nccl.version()),  # type: ignore[attr-defined]  # missing from torch's stubs
    }


def matmuls(setting: Setting) -> Cases:
    """`x @ w`: x [m, k], w [k, n] stored as [n, k], as linear layers have it; gradients of weights sum over rows."""
    for m in SQUARE:
        yield _matmul("square", "bf16", m, m, m, setting)
    for m, (n, k) in LAYER:
        yield _matmul("layer", "bf16", m, n, k, setting)
    for kind, shapes in (("unaligned", UNALIGNED), ("skinny", SKINNY), ("weight", WEIGHTS)):
        for m, n, k in shapes:
            yield _matmul(kind, "bf16", m, n, k, setting)
    for m in SQUARE[1:4]:
        yield _matmul("square", "f16", m, m, m, setting)


def products_in_32_bits(setting: Setting) -> Cases:
    """The same in float32, with and without TF32, and in float64."""
    for tf32 in (False, True):
        for m, n, k in (
            (1024, 1024, 1024),
            (2048, 2048, 2048),
            (4096, 4096, 4096),
            (4096, 5632, 2048),
            (4096, 4095, 4096),
        ):
            yield _matmul("square" if m == n == k else "layer", "f32", m, n, k, setting, tf32=tf32)
    for m in (1024, 2048):
        yield _matmul("square", "f64", m, m, m, setting)


def _matmul(kind: str, dtype: str, m: int, n: int, k: int, setting: Setting, *, tf32: bool = False) -> Case:
    def measured() -> Row:
        a, b = _random((m, k), dtype, setting), _random((n, k), dtype, setting)
        left, right = a, b.t()
        if kind == "weight":  # both operands have the sum as their first dimension in memory
            left, right = _random((k, m), dtype, setting).t(), _random((k, n), dtype, setting)
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = tf32
        try:
            nbytes = (m * k + n * k + m * n) * a.element_size()
            sizes = {"kind": kind, "m": m, "n": n, "k": k, "tf32": tf32, "as_graph": True}
            return _row("matmul", dtype, lambda: left @ right, setting, flop=2 * m * n * k, nbytes=nbytes, **sizes)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before

    return f"{kind} {dtype} {m}x{n}x{k}" + (" tf32" if tf32 else ""), measured


def attention(setting: Setting) -> Cases:
    """`scaled_dot_product_attention` of [batch, heads, length, width] with 16384 tokens, forward and backward apart."""
    for width, heads, key_heads, causal in (
        (128, 16, 16, True),
        (128, 16, 4, True),
        (64, 32, 32, True),
        (128, 16, 16, False),
    ):
        for length in (512, 1024, 2048, 4096, 8192, 16384):
            for backward in (False, True):
                yield _attention(length, width, heads, key_heads, causal, backward, setting)


def _attention(
    length: int, width: int, heads: int, key_heads: int, causal: bool, backward: bool, setting: Setting
) -> Case:
    batch = 16384 // length

    def measured() -> Row:
        shapes = ((batch, count, length, width) for count in (heads, key_heads, key_heads))
        q, k, v = (_random(shape, "bf16", setting).requires_grad_(backward) for shape in shapes)

        def forward() -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=heads != key_heads)

        call: Callable[[], Any] = forward
        if backward:
            call = _backward_of(forward, (q, k, v))
        scores = batch * heads * length * length * width * (0.5 if causal else 1.0)
        nbytes = 2 * batch * length * width * (2 * heads + 2 * key_heads) * (2 if backward else 1)
        sizes = {
            "batch": batch, "length": length, "width": width, "heads": heads, "key_heads": key_heads,
            "causal": causal, "pass": "backward" if backward else "forward",
        }  # fmt: skip
        sizes["as_graph"] = not backward
        return _row("attention", "bf16", call, setting, flop=scores * (10 if backward else 4), nbytes=nbytes, **sizes)

    return f"{length} width {width} heads {heads}/{key_heads} causal {causal} backward {backward}", measured


def norms(setting: Setting) -> Cases:
    """Norms over the last dimension of [rows, width], forward and backward apart."""
    for op, dtype, (rows, width) in itertools.product(
        ("layer_norm", "rms_norm"), ("bf16", "f32"), ((2048, 2048), (8192, 2048), (8192, 4096), (8192, 8192))
    ):
        for backward in (False, True):
            yield _norm(op, dtype, rows, width, backward, setting)


def _norm(op: str, dtype: str, rows: int, width: int, backward: bool, setting: Setting) -> Case:
    def measured() -> Row:
        x, weight = _random((rows, width), dtype, setting), _random((width,), dtype, setting)
        leaves = tuple(t.requires_grad_(backward) for t in (x, weight))
        norm = getattr(F, op)

        def forward() -> Tensor:
            return norm(x, weight.shape, weight=weight, eps=1e-5)

        call = _backward_of(forward, leaves) if backward else forward
        nbytes = rows * width * DTYPES[dtype].itemsize * (3 if backward else 2)
        sizes = {"rows": rows, "width": width, "pass": "backward" if backward else "forward", "as_graph": not backward}
        return _row(op, dtype, call, setting, flop=5 * rows * width, nbytes=nbytes, **sizes)

    return f"{op} {dtype} {rows}x{width} backward {backward}", measured


def pointwise(setting: Setting) -> Cases:
    """Ops on as many elements, from what is nothing but a launch to what fits no cache."""
    ops: dict[str, tuple[int, Callable[..., Tensor]]] = {
        "add": (3, lambda a, b: a + b),
        "gelu": (2, lambda a, b: F.gelu(a)),
        "gated_silu": (5, lambda a, b: F.silu(a) * b),
        "to_f32": (3, lambda a, b: a.float()),
        "sum": (1, lambda a, b: a.sum()),
    }
    for name, (passes, function) in ops.items():
        for count in (2**10, 2**16, 2**20, 2**23, 2**26, 2**28):

            def measured(name: str = name, passes: int = passes, function: Any = function, count: int = count) -> Row:
                a, b = (_random((count,), "bf16", setting) for _ in range(2))
                return _row(
                    name,
                    "bf16",
                    lambda: function(a, b),
                    setting,
                    flop=count,
                    nbytes=2 * passes * count,
                    as_graph=True,
                    elements=count,
                )

            yield f"{name} {count}", measured


def lookups(setting: Setting) -> Cases:
    """Embeddings: rows of a table, and the gradient of the table."""
    for rows, width, backward in ((8192, 2048, False), (8192, 2048, True), (8192, 4096, False), (8192, 4096, True)):

        def measured(rows: int = rows, width: int = width, backward: bool = backward) -> Row:
            vocabulary = 16 if setting.tiny else 32000
            table = _random((32000, width), "bf16", setting).requires_grad_(backward)
            ids = torch.randint(0, vocabulary, (16 if setting.tiny else rows,), device=setting.device)

            def forward() -> Tensor:
                return F.embedding(ids, table)

            call = _backward_of(forward, (table,)) if backward else forward
            nbytes = 2 * rows * width * 2 + (2 * 32000 * width if backward else 0)
            sizes = {"rows": rows, "width": width, "vocabulary": 32000, "pass": "backward" if backward else "forward"}
            return _row("embedding", "bf16", call, setting, flop=0, nbytes=nbytes, **sizes)

        yield f"{rows}x{width} backward {backward}", measured


def losses(setting: Setting) -> Cases:
    """Cross-entropy of [rows, vocabulary], forward and backward apart."""
    for dtype, vocabulary, backward in itertools.product(("f32", "bf16"), (32000, 50257, 128256), (False, True)):

        def measured(dtype: str = dtype, vocabulary: int = vocabulary, backward: bool = backward) -> Row:
            rows = 4096
            logits = _random((rows, vocabulary), dtype, setting).requires_grad_(backward)
            labels = torch.randint(0, logits.size(1), (logits.size(0),), device=setting.device)

            def forward() -> Tensor:
                return F.cross_entropy(logits, labels)

            call = _backward_of(forward, (logits,)) if backward else forward
            nbytes = rows * vocabulary * DTYPES[dtype].itemsize * (2 if backward else 1)
            sizes = {"rows": rows, "vocabulary": vocabulary, "pass": "backward" if backward else "forward"}
            return _row("cross_entropy", dtype, call, setting, flop=5 * rows * vocabulary, nbytes=nbytes, **sizes)

        yield f"{dtype} {vocabulary} backward {backward}", measured


def copies(setting: Setting) -> Cases:
    """Within the device, and between it and memory of the host, pinned or not."""
    pinned = {"pin_memory": setting.on_gpu}
    ends: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "device_to_device": ({"device": setting.device}, {"device": setting.device}),
        "host_to_device_pinned": (pinned, {"device": setting.device}),
        "device_to_host_pinned": ({"device": setting.device}, pinned),
        "host_to_device_pageable": ({}, {"device": setting.device}),
        "device_to_host_pageable": ({"device": setting.device}, {}),
    }
    for name, (of, to) in ends.items():
        for nbytes in (2**12, 2**20, 2**24, 2**28):

            def measured(name: str = name, of: Any = of, to: Any = to, nbytes: int = nbytes) -> Row:
                size = min(nbytes, 2**12) if setting.tiny else nbytes
                source, target = (torch.ones(size, dtype=torch.uint8, **end) for end in (of, to))
                moved = 2 * nbytes if name == "device_to_device" else nbytes

                def call() -> None:
                    target.copy_(source, non_blocking="pinned" in name)

                return _row(
                    name,
                    "u8",
                    call,
                    setting,
                    flop=0,
                    nbytes=moved,
                    as_graph=name == "device_to_device",
                    payload_bytes=nbytes,
                )

            yield f"{name} {nbytes}", measured


def launches(setting: Setting) -> list[Row]:
    """Seconds of the host from one small op to the next, the queue never empty; also with a graph for autograd."""
    found = []
    small = torch.zeros(8, device=setting.device)
    needing = torch.zeros(8, device=setting.device, requires_grad=True)
    weight = torch.zeros(8, 8, device=setting.device)
    ops: dict[str, Callable[[], Any]] = {
        "add_": lambda: small.add_(1.0),
        "add": lambda: small + 1.0,
        "add_with_graph": lambda: needing + 1.0,
        "linear": lambda: F.linear(small, weight),
        "empty": lambda: torch.empty(8, device=setting.device),
        "view": lambda: small.view(2, 4),
    }
    count = 20 if setting.tiny else 500
    for name, call in ops.items():
        times = []
        for _ in range(5):
            synchronize(setting.device)
            began = time.perf_counter()
            for _ in range(count):
                call()
            times.append((time.perf_counter() - began) / count)
            synchronize(setting.device)
        found.append({"op": "launch", "of": name, "seconds": vars(Spread.of(times)), "how": "host"})
    return found


def waits(setting: Setting) -> list[Row]:
    """What the host waits for an idle device, and for a number of it."""
    one = torch.ones((), device=setting.device)
    calls: dict[str, Callable[[], Any]] = {"synchronize": lambda: synchronize(setting.device), "item": one.item}
    found = []
    for name, call in calls.items():
        times = []
        for _ in range(20):
            synchronize(setting.device)
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
        found.append({"op": "wait", "of": name, "seconds": vars(Spread.of(times)), "how": "host"})
    return found


def allocator(setting: Setting) -> list[Row]:
    """What memory costs when the driver gives it and when the cache does, and to how much a request is rounded up."""
    if not setting.on_gpu:
        return []
    found = []
    for nbytes in (1, 513, 2**20, 2**20 + 1, 10 * 2**20 + 1, 2**25, 2**28, 2**30):
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
        seconds = []
        for _ in range(2):
            began = time.perf_counter()
            tensor = torch.empty(nbytes, dtype=torch.uint8, device=setting.device)
            seconds.append(time.perf_counter() - began)
            held = torch.cuda.memory_allocated() - allocated, torch.cuda.memory_reserved() - reserved
            del tensor
        found.append(
            {
                "op": "allocate",
                "payload_bytes": nbytes,
                "allocated_bytes": held[0],
                "reserved_bytes": held[1],
                "driver_s": seconds[0],
                "cached_s": seconds[1],
                "how": "host",
            }  # fmt: skip
        )
    return found


def _row(
    op: str,
    dtype: str,
    call: Callable[[], Any],
    setting: Setting,
    *,
    flop: float,
    nbytes: float,
    as_graph: bool = False,
    **sizes: Any,
) -> Row:
    found = op_time(call, setting.device, as_graph=as_graph, repeats=2 if setting.tiny else 7)
    median_s = found.seconds.median
    return {
        "op": op,
        "dtype": dtype,
        **sizes,
        "flop": flop,
        "bytes": nbytes,
        "seconds": vars(found.seconds),
        "how": found.how,
        "flop_per_s": flop / median_s,
        "bytes_per_s": nbytes / median_s,
    }


def _backward_of(forward: Callable[[], Tensor], leaves: tuple[Tensor, ...]) -> Callable[[], Any]:
    """The backward alone, which can be repeated."""
    result = forward()
    gradient = torch.randn_like(result)
    return lambda: torch.autograd.grad(result, leaves, gradient, retain_graph=True)


def _random(shape: tuple[int, ...], dtype: str, setting: Setting) -> Tensor:
    """Normal numbers; of a tiny run the sizes are only names."""
    if setting.tiny:
        shape = tuple(min(size, 16) for size in shape)
    return torch.randn(shape, device=setting.device).to(DTYPES[dtype])
