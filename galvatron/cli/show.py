"""`galvatron show`: what is in a program."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from galvatron.cli.inputs import Json, read_cluster, read_program
from galvatron.cli.output import as_json, file_to_write, say, write_file
from galvatron.errors import GalvatronError

if TYPE_CHECKING:
    from galvatron.inspection.view import View
    from galvatron.ir.program import Program

PICTURES = (".svg", ".dot", ".html")
"""The endings of files that a graph may be drawn in."""


def command(
    program_file: Annotated[Path, typer.Argument(metavar="PROGRAM.gir", help="In any form; - reads stdin.")],
    plan: Annotated[
        str | None, typer.Option("-p", "--plan", metavar="PLAN", help="Show it under a plan: a file, or as pp2/m4/dp2.")
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option("--cluster", metavar="CLUSTER", help="Where, if not on that of the plan or the program."),
    ] = None,
    layer: Annotated[
        str | None, typer.Option("--layer", metavar="NAME", help="The ops of a layer, or of a layer class.")
    ] = None,
    op: Annotated[str | None, typer.Option("--op", metavar="NAME", help="All of the op that makes a value.")] = None,
    graph: Annotated[
        Path | None,
        typer.Option(
            "--graph", metavar="FILE.svg|.dot|.html", parser=file_to_write, help="Draw the layers, or a layer's ops."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Show what is in a program: layer classes with what they compute and keep, inputs, state and results.

    A program that says what its classes cost (a costed, candidates or planned one) is shown without loading torch,
    except with --layer or --op.
    """
    if graph is not None and graph.suffix not in PICTURES:
        raise GalvatronError(f"--graph {str(graph)!r} has none of the endings {', '.join(PICTURES)}")
    if graph is not None and op is not None:
        raise GalvatronError("--graph draws the layers of a program or, with --layer, the ops of one; leave --op out")

    from galvatron.inspection.view import View

    by_op = layer is not None or op is not None
    view = View.of(_under(read_program(program_file, computed=by_op), plan, cluster))
    if graph is not None:
        write_file(graph, _drawn(view, graph.suffix, layer))
        say(graph)
    elif op is not None:
        from galvatron.inspection.ops import op_facts

        _say(op_facts(view, op, layer or ""), json)
        if view.program.plan is not None and view.program.cluster is None:
            print(
                "nothing says what else the op might do, at what price: name a --cluster for the plan", file=sys.stderr
            )
    elif layer is not None:
        from galvatron.inspection.ops import layer_ops

        _say(layer_ops(view, layer), json)
    else:
        from galvatron.inspection.classes import overview

        found = overview(view)
        if json:
            say(as_json(found.to_dict()))
        else:
            from galvatron.cli.show_tables import print_overview

            print_overview(found)


def _under(program: Program, plan: str | None, cluster: str | None) -> Program:
    if plan is None:
        if cluster is not None:
            raise GalvatronError("--cluster is where a plan runs: name one with --plan")
        return program
    from galvatron.inspection.programs import under_plan
    from galvatron.ir.plan import Plan
    from galvatron.ir.planned import read_plan

    read = read_plan(plan)
    named = cluster or (read.cluster if isinstance(read, Plan) else "")
    return under_plan(program, read, read_cluster(named) if named else None)


def _say(found: Sequence[Any], json: bool) -> None:
    """Prints what was found, each on its own."""
    if json:
        say(as_json([one.to_dict() for one in found]))
        return
    from galvatron.cli.show_tables import print_found

    print_found(found)


def _drawn(view: View, ending: str, layer: str | None) -> str:
    """The picture of the layers of a program, or of the ops of one, as the text of a file."""
    from galvatron.inspection.dataflow import layer_graph, op_graph

    found = layer_graph(view) if layer is None else op_graph(view, view.class_named(layer))
    title = " ".join(filter(None, (view.program.name, layer)))
    if ending == ".svg":
        from galvatron.inspection.pictures.svg import svg

        return svg(found)
    if ending == ".dot":
        from galvatron.inspection.pictures.dot import dot

        return dot(found, title)
    from galvatron.inspection.pictures.page import page

    return page(found, title, view.unit)
