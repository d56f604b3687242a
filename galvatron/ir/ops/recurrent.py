"""Recurrent networks, whole and step by step."""

from __future__ import annotations

from functools import partial

from galvatron.ir.ops.call import Call, DimsFunction, unnamed
from galvatron.ir.ops.notation import DimNames, OpDims
from galvatron.ir.ops.operator import Operator, alike
from galvatron.ir.types import Dim


def _recurrent(states: int) -> DimsFunction:
    """A recurrent network with so many hidden states: samples are independent, time and features are whole."""

    def rule(call: Call) -> OpDims:
        input_, *others = call.operand_shapes()
        samples = input_[0 if call["batch_first"] else 1]
        name: DimNames = () if samples == 1 else ("n",)
        sequence = (name, (), ()) if call["batch_first"] else ((), name, ())
        hidden = ((), name, ())
        parameters = map(unnamed, others[states:])
        sizes: dict[str, Dim] = {} if samples == 1 else {"n": samples}
        return OpDims((sequence, *(hidden,) * states, *parameters), (sequence, *(hidden,) * states), sizes)

    return rule


def _recurrent_cell(states: int) -> DimsFunction:
    """One step of such a network."""

    def rule(call: Call) -> OpDims:
        input_, *others = call.operand_shapes()
        name: DimNames = () if input_[0] == 1 else ("n",)
        row, parameters = (name, ()), map(unnamed, others[states:])
        return OpDims((row, *(row,) * states, *parameters), (row,) * states, {"n": input_[0]} if name else {})

    return rule


_network = partial(Operator, contracts=True, kept=True)

OPERATORS: dict[str, Operator] = {
    "lstm.input": _network(_recurrent(2), anchored=True),
    "gru.input": _network(_recurrent(1), anchored=True),
    **alike("rnn_tanh.input rnn_relu.input", _network(_recurrent(1))),
    "lstm_cell": Operator(_recurrent_cell(2), kept=True),
    **alike("gru_cell rnn_tanh_cell rnn_relu_cell", Operator(_recurrent_cell(1), kept=True)),
    **alike("gru lstm", _network(anchored=True)),
    **alike("rnn_relu rnn_tanh", _network()),
}
