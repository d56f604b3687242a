"""Which sizes are measured, by kind of device and effort: where a processor has cores for megaflops, a GPU wants
gigaflops."""

from __future__ import annotations

from dataclasses import dataclass

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Products:
    """Sizes of products of matrices: every combination that has at most so many multiplications.

    Attributes:
        counts: of products in one call.
        sides: of matrices.
        most: multiplications of one call.
    """

    counts: Sizes
    sides: Sizes
    most: float


@dataclass(frozen=True)
class Grids:
    """Sizes of kernels to measure, by element type.

    Attributes:
        layouts: sides of products of transposed matrices, in the first element type.
        elements: of kernels that memory bounds.
        attention: counts of heads, lengths, and widths of a head.
        odd: sides of products in the first element type of which one is a little longer, so that rows begin at
            multiples of few bytes.
    """

    products: dict[str, Products]
    layouts: Sizes
    elements: dict[str, Sizes]
    attention: dict[str, tuple[Sizes, Sizes, Sizes]]
    odd: Sizes = ()


GRIDS: dict[tuple[str, str], Grids] = {
    ("cpu", "glance"): Grids(
        products={
            "f32": Products((1, 16), (64, 1024), 2**26),
            "bf16": Products((1,), (64, 1024), 2**26),
            "f64": Products((1,), (256,), 2**26),
            "f16": Products((1,), (256,), 2**26),
        },
        layouts=(),
        elements={"f32": (2**10, 2**14, 2**20), "bf16": (2**20,)},
        attention={"f32": ((32,), (64, 256), (32,))},
    ),
    ("cpu", "quick"): Grids(
        products={
            "f32": Products((1, 16), (16, 64, 256, 1024), 2**28),
            "bf16": Products((1,), (64, 256, 1024), 2**26),
            "f64": Products((1,), (64, 256), 2**26),
            "f16": Products((1,), (64, 256), 2**26),
        },
        layouts=(64, 512),
        elements={"f32": (2**10, 2**14, 2**18, 2**22), "bf16": (2**14, 2**20)},
        attention={"f32": ((4, 32), (64, 256, 1024), (32, 128))},
    ),
    ("cpu", "full"): Grids(
        products={
            "f32": Products((1, 4, 16, 128), (16, 64, 256, 1024, 4096), 2**33),
            "bf16": Products((1, 16, 128), (16, 64, 256, 1024), 2**30),
            "f64": Products((1, 16), (64, 256, 1024), 2**30),
            "f16": Products((1,), (64, 256, 1024), 2**28),
        },
        layouts=(64, 512, 1024),
        elements={
            "f32": (2**10, 2**12, 2**14, 2**16, 2**18, 2**20, 2**22, 2**24, 2**26),
            "bf16": (2**10, 2**14, 2**17, 2**20, 2**23, 2**26),
        },
        attention={
            "f32": ((4, 32, 128), (64, 256, 1024, 2048), (32, 64, 128)),
            "bf16": ((4, 32), (64, 256, 1024), (64, 128)),
        },
    ),
    ("cuda", "glance"): Grids(
        products={
            "bf16": Products((1, 16), (1024, 4096), 2**36),
            "f32": Products((1,), (1024, 4096), 2**36),
            "f16": Products((1,), (1024, 4096), 2**36),
            "f64": Products((1,), (1024,), 2**36),
        },
        layouts=(),
        elements={"f32": (2**16, 2**22, 2**28), "bf16": (2**16, 2**22, 2**28)},
        attention={"bf16": ((64,), (512, 2048), (128,))},
    ),
    ("cuda", "quick"): Grids(
        products={
            "bf16": Products((1, 16, 128), (256, 1024, 4096, 16384), 2**39),
            "f32": Products((1, 16), (256, 1024, 4096), 2**36),
            "f16": Products((1,), (256, 1024, 4096), 2**36),
            "f64": Products((1,), (256, 1024), 2**36),
        },
        layouts=(512, 2048),
        odd=(2048,),
        elements={
            "bf16": (2**10, 2**16, 2**19, 2**22, 2**25, 2**28),
            "f32": (2**10, 2**16, 2**19, 2**22, 2**25, 2**28),
        },
        attention={
            "bf16": ((8, 64, 512), (512, 2048), (64, 128)),
            "f32": ((64,), (512, 2048), (64,)),
        },
    ),
    ("cuda", "full"): Grids(
        products={
            "bf16": Products((1, 16, 128, 1024), (64, 256, 1024, 4096, 16384), 2**41),
            "f32": Products((1, 16, 128), (64, 256, 1024, 4096), 2**38),
            "f16": Products((1,), (64, 256, 1024, 4096), 2**38),
            "f64": Products((1,), (256, 1024, 4096), 2**38),
        },
        layouts=(512, 2048, 8192),
        odd=(2048, 8192),
        elements={
            "bf16": (2**10, 2**13, 2**16, 2**19, 2**22, 2**25, 2**28, 2**30),
            "f32": (2**10, 2**13, 2**16, 2**19, 2**22, 2**25, 2**28, 2**30),
        },
        attention={
            "bf16": ((8, 64, 512), (128, 512, 2048, 8192), (64, 96, 128)),
            "f32": ((8, 64), (128, 512, 2048), (64, 128)),
        },
    ),
}
"""Grids of kernels by kind of device and name of an effort. Those of less effort are parts of those of more, so that
what both have measured together is a grid again."""

MESSAGE_BYTES: dict[str, Sizes] = {
    "glance": (2**10, 2**17, 2**20, 2**22),
    "quick": (2**10, 2**14, 2**17, 2**20, 2**22, 2**23, 2**25),
    "full": (2**10, 2**12, 2**14, 2**17, 2**20, 2**22, 2**23, 2**25, 2**28),
}
"""Sizes of messages by name of an effort; those that take too long are left out."""
