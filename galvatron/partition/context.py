"""What a layer class is to its program: the facts at its border that sharding needs; sharded classes by strategy."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from operator import itemgetter

from galvatron.ir.cluster import Cluster
from galvatron.ir.gradients import Gradients, gradients
from galvatron.ir.layout import BROADCAST, Layout, Mesh, Shard, joined_layout
from galvatron.ir.plan import Ties
from galvatron.ir.program import MASTER, LayerClass, LayerKind, Program
from galvatron.ir.strategy import Strategy
from galvatron.ir.ties import Binding, TiedClasses, tied_classes
from galvatron.ir.types import DTYPE_BYTES, Dim
from galvatron.machine import Machine
from galvatron.partition.axes import SolvedAxes
from galvatron.partition.boundary import Border, sequence_split
from galvatron.partition.choices import ClassChoices
from galvatron.partition.localize import MicroBatch
from galvatron.partition.partition import ShardedClass, shard_class


class Partitioner:
    """Shards the classes of one program on one cluster, each pair of class and strategy once."""

    def __init__(self, program: Program, cluster: Cluster) -> None:
        self.program = program
        self.machine = Machine(cluster)
        self._sharded: dict[tuple[str, Strategy, tuple[tuple[str, Layout], ...]], ShardedClass] = {}
        self._choices: dict[str, ClassChoices] = {}
        self._solved: dict[tuple[str, int], SolvedAxes] = {}
        self._micro_batches: dict[tuple[str, int], MicroBatch] = {}
        self._together: dict[tuple[TiedClasses, Strategy], dict[str, ShardedClass]] = {}

    def shard(self, cls: str, strategy: Strategy, ties: Ties) -> LayerClass:
        """The local form of a class under a strategy; ZeRO and recomputation do not change it.

        Args:
            ties: how a plan keeps what layers share; of each tie, whether whole or in parts is all that matters here.
        """
        return self.sharded(cls, strategy, ties).local

    def sharded(self, cls: str, strategy: Strategy, ties: Ties) -> ShardedClass:
        """The same with the decisions that led to it."""
        axes = Strategy(strategy.axes)
        tie = self._tie_of.get(cls)
        if tie is None or tie.whole(ties):
            return self._shard(cls, axes, dict.fromkeys(self.whole(cls, ties), _whole(axes)))
        return self._shard_together(tie, axes)[cls]

    def whole(self, cls: str, ties: Ties) -> tuple[str, ...]:
        """The state of a class that a plan keeps whole, at ZeRO level 0, since layers share it."""
        tie = self._tie_of.get(cls)
        return tie.formals(cls) if tie is not None and tie.whole(ties) else ()

    def _shard(self, cls: str, axes: Strategy, kept: Mapping[str, Layout]) -> ShardedClass:
        key = (cls, axes, tuple(sorted(kept.items(), key=itemgetter(0))))
        if key not in self._sharded:
            layer_class, ways = self.program.class_of[cls], axes.sample_shards
            solved = self._axes(cls, max(1, self.program.batch_size // ways) * ways)
            self._sharded[key] = shard_class(layer_class, axes, solved, self._in_micro_batch(cls, ways), kept)
        return self._sharded[key]

    def sequences(self, cls: str) -> tuple[Dim, ...]:
        """What roles that shard a sequence cut of each value that crosses the border of a class in the stream: its
        length, or where ops read it in so many equal parts, their number."""
        graph, border, table = self.program.class_of[cls].graph, self.borders[cls], self._choices_of(cls).table
        crossing = [*(v.name for v in graph.inputs), *(n for n in graph.outputs if n not in border.free_outputs)]
        splits = [(name, sequence_split(graph.types[name])) for name in crossing if name in border.streams]
        sizes = (table.at(name, s.dim, s.inner, s.size).size for name, s in splits if s is not None)
        return tuple(dict.fromkeys(sizes))

    def _choices_of(self, cls: str) -> ClassChoices:
        if cls not in self._choices:
            self._choices[cls] = ClassChoices(self.program.class_of[cls].graph, self.borders[cls])
        return self._choices[cls]

    def _axes(self, cls: str, samples: int) -> SolvedAxes:
        if (cls, samples) not in self._solved:
            self._solved[cls, samples] = SolvedAxes(cls, self._choices_of(cls), self.machine, samples)
        return self._solved[cls, samples]

    def _in_micro_batch(self, cls: str, batch_ways: int) -> MicroBatch:
        if (cls, batch_ways) not in self._micro_batches:
            graph, differentiable = self.program.class_of[cls].graph, self.borders[cls].differentiable
            self._micro_batches[cls, batch_ways] = MicroBatch(graph, batch_ways, differentiable)
        return self._micro_batches[cls, batch_ways]

    def _shard_together(self, tie: TiedClasses, axes: Strategy) -> dict[str, ShardedClass]:
        """Classes that share parameters under one strategy, every shared one in the same layout.

        Each class first chooses for itself. Where they differ, the last that shards a parameter decides: of a
        vocabulary that is the head, to which it matters most. What another class cannot read so is whole.
        """
        key = (tie, axes)
        kept: dict[tuple[Binding, ...], Layout] = {}
        while key not in self._together:
            sharded = {
                cls: self._shard(cls, axes, {f: layout for piece, layout in kept.items() for c, f in piece if c == cls})
                for cls in tie.classes
            }
            layouts = {piece: [_told(sharded[cls].local, formal) for cls, formal in piece] for piece in tie.pieces}
            unequal = [piece for piece, found in layouts.items() if len(set(found)) > 1]
            if not unequal:
                self._together[key] = sharded
            for piece in unequal:
                # Of layouts on sub-axes, which other classes need not have, none is asked of these.
                uncut = [layout for layout, mesh in layouts[piece] if mesh == axes.mesh]
                kept[piece] = _whole(axes) if piece in kept or not uncut else _last_sharded(uncut)
        return self._together[key]

    def differentiable(self, value: str) -> bool:
        """Whether a program-level value has a gradient."""
        return value in self._gradients.values

    @cached_property
    def ties(self) -> tuple[TiedClasses, ...]:
        """The classes whose layers share parameters."""
        return tied_classes(self.program)

    @cached_property
    def _tie_of(self) -> dict[str, TiedClasses]:
        return {cls: tie for tie in self.ties for cls in tie.classes}

    @cached_property
    def borders(self) -> dict[str, Border]:
        """The border of every class."""
        program = self.program
        formals, streams = self._gradients.formals, self._streams.formals
        borders: dict[str, Border] = {}
        closings = (layer for layer in program.all_layers if layer.kind is LayerKind.CLOSING)
        summed = {update.value for update in program.updates}.union(*(layer.operands for layer in closings))
        for cls in program.classes:
            layers = program.layers_of[cls.name]
            bound = [
                (formal.name, name)
                for layer in layers
                for formal, name in zip(cls.graph.state, layer.state, strict=True)
            ]
            trainable = frozenset(formal for formal, name in bound if name in program.trainable)
            results = {r: n for layer in layers for n, r in zip(cls.graph.outputs, layer.results, strict=True)}
            is_once = any(layer.kind.is_whole for layer in layers)
            whole = {results[name] for name in summed if name in results}
            borders[cls.name] = Border(
                differentiable=trainable | formals[cls.origin_name],
                trainable=trainable,
                parameters=frozenset(formal for formal, name in bound if name in program.parameters),
                streams=frozenset(streams[cls.origin_name]),
                loss=results.get(program.output),
                whole_outputs=frozenset(cls.graph.outputs if is_once else whole),
                free_outputs=program.unread(cls),
                given_outputs=program.only_given(cls),
                master_scale=DTYPE_BYTES[MASTER] // DTYPE_BYTES[program.precision] if program.precision else 1,
            )
        return borders

    @cached_property
    def _streams(self) -> Gradients:
        """What would have a gradient if all parameters were trained."""
        every = self.program.trainable | self.program.parameters
        return self._gradients if every == self.program.trainable else gradients(self.program, every)

    @cached_property
    def _gradients(self) -> Gradients:
        return gradients(self.program)


def _told(cls: LayerClass, formal: str) -> tuple[Layout, Mesh]:
    """The layout of some state of a class on as few axes as tell it, and these axes."""
    return joined_layout(cls.graph.values[formal].layout or (), cls.mesh)


def _whole(strategy: Strategy) -> Layout:
    """Whole on every rank, with the gradient summed over all axes."""
    return (BROADCAST,) * len(strategy.mesh)


def _last_sharded(layouts: list[Layout]) -> Layout:
    """The last layout with a shard; the last of all where none has."""
    return next((each for each in reversed(layouts) if any(isinstance(p, Shard) for p in each)), layouts[-1])
