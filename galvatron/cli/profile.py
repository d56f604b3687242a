"""`galvatron profile`: what the hardware can do, measured, kept and shown."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from galvatron.cli.inputs import ClusterText, Json, ProgramFile, read_cluster, read_plan, read_program
from galvatron.cli.output import file_to_write, say
from galvatron.ir.limits import SAMPLES

if TYPE_CHECKING:
    from galvatron.profiler.profile import Profile

Output = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        metavar="FILE.json",
        parser=file_to_write,
        help="Where it goes; default: the user's cache directory.",
    ),
]

app = typer.Typer(
    name="profile", no_args_is_help=True, help="Measure the hardware and the layers of a model; show what was measured."
)


@app.command("hardware")
def hardware(
    output: Output = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer sizes, within two minutes.")] = False,
    json: Json = False,
) -> None:
    """Measure kernels, communication and memory of this machine, or of the job that torchrun starts.

    torchrun --nproc-per-node 4 -m galvatron profile hardware

    The profile is merged into what the file has of the same device, ranks and torch.
    """
    from galvatron.profiler import hardware, meter, store
    from galvatron.runtime import initialize

    if output is not None and output.exists():
        store.load(output)  # which is refused before anything is measured
    world = initialize()
    with _progress(world.rank == 0) as told:
        profile = hardware.profile_hardware(world, meter.QUICK if quick else meter.FULL, told)
    if world.rank != 0:
        return
    path, kept = _kept(profile, output)
    say(f"{path}: {len(kept.measurements)} measurements of {kept.name}", err=True)
    _show([kept], json)


@app.command("model")
def model(
    program_file: ProgramFile,
    cluster: ClusterText,
    plans: Annotated[
        list[str] | None,
        typer.Option(
            "--plan",
            metavar="PLAN",
            help="A plan file, or one strategy for all layers; repeatable. Default: tensor parallelism of every degree "
            "in a node, with data parallelism and without.",
        ),
    ] = None,
    global_batch: Annotated[
        int | None,
        typer.Option(
            "--global-batch", min=1, max=SAMPLES, metavar="N", help="Samples per step; default: those of the example."
        ),
    ] = None,
    limit: Annotated[float, typer.Option("--seconds", min=0.0, metavar="S", help="The time for it, about.")] = 60.0,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE.json",
            parser=file_to_write,
            help="Where it goes; default: the profile that --cluster names, or else the user's cache directory.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Measure the layer classes of a program on this device, as its ranks run them under some plans.

    torchrun --nproc-per-node 4 -m galvatron profile model p.gir --cluster profile.json --plan m4/dp2-tp2

    The times are merged into the profile of the same device, ranks and torch, and take the place of what kernels add up
    to.
    """
    from galvatron.calibration.cases import layer_cases
    from galvatron.calibration.layers import measure_layers
    from galvatron.ir.plan import Plan
    from galvatron.profiler import meter, store
    from galvatron.profiler.environment import environment_of
    from galvatron.runtime import initialize

    machines = read_cluster(cluster)
    program = read_program(program_file)
    batch = program.batch_size if global_batch is None else global_batch
    program = dataclasses.replace(program, batch_size=batch)
    chosen: list[Plan] = [read_plan(text, program, machines, batch) for text in plans or ()]
    world = initialize()
    if output is None and cluster.endswith(".json"):
        output = Path(cluster)
        store.require(output, environment_of(world))
    elif output is not None and output.exists():
        store.load(output)
    cases = layer_cases(program, machines, chosen)
    effort = dataclasses.replace(meter.QUICK, total_s=limit)
    with _progress(world.rank == 0) as told:
        found = measure_layers(world, cases, effort, told)
    if world.rank != 0:
        return
    path, _ = _kept(found.profile, output)
    for what, reason in (*found.unfit, *found.left_out):
        say(f"not measured: {what}: {reason}", err=True)
    say(f"{path}: {len(found.profile.classes)} times of layers on {found.profile.name}", err=True)
    _show([found.profile], json)


@app.command("import-galvatron2")
def import_galvatron2(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The JSON files of its profiler.")],
    device: Annotated[
        str, typer.Option("--device", metavar="PRESET", help="What they were measured on, such as a100-80g.")
    ],
    shape: Annotated[
        str | None,
        typer.Option("--shape", metavar="NODESxDEVICES", help="Of which job, if of several; default: the largest."),
    ] = None,
    output: Output = None,
    json: Json = False,
) -> None:
    """Make a profile of what Galvatron-2 measured of links; --cluster takes it.

    Kernels are those of the preset. What is not taken is listed, with the reason.
    """
    from galvatron.errors import ClusterError
    from galvatron.profiler import galvatron2
    from galvatron.profiler.clusters import cluster_of

    match = re.fullmatch("([0-9]{1,6})x([0-9]{1,6})", shape) if shape is not None else None
    if shape is not None and match is None:
        raise ClusterError(f"--shape is {shape!r}, and must be like 2x8: nodes and devices of each")
    found = galvatron2.import_directory(directory, device, (int(match[1]), int(match[2])) if match else None)
    cluster_of(found.profile)  # which is refused before anything is written
    path, _ = _kept(found.profile, output)
    for what, reason in found.left_out:
        say(f"not taken: {what}: {reason}", err=True)
    say(f"{path}: {len(found.profile.measurements)} measurements of {found.profile.name}", err=True)
    _show([found.profile], json)


@app.command("show")
def show(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE.json", help="Profiles; default: all in the user's cache directory.")
    ] = None,
    json: Json = False,
) -> None:
    """Show profiles as tables."""
    from galvatron.profiler import store

    files = store.stored_files() if file is None else [file]
    profiles = [profile for path in files for profile in store.load(path)]
    if json or profiles:
        _show(profiles, json)
    else:
        say(f"there are no profiles in {store.store_directory() if file is None else file}", err=True)


def _kept(profile: Profile, output: Path | None) -> tuple[Path, Profile]:
    """Merges a profile into a file, or into that of its environment; returns which, and what it now has of this."""
    from galvatron.profiler import store

    path = store.store_file(profile.environment) if output is None else output
    return path, store.save(path, profile)


def _show(profiles: list[Profile], json: bool) -> None:
    from galvatron.cli.profile_tables import profile_tables
    from galvatron.cli.tables import print_tables
    from galvatron.profiler import document

    if json:
        print(document.print_profiles(profiles), end="")
        return
    for profile in profiles:
        print_tables(profile_tables(profile))


@contextmanager
def _progress(shown: bool) -> Iterator[Callable[[str, float], None]]:
    """A progress bar on stderr, of one rank."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:42}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not shown, transient=True) as progress:
        task = progress.add_task("profile", total=1.0)
        yield lambda what, share: progress.update(task, completed=share, description=what)
