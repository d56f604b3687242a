"""Code generation: a staged program as readable Python, one module per stage.

`emit` writes the text, `load_module` makes a module of it whose source a debugger and a traceback can show.
"""

from galvatron.codegen.emit import emit, emit_class
from galvatron.codegen.load import load_module
from galvatron.codegen.stage import stage_axes

__all__ = ["emit", "emit_class", "load_module", "stage_axes"]
