"""The modules of a staged program."""

from __future__ import annotations

from galvatron.codegen.function import Function, emit_function
from galvatron.codegen.names import Scope
from galvatron.codegen.own_backward import emit_own_backward
from galvatron.codegen.sizes import local_sizes
from galvatron.codegen.stage import emit_stage, module_text
from galvatron.errors import GalvatronError
from galvatron.ir.functions import functions_of
from galvatron.ir.local_functions import with_local_functions
from galvatron.ir.program import Form, LayerClass, Program


def emit(program: Program) -> dict[str, str]:
    """Python text of every stage, by file name (`stage_0.py`, ...): the same text for the same program.

    Raises:
        GalvatronError: the program is not in the staged form.
    """
    if program.form is not Form.STAGED:
        raise GalvatronError(
            f"code is emitted from a staged program, this one is {program.form}; run the passes up to 'split-stages'"
        )
    sizes = local_sizes(program)
    return {f"stage_{stage.index}.py": emit_stage(program, stage, sizes) for stage in program.stages}


def emit_class(cls: LayerClass, only_given: frozenset[str] = frozenset()) -> tuple[str, Function]:
    """The text of a module with a sharded layer class alone, and its function: the same as in the module of a stage.

    Args:
        only_given: see `emit_function`.
    """
    scope = Scope()
    found = functions_of([with_local_functions(cls.graph, cls.mesh)])
    own = {function: scope.bind(("function", function), function.name) for function in found}
    function = emit_function(cls, scope.bind(cls.base or cls.name), own=own, only_given=only_given)
    parts = [*(emit_own_backward(function, name) for function, name in own.items()), function.text]
    return module_text(f"The layer class {cls.name} alone.", "\n\n\n".join(parts)), function
