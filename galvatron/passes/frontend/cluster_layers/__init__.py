"""`cluster-layers`: from one flat op graph to layers that share classes.

Repeated structure comes first, module paths only break ties and give names:

1. `roles` parts the ops that carry the model (the *stream*) from masks, position ids, reshaped weights and token
   counts.
2. `repeats` looks for tandem repeats in the sequence of the stream's heavy ops and cuts where the fewest values are
   alive.
3. `cuts` adds odd blocks beside a stack (a first block that differs) and divides large rests.
4. `placement` puts every other op where it is needed: in the one layer that reads it, in the preamble, in the step
   layer, in the `epilogue`, which is the end of a loss that couples samples, or in one of the `closings`, which make
   new values of state of sums over the batch.
5. `assemble` gives layers whose graphs are equal up to names one class; `naming` finds names.
"""

from __future__ import annotations

from dataclasses import dataclass

from galvatron.ir.program import Form, LayerKind, Program
from galvatron.passes.base import Pass
from galvatron.passes.frontend.cluster_layers.assemble import assemble
from galvatron.passes.frontend.cluster_layers.closings import closing_ops
from galvatron.passes.frontend.cluster_layers.cuts import find_regions
from galvatron.passes.frontend.cluster_layers.epilogue import epilogue_ops, with_standard_views
from galvatron.passes.frontend.cluster_layers.naming import name_closings, name_layers
from galvatron.passes.frontend.cluster_layers.placement import place_ops
from galvatron.passes.frontend.cluster_layers.roles import find_roles
from galvatron.passes.frontend.cluster_layers.stream import make_stream


@dataclass(frozen=True)
class ClusterLayers(Pass):
    """Cuts the op graph into layers and gives equal layers one class. `hints=false` looks at structure alone."""

    name = "cluster-layers"
    needs, leaves = Form.CAPTURED, Form.CLUSTERED

    hints: bool = True

    def run(self, program: Program) -> Program:
        graph = program.required_graph.without_dead_ops()
        graph = with_standard_views(graph, find_roles(graph, program.state_of))
        roles = find_roles(graph, program.state_of)
        roles = roles.with_closings(closing_ops(program, graph, roles))
        parameters = frozenset(state.name for state in program.state if state.kind == "parameter")
        roles = roles.with_epilogue(graph, epilogue_ops(graph, roles, parameters))
        stream = make_stream(graph, program.state_of, roles, program.batch_size, self.hints)
        regions = find_regions(stream)
        parts = place_ops(graph, roles, regions)
        own = iter(name_layers(stream, regions))
        names = [next(own) if p.kind is LayerKind.PLANNED else (str(p.kind), str(p.kind)) for p in parts]
        return assemble(program, graph, parts, name_closings(parts, names))
