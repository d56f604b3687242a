"""The modules of a staged program."""

from __future__ import annotations

from galvatron.codegen.sizes import local_sizes
from galvatron.codegen.stage import emit_stage
from galvatron.errors import GalvatronError
from galvatron.ir.program import Form, Program


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
