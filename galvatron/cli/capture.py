"""`galvatron capture`: a model in a Python file becomes a program file."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from galvatron.cli.output import STDOUT, file_to_write, say, write_or_print
from galvatron.errors import CaptureError, GalvatronError, did_you_mean
from galvatron.ir.files import exists
from galvatron.units import format_count

FactoryText = Annotated[str, typer.Argument(metavar="FILE.py:FACTORY", help="A function that makes the model.")]
Precision = Annotated[
    str | None, typer.Option(metavar="bf16|fp16", help="Compute type of parameters; default: the model's own.")
]

Dynamic = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME[:DIM=S]",
        help="A number, a dimension's size, or all sizes of a tensor that the model leaves free, change; repeatable.",
    ),
]

Outputs = Annotated[
    list[str] | None,
    typer.Option(
        "--outputs", metavar="NAME", help="What the model returns and is to give besides its loss; repeatable."
    ),
]

Checks = Annotated[bool, typer.Option(" /--no-checks", help="Leave out the checks of values that the model makes.")]


def command(
    factory: FactoryText,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="P.gir", parser=file_to_write, help="Where it goes; - is stdout.")
    ] = STDOUT,
    precision: Precision = None,
    dynamic: Dynamic = None,
    outputs: Outputs = None,
    checks: Checks = True,
    form: Annotated[
        str, typer.Option("--form", metavar="captured|clustered", help="As it was traced, or cut into layers.")
    ] = "clustered",
) -> None:
    """Capture a model.

    FACTORY takes no arguments and returns (model, example_inputs) or (model, example_inputs, loss_fn); the inputs are
    one global batch, real or on the meta device.
    """
    model, example_inputs, loss_fn = call_factory(factory)

    from galvatron import api
    from galvatron.ir.text import print_program

    program = api.capture(
        model,
        example_inputs,
        loss_fn=loss_fn,
        precision=precision,
        dynamic=read_dynamic(dynamic),
        outputs=outputs or (),
        checks=checks,
        form=form,
    )
    write_or_print(output, print_program(program))
    if str(output) != "-":
        if program.graph is None:
            of = format_count(len(program.classes), "class", "classes")
            told = f"{format_count(len(program.layers), 'layer')} of {of}"
        else:
            told = format_count(len(program.graph.ops), "op")
        say(f"{output}: {told}", err=True)


def read_dynamic(options: list[str] | None) -> dict[str, Any]:
    """What the options say of inputs: `rate`, a number that changes, or a tensor of which the sizes do; `ids:1=S`, the
    size of a dimension.

    Raises:
        CaptureError: one says something else.
    """
    said: dict[str, Any] = {}
    for option in options or ():
        name, colon, dimension = option.partition(":")
        dim, equals, length = dimension.partition("=")
        if colon and not (equals and dim.isdecimal() and length and said.get(name) is not True):
            raise CaptureError(f"--dynamic {option!r} is neither the name of an input nor like ids:1=S")
        if colon:
            said.setdefault(name, {})[int(dim)] = length
        else:
            said[name] = True
    return said


def call_factory(spec: str) -> tuple[Any, Any, Callable[..., Any] | None]:
    """The model, example inputs and loss function that `FILE.py:FACTORY` returns.

    Raises:
        CaptureError: no such file or function, it raises (the message names the line in FILE.py), or it returns
            something else.
    """
    path_text, _, name = spec.rpartition(":")
    path = Path(path_text)
    if not path_text or not name.isidentifier():
        raise CaptureError(f"{spec!r} is not FILE.py:FACTORY, such as 'train.py:make_model'")
    module = run_file(path_text)
    factory = getattr(module, name, None)
    if not callable(factory):
        functions = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        hint = did_you_mean(name, functions) if functions else "it defines none"
        raise CaptureError(f"{path} has no function {name!r}; {hint}")
    where = _definition(path, factory)
    result = _run(path, factory, where)
    if not isinstance(result, tuple) or len(result) not in (2, 3):
        raise CaptureError(
            f"{where}: {name} must return (model, example_inputs) or (model, example_inputs, loss_fn), "
            f"not {type(result).__name__}{f' of {len(result)}' if isinstance(result, tuple) else ''}"
        )
    model, example_inputs, *loss_fn = result
    _check_parts(f"{where}: {name}", model, example_inputs)
    return model, example_inputs, loss_fn[0] if loss_fn else None


def run_file(path_text: str) -> Any:
    """The module that a Python file of the user's is, which is run for it.

    Raises:
        CaptureError: there is no such file, or it raises (the message names the line in it).
    """
    path = Path(path_text)
    if not exists(path_text):
        raise CaptureError(f"there is no file {path_text!r}")
    if path.is_dir():
        raise CaptureError(f"{path_text!r} is a directory, not a Python file")
    return _run(path, lambda: _load(path))


def _definition(path: Path, factory: Any) -> str:
    """Where a function is defined; the file alone of something else that can be called."""
    code = getattr(factory, "__code__", None)
    return f"{path}:{code.co_firstlineno}" if code is not None and code.co_filename == str(path) else str(path)


def _check_parts(factory: str, model: Any, example_inputs: Any) -> None:
    from torch import nn

    if not isinstance(model, nn.Module):
        raise CaptureError(f"{factory} must return a torch.nn.Module first, not {type(model).__name__}")
    if not isinstance(example_inputs, (Mapping, tuple)) or not example_inputs:
        raise CaptureError(
            f"{factory} must return one batch second, a mapping of keyword arguments or a tuple of positional ones, "
            f"not {type(example_inputs).__name__}{'' if example_inputs else ' without any'}"
        )


def _load(path: Path) -> Any:
    loader = importlib.machinery.SourceFileLoader(path.stem, str(path))
    spec = importlib.util.spec_from_loader(path.stem, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    # As for a script: its own directory comes first, and its classes find their module by name.
    sys.path.insert(0, str(path.resolve().parent))
    sys.modules[path.stem] = module
    loader.exec_module(module)
    return module


def _run(path: Path, function: Callable[[], Any], default: str = "") -> Any:
    """What a function of the user's file returns; `default` is where an error is if no line of the file is to blame."""
    try:
        return function()
    except GalvatronError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, SyntaxError) and error.filename == str(path):
            raise CaptureError(f"{path}:{error.lineno}: {error.msg}") from error
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        where = f"{path}:{frames[-1].lineno}: {frames[-1].line}" if frames else default or str(path)
        raise CaptureError(f"{where}\n{type(error).__name__}: {error}") from error
