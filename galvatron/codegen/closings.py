"""What a stage says of what its micro-batches add up to: amounts for `closing`, and which parameters it reaches."""

from __future__ import annotations

from galvatron.codegen.bindings import Bindings
from galvatron.codegen.layout import Text, call, lines, tuple_of
from galvatron.codegen.names import literal
from galvatron.ir.micro_batches import SUM, spreads
from galvatron.ir.program import When


def give_amounts(bindings: Bindings) -> list[str]:
    """What the micro-batches make for `closing`, each amount by the keyword that it is given as."""
    out: list[str] = []
    for name, source in bindings.amounts.items():
        arguments: list[Text] = [literal(bindings.scopes[When.CLOSING][name])]
        if isinstance(source, int):
            arguments.append(f"received={source}")
        else:
            arguments += [literal(bindings.layers[source[0].name]), str(source[1])]
        out += lines(call("self.amount", [*arguments, *(["summed=True"] if is_summed(bindings, name) else [])]), 2)
    return out


def tell_gradients(bindings: Bindings) -> list[str]:
    """Which parameters have a gradient only where an element of what `closing` makes is true."""
    out: list[str] = []
    for layer in bindings.closings:
        values = [bindings.cls(layer).graph.values[name] for name in bindings.cls(layer).graph.outputs]
        for one in bindings.program.reached:
            if one.value in layer.results:
                place = layer.results.index(one.value)
                rows = one.by_place(int(values[place].type.shape[0]))
                names = tuple_of(tuple_of(map(literal, row)) for row in rows)
                out += lines(call("self.reached", [literal(bindings.layers[layer.name]), str(place), names]), 2)
    return out


def is_summed(bindings: Bindings, name: str) -> bool:
    """Whether a value of each micro-batch is a term of a sum over several."""
    return bindings.program.required_plan.micro_batches > 1 and spreads(bindings.program)[name] is SUM
