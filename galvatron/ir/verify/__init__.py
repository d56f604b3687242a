"""The verifier: what makes a program valid, as a table of rules. Reading the table is reading the specification.

Rules are applied from top to bottom, and a rule may rely on those above it; the first that is broken is reported with
the program's text, the offending lines marked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from types import ModuleType

from galvatron.errors import Problem, VerifyError
from galvatron.ir.layout import Mesh
from galvatron.ir.program import Form, Program
from galvatron.ir.text.lines import Line
from galvatron.ir.text.printer import lenient_program_lines
from galvatron.ir.types import BATCH, NUMBER_KINDS
from galvatron.ir.verify import closings, graphs, programs, sharding, started
from galvatron.ir.verify.computed import BATCHES
from galvatron.ir.verify.graphs import Scope, Violation

_CONTEXT = 2
_SHOWN, _COUNTED = 5, 25
"""Violations that a message shows, and those that are looked for: each looks up what its name may have meant."""


@dataclass(frozen=True)
class Rule:
    """A named property that valid IR has in the given forms; `check` yields its violations.

    The check gets a `Scope` for each op graph when the rule is about graphs, else the whole program.
    """

    name: str
    check: Callable[..., Iterator[Violation]]
    forms: frozenset[Form]
    about_graphs: bool = False

    @property
    def meaning(self) -> str:
        return (self.check.__doc__ or "").strip().splitlines()[0]


_ABOUT_GRAPHS = (graphs, started)


def _rules(first: Form, last: Form, module: ModuleType, names: str) -> tuple[Rule, ...]:
    """Functions of a module as rules for a range of forms."""
    forms = frozenset(form for form in Form if first <= form <= last)
    return tuple(
        Rule(name.replace("_", "-"), getattr(module, name), forms, about_graphs=module in _ABOUT_GRAPHS)
        for name in names.split()
    )


RULES: tuple[Rule, ...] = (
    *_rules(Form.CAPTURED, Form.STAGED, programs, "form_fields program_names program_signature masters"),
    *_rules(Form.CAPTURED, Form.STAGED, graphs, "unique_names defined_before_use known_ops arguments_fit"),
    *_rules(Form.CAPTURED, Form.STAGED, graphs, "known_dtypes sizes_in_batch numbers_in_batch mesh_axes"),
    *_rules(Form.CAPTURED, Form.STAGED, graphs, "layouts_present result_count padded_shards routed_rows"),
    *_rules(Form.CLUSTERED, Form.STAGED, programs, "known_classes layer_signatures state_is_bound"),
    *_rules(Form.SHARDED, Form.STAGED, sharding, "state_shards"),
    *_rules(Form.CAPTURED, Form.STAGED, graphs, "collectives spmd_ops random_draws result_types"),
    *_rules(Form.CAPTURED, Form.STAGED, started, "started_collectives"),
    *_rules(Form.CAPTURED, Form.STAGED, graphs, "computed_results functions_fit calls_fit"),
    *_rules(Form.CAPTURED, Form.CAPTURED, programs, "graph_matches_program"),
    *_rules(Form.CLUSTERED, Form.STAGED, programs, "layers_in_order"),
    *_rules(Form.CLUSTERED, Form.PLANNED, programs, "operand_types"),
    *_rules(Form.CLUSTERED, Form.STAGED, programs, "cheap_layers copies_say_what_they_are"),
    *_rules(Form.SHARDED, Form.STAGED, programs, "conversions_change_layout_only shared_layers_are_one"),
    *_rules(Form.CLUSTERED, Form.STAGED, programs, "epilogue_ends"),
    *_rules(Form.CLUSTERED, Form.STAGED, closings, "closings_only_write"),
    *_rules(Form.CAPTURED, Form.STAGED, programs, "output_is_loss updates_fit outputs_fit checks_fit"),
    *_rules(Form.CAPTURED, Form.STAGED, closings, "gradients_told"),
    *_rules(Form.COSTED, Form.PLANNED, programs, "costs_present"),
    *_rules(Form.CLUSTERED, Form.STAGED, programs, "costs_in_batch"),
    *_rules(Form.CANDIDATES, Form.PLANNED, programs, "candidates_fit"),
    *_rules(Form.PLANNED, Form.STAGED, programs, "plan_belongs plan_covers_layers plan_settles_ties"),
    *_rules(Form.PLANNED, Form.STAGED, programs, "plan_uses_devices plan_divides_batch"),
    *_rules(Form.SHARDED, Form.STAGED, sharding, "stages_in_order meshes_fit"),
    *_rules(Form.SHARDED, Form.STAGED, sharding, "strategies_as_planned ties_as_planned loss_is_whole"),
    *_rules(Form.SHARDED, Form.STAGED, sharding, "operands_fit ops_on_slices copies_agree epilogue_slices"),
    *_rules(Form.SHARDED, Form.STAGED, sharding, "attention_waits_for_itself"),
    *_rules(Form.SHARDED, Form.STAGED, sharding, "updates_are_whole"),
    *_rules(Form.STAGED, Form.STAGED, sharding, "edges_agree transfers_pair transfers_defined"),
    *_rules(Form.STAGED, Form.STAGED, sharding, "state_is_kept updates_are_kept tied_state_agrees zero_as_planned"),
    *_rules(Form.PLANNED, Form.STAGED, programs, "micro_batches_add_up"),
)
"""Every rule, in the order in which they are applied."""


def verify(program: Program, *, computed: bool = True) -> None:
    """Checks a program against every rule of its form.

    Args:
        computed: whether also against what torch computes where tables do not say it, for which torch is loaded.

    Raises:
        VerifyError: names the rule and shows the program around the offending lines.
    """
    scopes = list(_scopes(program))
    for rule in (r for r in RULES if program.form in r.forms and (computed or r.check is not graphs.computed_results)):
        subjects = scopes if rule.about_graphs else [program]
        violations = list(islice((v for subject in subjects for v in rule.check(subject)), _COUNTED))
        if violations:
            raise _error(rule, program, violations)


def _scopes(program: Program) -> Iterator[Scope]:
    numbers = frozenset(number.symbol for number in program.numbers if number.kind in NUMBER_KINDS)
    sizes = frozenset((BATCH, *program.lengths))
    for function in program.functions:
        for part, graph in (("forward", function.forward), ("backward", function.backward)):
            yield Scope(graph, (function.name, part), sizes, function=function, batches=_batches(program, ()))
    if program.graph is not None:
        yield Scope(program.graph, symbols=sizes, numbers=numbers, batches=_batches(program, ()))
    once = sharding.step_classes(program)
    for cls in program.classes:
        symbols = sharding.batch_symbols(program.form, once=cls.name in once).union(program.lengths)
        mesh, given = (cls.mesh, program.only_given(cls)) if program.form >= Form.SHARDED else (None, frozenset())
        batches = _batches(program, cls.mesh)
        yield Scope(cls.graph, cls.name, symbols, mesh, numbers, given, batches=batches)


def _batches(program: Program, mesh: Mesh) -> tuple[int, int]:
    """Batch sizes at which ops of a program can be run, on ranks of a mesh; where it does not hold for large ones, no
    more than a rank has of the batch that it is for."""
    if program.batch_sizes.most is None:
        return BATCHES
    parts = math.prod(axis.size for axis in mesh) * (program.plan.micro_batches if program.plan else 1)
    size = max(1, program.batch_size // parts)
    return size, size


def _error(rule: Rule, program: Program, violations: list[Violation]) -> VerifyError:
    messages = list(dict.fromkeys(message for _, message in violations))
    at_least = "at least " if len(violations) == _COUNTED else ""
    more = f"\n  and {at_least}{len(messages) - _SHOWN} more" if len(messages) > _SHOWN else ""
    told = "\n".join(f"  {message}" for message in messages[:_SHOWN]) + more
    lines = lenient_program_lines(program)
    shown = excerpt([line.text for line in lines], {_place(lines, locus) for locus, _ in violations[:_SHOWN]})
    where = f"program {program.name} ({program.form})"
    return VerifyError(
        f"{where} breaks the rule {rule.name}: {rule.meaning}\n{told}\n{shown}",
        rule=rule.name,
        meaning=rule.meaning,
        problems=tuple(_problem(lines, violation) for violation in violations[:_SHOWN]),
    )


def _problem(lines: list[Line], violation: Violation) -> Problem:
    locus, message = violation
    at = _place(lines, locus)
    section = next((lines[i].text for i in range(at, -1, -1) if lines[i].text and not lines[i].text[0].isspace()), "")
    return Problem(message, section, lines[at].text)


def _place(lines: list[Line], locus: tuple) -> int:
    """The line that shows a locus; the first one for what no line shows."""
    return next((i for i, line in enumerate(lines) if line.locus == locus), 0)


def excerpt(lines: Sequence[str], marked: Collection[int]) -> str:
    """Some lines, by position, marked, with their numbers and a little around each."""
    near = sorted({j for i in marked for j in range(i - _CONTEXT, i + _CONTEXT + 1) if 0 <= j < len(lines)})
    shown: list[str] = []
    for position, index in enumerate(near):
        if position and index != near[position - 1] + 1:
            shown.append("      …")
        shown.append(f"{'>>>' if index in marked else '   '} {index + 1:>4} | {lines[index].rstrip()}")
    return "\n".join(shown)
