"""Edits of programs that change what they say, each of a named kind, at a random place.

`KINDS` tells which kinds give another valid program, and why; an edit of any other kind must be refused by the
verifier, or leave the generated code as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from galvatron.ir.program import Form, Program
from tests.ir import edits_of_layers as layers
from tests.ir import edits_of_ops as ops
from tests.ir import edits_of_values as values


@dataclass(frozen=True)
class Kind:
    """A kind of edit; `valid` says why its result is another valid program, empty for one that must be refused."""

    edit: Callable[[Program, Random], Program]
    first: Form
    last: Form
    valid: str = ""


_ANY = (Form.CAPTURED, Form.STAGED)
_LAYERED = (Form.CLUSTERED, Form.STAGED)
_LOCAL = (Form.SHARDED, Form.STAGED)
_STAGED = (Form.STAGED, Form.STAGED)
_MODEL = "another model: the program itself says what is computed"

KINDS: dict[str, Kind] = {
    "drop-communication": Kind(ops.drop_communication, *_LOCAL),
    "axis-of-an-op": Kind(ops.axis_of_an_op, *_LOCAL),
    "size-of-a-sharded-dimension": Kind(ops.size_of_a_sharded_dimension, *_LOCAL),
    "keyword-of-a-collective": Kind(ops.keyword_of_a_collective, *_LOCAL),
    "retarget-a-collective": Kind(ops.retarget_a_collective, *_LOCAL),
    "retarget-to-an-op-on-slices": Kind(ops.retarget_to_an_op_on_slices, *_LOCAL),
    "keyword-of-a-draw": Kind(ops.keyword_of_a_draw, *_LOCAL),
    "placement": Kind(values.placement, *_LOCAL),
    "placement-and-shape": Kind(values.placement_and_shape, *_LOCAL),
    "mesh": Kind(layers.mesh, *_LOCAL),
    "retarget-to-no-operator": Kind(ops.retarget_to_no_operator, *_ANY),
    "argument-too-many": Kind(ops.argument_too_many, *_ANY),
    "argument-too-few": Kind(ops.argument_too_few, *_ANY),
    "argument-of-another-kind": Kind(ops.argument_of_another_kind, *_ANY),
    "element-type": Kind(values.element_type, *_ANY),
    "shape": Kind(values.shape, *_ANY),
    "class-of-a-layer": Kind(layers.class_of_a_layer, *_LAYERED),
    "operand-of-a-layer": Kind(layers.operand_of_a_layer, *_LAYERED),
    "state-of-a-layer": Kind(layers.state_of_a_layer, *_LAYERED),
    "kind-of-a-layer": Kind(layers.kind_of_a_layer, *_LOCAL),
    "drop-a-layer": Kind(layers.drop_a_layer, *_LAYERED),
    "strategy-of-a-layer": Kind(layers.strategy_of_a_layer, *_LOCAL),
    "way-to-keep-a-tie": Kind(layers.way_to_keep_a_tie, *_LOCAL),
    "kept-layout": Kind(layers.kept_layout, *_STAGED),
    "value-of-an-update": Kind(values.value_of_an_update, *_ANY),
    "state-of-an-update": Kind(values.state_of_an_update, *_ANY),
    "drop-an-update": Kind(values.drop_an_update, *_ANY, valid=_MODEL),
    "drop-kept-state": Kind(layers.drop_kept_state, *_STAGED),
    "transfer": Kind(layers.transfer, *_STAGED),
    "transfer-on-both-sides": Kind(layers.transfer_on_both_sides, *_STAGED),
    "strategy-in-a-plan": Kind(layers.strategy_of_a_layer, Form.PLANNED, Form.PLANNED, valid="another plan"),
    "way-to-keep-a-tie-in-a-plan": Kind(layers.way_to_keep_a_tie, Form.PLANNED, Form.PLANNED, valid="another plan"),
    "equal-state-of-a-layer": Kind(layers.equal_state_of_a_layer, *_LAYERED, valid=_MODEL),
    "read-another-value": Kind(ops.read_another_value, *_ANY, valid="a value that broadcasts alike: " + _MODEL),
    "drop-computation": Kind(ops.drop_computation, *_ANY, valid=_MODEL),
    "retarget-to-another-operator": Kind(ops.retarget_to_another_operator, *_ANY, valid=_MODEL),
    "read-an-equal-value": Kind(ops.read_an_equal_value, *_ANY, valid=_MODEL),
    "swap-operands": Kind(ops.swap_operands, *_ANY, valid=_MODEL),
    "literal-argument": Kind(ops.literal_argument, *_ANY, valid=_MODEL),
    "swap-outputs": Kind(values.swap_outputs, *_ANY, valid=_MODEL),
}
