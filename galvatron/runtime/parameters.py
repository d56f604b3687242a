"""The parameters of one rank: buckets for the gradient sums and the optimizer's parts, and when each of them moves.

A parameter that is `Summed` on some axes has its gradient added up over the ranks that differ in these; one that lives
on several pipeline ranks, over those too. Everything follows from the placements and the ZeRO level of each parameter:

level 0   gradients are summed once per step, whole; a sum starts while the last backward goes on
level 1   the same, but each rank gets the sum of its part, updates it, and the new values are gathered
level 2   gradients are summed after each micro-batch, so that only a part of the sum is kept
level 3   values are gathered before a layer runs, forward and backward, and given back after it; the last layer keeps
          them where its backward follows at once, and a backward that reads none of them has none gathered

Frozen parameters are in buckets at level 3 only, for their values. At others they stay as the stages have them.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from galvatron.runtime.buckets import ALONE, Bucket, Group, Member
from galvatron.runtime.elementwise import Slices
from galvatron.runtime.mesh import Axis, joint_groups
from galvatron.runtime.stage import Stage, StateSpec

_BUCKET_BYTES = 32 << 20


class Parameters:
    """Values, gradients and optimizer parts of the parameters of one rank's stages.

    Building it is collective. It moves the stages' parameters into flat memory; those on the meta device have no value
    until `write` is called for them.

    Args:
        stages: the stages of this rank.
        ties: for every parameter that lives on several pipeline ranks, the group of its copies of this rank's slice.
    """

    def __init__(self, stages: Sequence[Stage], ties: Mapping[str, dist.ProcessGroup]) -> None:
        self._stages = tuple(stages)
        self._ranks_per_stage = len(stages[0].mesh.ranks)
        device = stages[0].mesh.world.device
        groups = _groups(stages)
        self._buckets = [
            Bucket(specs, groups.get(specs[0].summed, ALONE), ties.get(specs[0].name), device)
            for specs in _bucketed(stages, ties)
        ]
        self._of: dict[str, tuple[Bucket, Member]] = {m.name: (b, m) for b in self._buckets for m in b.members}
        for stage in stages:
            for name in [name for name in stage.state_specs if name in self._of]:
                bucket, member = self._of[name]
                given = stage._parameters[name]
                assert given is not None
                if not given.is_meta:
                    bucket.write(member, given)
                stage._parameters[name] = member.leaf
        # Those whose sums wait for the last micro-batch; sums start in this order on every rank.
        self._late = [b for b in self._buckets if b.synchronised and b.level < 2]
        self._accumulations = {id(b): _accumulations(stages, b) for b in self._buckets}
        self._missing: dict[int, int] = {}
        self._started = 0
        self._summing: Bucket | None = None
        self._layers: list[LayerParameters] = []
        for bucket in self._buckets:
            if bucket.buffered:
                for member in bucket.members:
                    member.leaf.register_post_accumulate_grad_hook(self._after_accumulation(member.name))
        self._attach(stages)

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """What the optimizer updates, in the order of the stages: parameters, or this rank's flat parts of them."""
        specs = {name: spec for stage in self._stages for name, spec in stage.state_specs.items() if name in self._of}
        return {name: self._of[name][1].trained for name, spec in specs.items() if not spec.frozen}

    @property
    def slices(self) -> Slices:
        """How `trained` is cut from the parameters of the model."""
        trained = [(bucket, member) for bucket, member in self._of.values() if not bucket.frozen]
        return Slices(
            frozenset(place.dim for _, member in trained for _, place in member.spec.sharded),
            any(bucket.ways > 1 for bucket, _ in trained),
        )

    def __contains__(self, name: str) -> bool:
        """Whether a parameter lies in a bucket."""
        return name in self._of

    def read(self, name: str) -> Tensor:
        """The value of this rank's whole slice of a parameter or buffer. Collective over the ranks that share it."""
        if name not in self._of:
            return self._table(name)[name]
        bucket, member = self._of[name]
        return bucket.read(member, bucket.shard)

    def read_gradient(self, name: str) -> Tensor:
        """Like `read`, of the gradient of the last step; of a parameter that is trained."""
        bucket, member = self._of[name]
        return bucket.gradient(member)

    def write(self, name: str, local: Tensor) -> None:
        """Set this rank's whole slice of a parameter or buffer."""
        if name in self._of:
            bucket, member = self._of[name]
            bucket.write(member, local)
            return
        with torch.no_grad():
            self._table(name)[name].copy_(local)

    def part(self, name: str) -> tuple[Tensor, int, int]:
        """What this rank itself keeps of a parameter or buffer, and from which to which element of its slice that is;
        of a trained one, what the optimizer updates. Who writes it, before the next step, calls `publish` afterwards.
        """
        if name not in self._of:
            tensor = self._table(name)[name]
            return tensor, 0, tensor.numel()
        bucket, member = self._of[name]
        bucket.arrived()
        return member.trained, *bucket.range_of(member)

    def start(self, microbatches: int) -> None:
        """A step begins: forget the last one's gradients. Every stage that reads a parameter will add to its gradient
        `microbatches` times, and an epilogue that does once.
        """
        self._started = 0
        for bucket in self._buckets:
            bucket.start()
            each, once = self._accumulations[id(bucket)]
            self._missing[id(bucket)] = microbatches * each + once

    def finish(self) -> None:
        """The last backward has ended: complete all sums, and give the optimizer its gradients."""
        self._end_backwards()
        for bucket in self._buckets:
            if bucket.synchronised and bucket.level >= 2:
                self._sum_early(bucket)
        self._sum_up_to(len(self._late))
        for bucket in self._buckets:
            if bucket.buffered:
                bucket.finish()
        for bucket in self._buckets:
            bucket.hand_over()

    def forget(self, names: Iterable[str]) -> None:
        """Nothing in the step has reached these parameters: they have no gradient, and the optimizer skips them."""
        for name in names:
            self._of[name][1].trained.grad = None

    def settle(self) -> None:
        """What the last backward has left to be summed has had a forward to be so, and its memory is needed now: the
        forward of a stage's last layer begins, or a backward.
        """
        if self._summing is not None:
            self._summing.settle()
        self._end_backwards()

    def publish(self) -> None:
        """The optimizer has updated: spread the new values. The layers wait for those that they read."""
        # The next forward meets the first layers first, and they are in the last buckets.
        for bucket in reversed(self._buckets):
            bucket.publish()

    def squared_norm(self, copies: Mapping[str, int]) -> Tensor:
        """This rank's share of the squared norm of all gradients, as float64: summed over the world it counts every
        element once.

        An element of a parameter cut into `s` slices lies on `ranks / s` ranks of its stage, and on `copies` stages
        when tied; each of them counts that fraction of it.
        """
        by_weight: dict[float, list[Tensor]] = {}
        for bucket in self._buckets:
            for member, gradient in bucket.gradients():
                holders = self._ranks_per_stage * copies.get(member.name, 1)
                by_weight.setdefault(member.spec.shards * bucket.ways / holders, []).append(gradient)
        total = torch.zeros((), dtype=torch.float64, device=self._stages[0].mesh.world.device)
        for weight, gradients in by_weight.items():
            dtype = torch.promote_types(gradients[0].dtype, torch.float32)
            norms = torch._foreach_norm(gradients, 2, dtype=dtype)  # pyright: ignore[reportPrivateImportUsage]  # as torch.nn.utils does
            total += weight * torch.stack([norm.to(torch.float64) for norm in norms]).square().sum()
        return total

    def scale_gradients(self, factor: Tensor) -> None:
        """Multiply all gradients by a number."""
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for bucket in self._buckets:
            for _, gradient in bucket.gradients():
                by_dtype.setdefault(gradient.dtype, []).append(gradient)
        for dtype, gradients in by_dtype.items():
            # A GPU takes a list in one pass only if the number has its type.
            own = factor.to(torch.promote_types(dtype, torch.float32))
            torch._foreach_mul_(gradients, own)  # pyright: ignore[reportPrivateImportUsage]  # as torch.nn.utils does

    def unscale(self, scale: float, norm: Tensor, max_norm: float | None) -> None:
        """Divide all gradients by `scale`, and by more if their global norm, `norm`, would then be above `max_norm`, as
        torch's `clip_grad_norm_` does.
        """
        if max_norm is not None and not math.isinf(max_norm):
            self.scale_gradients((max_norm / (norm + 1e-6)).clamp(max=1.0) / scale)
        elif scale != 1.0:
            self.scale_gradients(norm.new_full((), 1 / scale))

    def _table(self, name: str) -> dict[str, Any]:
        return next(stage for stage in self._stages if name in stage.state_specs).table(name)

    def _after_accumulation(self, name: str) -> Callable[[Tensor], None]:
        """A hook of a parameter that does not hold the parameters: torch does not tell Python's collector what a hook
        holds, so that none of them would ever be freed."""
        known = weakref.ref(self)

        def hook(_: Tensor) -> None:
            if (own := known()) is not None:
                own._accumulated(*own._of[name])

        return hook

    def _accumulated(self, bucket: Bucket, member: Member) -> None:
        """A backward has added to the gradient of a parameter."""
        bucket.collect(member)
        if bucket.synchronised and bucket.level >= 2:
            if bucket.complete:
                self._sum_early(bucket)
            return
        self._missing[id(bucket)] -= 1
        if self._missing[id(bucket)] == 0 and bucket.synchronised:
            ready = self._started
            while ready < len(self._late) and self._missing[id(self._late[ready])] == 0:
                ready += 1
            self._sum_up_to(ready)

    def _sum_early(self, bucket: Bucket) -> None:
        """Sum what a micro-batch has added; of the sums in flight, no more than one keeps its memory."""
        if self._summing is not None:
            self._summing.settle()
        bucket.sum()
        bucket.release()
        self._summing = bucket

    def _end_backwards(self) -> None:
        """The one before has ended, with it those of the layers in which it did."""
        for layer in self._layers:
            layer.end_backward()

    def _sum_up_to(self, count: int) -> None:
        for bucket in self._late[self._started : count]:
            bucket.sum()
        self._started = max(self._started, count)

    def _attach(self, stages: Sequence[Stage]) -> None:
        """Make the layers wait for the values that they read."""
        for stage in stages:
            chain: list[LayerParameters] = []
            last = [layer for layer in stage.layers.values() if not layer.once][-1:]
            for layer in stage.layers.values():
                found = {id(b): b for b, _ in (self._of[name] for name in layer.names if name in self._of) if b.level}
                if found:
                    turning = stage if layer in last else None
                    layer.parameters = LayerParameters(tuple(found.values()), turning, rereads=layer.rereads)
                    chain.append(layer.parameters)
            self._layers += chain
            if chain:
                chain[-1].on_forward = self.settle
            for before, after in zip(chain, chain[1:], strict=False):
                before.after, after.before = after, before


class LayerParameters:
    """What one layer does for the parameters that it reads: before it runs it waits for them and has those of the next
    layer fetched, forward and backward alike; at level 3 they go again after it.

    Args:
        turning: the stage of which this is the last layer; None where it is not.
        rereads: whether the layer's backward reads the values.
    """

    def __init__(self, buckets: tuple[Bucket, ...], turning: Stage | None, *, rereads: bool) -> None:
        self._buckets, self._turning, self._rereads = buckets, turning, rereads
        self._fetched = tuple(bucket for bucket in buckets if bucket.level == 3)
        self._frozen = tuple(bucket for bucket in self._fetched if bucket.frozen)
        self._has_backward = self._in_backward = False
        self.before: LayerParameters | None = None
        self.after: LayerParameters | None = None
        self.on_forward: Callable[[], None] | None = None

    def enter(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The layer's forward begins; the same arguments, but that their gradients tell when its backward ends."""
        if self.on_forward is not None:
            self.on_forward()
        for bucket in self._buckets:
            bucket.ready()
        if self.after is not None:
            self.after._fetch()
        if not self._frozen or not torch.is_grad_enabled():
            return args
        places = [i for i, value in enumerate(args) if isinstance(value, Tensor) and value.requires_grad]
        passed = dict(zip(places, _Entrance.apply(self, *(args[i] for i in places)), strict=True)) if places else {}
        return tuple(passed.get(i, value) for i, value in enumerate(args))

    def leave(self, results: Any) -> None:
        """The layer's forward has ended, with these results."""
        if not self._fetched:
            return
        every = results if isinstance(results, tuple) else (results,)
        differentiable = [result for result in every if isinstance(result, Tensor) and result.requires_grad]
        self._has_backward = bool(differentiable) and torch.is_grad_enabled()
        turns = self._has_backward and self._turning is not None and self._turning.turns
        if not (self._rereads and turns):
            for bucket in self._fetched:
                bucket.release()
        for result in differentiable if self._has_backward else ():
            result.register_hook(self._before_backward)

    def end_backward(self) -> None:
        """The layer's backward has ended, if one had begun: frozen values go, as no gradient of theirs is awaited."""
        for bucket in self._frozen if self._in_backward else ():
            bucket.release()
        self._in_backward = False

    def _before_backward(self, _: Tensor) -> None:
        self._in_backward = self._rereads
        for bucket in self._fetched if self._rereads else ():
            bucket.ready()
        if self.before is not None and self.before._rereads and self.before._has_backward:
            self.before._fetch()

    def _fetch(self) -> None:
        for bucket in self._fetched:
            bucket.fetch()


class _Entrance(torch.autograd.Function):
    """Passes the arguments of a layer. Of what can run, autograd runs what was recorded last, so that the backward of
    this comes behind all of the layer's own."""

    @staticmethod
    def forward(ctx: Any, layer: LayerParameters, *values: Tensor) -> tuple[Tensor, ...]:
        ctx.layer = layer
        ctx.set_materialize_grads(False)
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.layer.end_backward()
        return None, *gradients


def _accumulations(stages: Sequence[Stage], bucket: Bucket) -> tuple[int, int]:
    """How often gradients are added to a bucket, per micro-batch and once per step."""
    each: Counter[str] = Counter()
    once: Counter[str] = Counter()
    for stage in stages:
        at_end = {name for layer in stage.layers.values() if layer.once for name in layer.names}
        before = {name for layer in stage.layers.values() if not layer.once for name in layer.names}
        each.update(name for name in stage.state_specs if name in before or name not in at_end)
        once.update(at_end)
    return sum(each[member.name] for member in bucket.members), sum(once[member.name] for member in bucket.members)


def _groups(stages: Sequence[Stage]) -> dict[tuple[Axis, ...], Group]:
    """The ranks over which gradients are summed, for each set of axes that a parameter is `Summed` on. Collective."""
    wanted = {
        spec.summed
        for stage in stages
        for name, spec in stage.state_specs.items()
        if spec.summed and _is_in_bucket(spec)
    }
    mesh = stages[0].mesh
    groups = joint_groups(mesh, wanted)
    return {axes: Group(group, dist.get_world_size(group), dist.get_rank(group)) for axes, group in groups.items()}


def _is_in_bucket(spec: StateSpec) -> bool:
    """Parameters that are trained, and frozen ones that are in parts."""
    return spec.kind == "parameter" and (not spec.frozen or spec.zero > 0)


def _bucketed(stages: Sequence[Stage], ties: Mapping[str, dist.ProcessGroup]) -> Iterator[list[StateSpec]]:
    """The parameters that are trained or in parts, bucket by bucket.

    From level 2 on a bucket holds what a set of layers reads, so that no more than a layer is whole at a time.
    """
    readers: dict[str, tuple[str, ...]] = defaultdict(tuple)
    specs: dict[str, StateSpec] = {}
    for stage in stages:
        specs.update((name, spec) for name, spec in stage.state_specs.items() if _is_in_bucket(spec))
        for layer in stage.layers.values():
            for name in layer.names:
                readers[name] += (f"{stage.index}.{layer.name}",)
    # The backward meets the last layers first, so their buckets come first. The stages of a tie have no order in common
    # but that of the names, and sums inside a stage come before those: ranks of different stages meet in one order.
    ties = {name: group for name, group in ties.items() if name in specs and not specs[name].frozen}
    untied = [spec for name, spec in reversed(specs.items()) if name not in ties]
    tied = [specs[name] for name in sorted(specs) if name in ties]
    members: dict[tuple[Any, ...], list[StateSpec]] = {}
    for spec in untied + tied:
        layers = readers[spec.name] if spec.zero >= 2 else ()
        tie = spec.name if spec.name in ties and spec.zero else ties.get(spec.name)
        key = spec.summed, spec.dtype, spec.master, spec.zero, spec.frozen, tie, layers
        members.setdefault(key, []).append(spec)
    for specs_of_key in members.values():
        yield from [specs_of_key] if specs_of_key[0].zero >= 2 else _cut(specs_of_key)


def _cut(specs: list[StateSpec]) -> Iterator[list[StateSpec]]:
    """Runs of parameters that fit a bucket."""
    run: list[StateSpec] = []
    used_bytes = 0
    for spec in specs:
        size = spec.local_numel * spec.dtype.itemsize
        if run and used_bytes + size > _BUCKET_BYTES:
            yield run
            run, used_bytes = [], 0
        run.append(spec)
        used_bytes += size
    if run:
        yield run
