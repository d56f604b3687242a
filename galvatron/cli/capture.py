"""`galvatron capture`: a model in a Python file becomes a program file."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from galvatron.errors import CaptureError, GalvatronError, did_you_mean


def command(
    factory: Annotated[str, typer.Argument(metavar="FILE.py:FACTORY", help="A function that makes the model.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="P.gir", help="Where it goes; - is stdout.")] = Path(
        "-"
    ),
    precision: Annotated[
        str | None, typer.Option(metavar="bf16|fp16", help="Compute type of parameters; default: the model's own.")
    ] = None,
) -> None:
    """Capture a model.

    FACTORY takes no arguments and returns (model, example_inputs) or (model, example_inputs, loss_fn); the inputs are
    one global batch, real or on the meta device.
    """
    model, example_inputs, loss_fn = call_factory(factory)

    from galvatron import api
    from galvatron.ir.files import write_text
    from galvatron.ir.text import print_program

    program = api.capture(model, example_inputs, loss_fn=loss_fn, precision=precision)
    text = print_program(program)
    if str(output) == "-":
        print(text, end="")
    else:
        write_text(output, text)
        typer.echo(f"{output}: {len(program.layers)} layers of {len(program.classes)} classes", err=True)


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
    if not path.is_file():
        raise CaptureError(f"there is no file {path_text!r}")
    module = _run(path, lambda: _load(path))
    factory = getattr(module, name, None)
    if not callable(factory):
        functions = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        hint = did_you_mean(name, functions) if functions else "it defines none"
        raise CaptureError(f"{path} has no function {name!r}; {hint}")
    result = _run(path, factory)
    if not isinstance(result, tuple) or len(result) not in (2, 3):
        raise CaptureError(
            f"{spec} must return (model, example_inputs) or (model, example_inputs, loss_fn), "
            f"not {type(result).__name__}{f' of {len(result)}' if isinstance(result, tuple) else ''}"
        )
    model, example_inputs, *loss_fn = result
    return model, example_inputs, loss_fn[0] if loss_fn else None


def _load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # As for a script: its own directory comes first, and its classes find their module by name.
    sys.path.insert(0, str(path.resolve().parent))
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _run(path: Path, function: Callable[[], Any]) -> Any:
    try:
        return function()
    except GalvatronError:
        raise
    except Exception as error:
        if isinstance(error, SyntaxError) and error.filename == str(path):
            raise CaptureError(f"{path}:{error.lineno}: {error.msg}") from error
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        where = f"{path}:{frames[-1].lineno}: {frames[-1].line}" if frames else str(path)
        raise CaptureError(f"{where}\n{type(error).__name__}: {error}") from error
