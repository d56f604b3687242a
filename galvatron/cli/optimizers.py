"""`--optimizer`: a class of `torch.optim` with its options."""

from __future__ import annotations

import ast
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from galvatron.errors import GalvatronError, did_you_mean

if TYPE_CHECKING:
    from galvatron.runtime.optimizers import OptimizerFactory

OptimizerText = Annotated[
    str | None,
    typer.Option(
        "--optimizer",
        metavar="NAME(OPTION=VALUE)",
        help="What trains the model, from torch.optim: SGD(momentum=0.9). Default: what the program says, or AdamW in "
        "one kernel.",
    ),
]


def read_optimizer(text: str | None) -> OptimizerFactory | None:
    """The function that makes this optimizer; one that is not element-wise gets whole parameters.

    Raises:
        GalvatronError: there is no such optimizer, or it does not take these options.
    """
    if text is None:
        return None
    import torch

    from galvatron.runtime.elementwise import NotElementwiseError, Slices, Trained, check_optimizer
    from galvatron.runtime.optimizers import build_optimizer
    from galvatron.runtime.whole import WholeParameters

    name, options = _parsed(text)
    classes = {
        key: value
        for key, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
    }
    if name not in classes:
        raise GalvatronError(f"torch.optim has no optimizer {name!r}; {did_you_mean(name, classes)}")
    factory = partial(classes[name], **options)
    matrix = {"matrix": Trained((256, 192), torch.float32)}
    slices = Slices(frozenset((0, 1)), ranges=True)
    try:
        check_optimizer(partial(build_optimizer, factory), matrix, tuple(matrix), slices, torch.device("cpu"))
    except NotElementwiseError:
        return WholeParameters(factory)
    return factory


def _parsed(text: str) -> tuple[str, dict[str, Any]]:
    """A name, and options that are plain values."""
    try:
        found = ast.parse(text.strip(), mode="eval").body
        if isinstance(found, ast.Name):
            return found.id, {}
        if isinstance(found, ast.Call) and isinstance(found.func, ast.Name) and not found.args:
            options = {keyword.arg: ast.literal_eval(keyword.value) for keyword in found.keywords}
            return found.func.id, {name: value for name, value in options.items() if name is not None}
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        pass
    raise GalvatronError(f"an optimizer is a name with options, such as SGD(momentum=0.9), not {text!r}")
