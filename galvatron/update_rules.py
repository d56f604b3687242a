"""What an optimizer costs, found by running it: its kernels and its state on small stand-ins of the parameters.

Stand-ins are as long along each dimension as a prime number, another one for each length. So the number of elements of
whatever an update touches says of which dimensions it is a product, and what it is for the parameter itself.
"""

from __future__ import annotations

import logging
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from galvatron.ir.program import Program, State
from galvatron.ir.types import TORCH_DTYPE_NAMES
from galvatron.ir.update_rule import UpdateRule
from galvatron.runtime import WholeParameters
from galvatron.runtime.elementwise import STEPS, kind_of, options_of, undisturbed
from galvatron.runtime.joined import updated_by
from galvatron.runtime.optimizers import OptimizerFactory, build_optimizer

_PRIMES = {1: (4201,), 2: (137, 139), 3: (31, 37, 41), 4: (11, 13, 17, 19)}
_MORE_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19)
"""Lengths of a stand-in, the shortest first, by number of dimensions: optimizers treat small tensors in other ways."""

_CPU = torch.device("cpu")

_LOG = logging.getLogger("galvatron")

_IR_NAMES = {getattr(torch, name): ours for ours, name in TORCH_DTYPE_NAMES.items()}


def with_rules(program: Program, factory: OptimizerFactory, *, at_once: bool = False) -> Program:
    """The program whose parameters, but for those of one element, are updated as an optimizer does that.

    Nothing of the job changes: the function is called for stand-ins. An optimizer that takes no step on them leaves the
    program as it is.

    Args:
        at_once: count kernels that take many tensors at once, as on a GPU, where the optimizer may choose.

    Raises:
        GalvatronError: the function does not give an optimizer of these parameters.
    """
    trained = {state.name: state for state in program.state if state.trainable and prod(_shape(state)) > 1}
    if not trained:
        return program
    shapes = {name: _shape(state) for name, state in trained.items()}
    whole = factory.of(shapes) if isinstance(factory, WholeParameters) else frozenset[str]()
    with undisturbed(_CPU):
        measured = _Measured(partial(build_optimizer, factory), trained, at_once=at_once)
        rules: dict[UpdateRule, UpdateRule] = {}
        of: dict[str, str] = {}
        for name in trained:
            try:
                found = measured.rule(name, whole=name in whole)
            except Exception as error:  # whatever it is, building it for the job says it with its place
                _LOG.info("the optimizer takes no step on stand-ins, so that it is priced as AdamW: %s", error)
                return program
            number = 1 + sum(rule.name == found.name for rule in rules)
            rules.setdefault(found, found if number == 1 else replace(found, name=f"{found.name}.{number}"))
            of[name] = rules[found].name
    state = tuple(replace(one, rule=of.get(one.name, "")) for one in program.state)
    return replace(program, state=state, rules=tuple(rules.values()))


class _Measured:
    """Rules as they were measured: once for parameters of equal types and options whose dimensions are in one order."""

    def __init__(
        self,
        build: Callable[[Mapping[str, nn.Parameter]], torch.optim.Optimizer],
        trained: Mapping[str, State],
        *,
        at_once: bool,
    ) -> None:
        self._build, self._trained, self._at_once = build, trained, at_once
        tiny = self._stand_ins()
        optimizer = build(tiny)
        self._options = options_of(optimizer, tiny)
        self._who = _names_of_rules(optimizer, tiny)
        self._found: dict[Any, _Step] = {}

    def rule(self, name: str, *, whole: bool) -> UpdateRule:
        """That of a parameter."""
        state, shape = self._trained[name], _shape(self._trained[name])
        lengths = _lengths(shape)
        key = kind_of(self._options[name]), self._who[name], state.type.dtype, lengths
        if key not in self._found:
            self._found[key] = self._run(name, lengths)
        return self._found[key].rule(self._who[name], tuple(zip(lengths, shape, strict=True)), whole=whole)

    def _stand_ins(self, of: str = "", lengths: Sequence[int] = ()) -> dict[str, nn.Parameter]:
        """One parameter with these lengths, and all others as small as can be."""
        found: dict[str, nn.Parameter] = {}
        for name, state in self._trained.items():
            shape = lengths if name == of else [min(size, 2) for size in _shape(state)]
            dtype = getattr(torch, TORCH_DTYPE_NAMES[state.type.dtype])
            found[name] = nn.Parameter(torch.zeros(tuple(shape), dtype=dtype, device=_CPU))
        return found

    def _run(self, name: str, lengths: tuple[int, ...]) -> _Step:
        named = self._stand_ins(name, lengths)
        own, generator = named[name], torch.Generator().manual_seed(0)
        optimizer = self._build(named)
        for group in optimizer.param_groups if self._at_once else ():
            if "foreach" in group and group["foreach"] is None and not group.get("fused"):
                group["foreach"] = True
        with torch.no_grad():
            own.copy_(torch.randn(lengths, generator=generator))
        counter = _Touched()
        for step in range(STEPS):
            own.grad = torch.randn(lengths, generator=generator).to(own)
            if step == 0:  # makes the state
                optimizer.step()
                continue
            with counter:
                optimizer.step()
        kept = [value for value in optimizer.state.get(own, {}).values() if isinstance(value, Tensor)]
        state = Counter[int]()
        for value in kept:
            state[value.numel()] += value.element_size()
        return _Step(own.element_size(), state, counter)


@dataclass(frozen=True)
class _Step:
    """What was counted of a stand-in: bytes of its state, and what its steps touch."""

    element_bytes: int
    state: Mapping[int, float]
    touched: _Touched

    def rule(self, name: str, sizes: Sequence[tuple[int, int]], *, whole: bool) -> UpdateRule:
        """The rule for a parameter.

        Args:
            sizes: for each dimension the length of the stand-in, and of the parameter.
        """
        touched, steps, elements = self.touched, STEPS - 1, prod(size for _, size in sizes)

        def each(counted: Mapping[int, float], by: float) -> float:
            """What was counted, of the parameter, for each of so many; less what is a single number."""
            total = sum(weight * _scaled(number, dict(sizes)) for number, weight in counted.items() if number > 1)
            return float(f"{total / by:.12g}")

        flop = each(touched.flop, steps * elements)
        return UpdateRule(
            name,
            copies=each(self.state, elements * self.element_bytes),
            passes=each(touched.moved, steps * elements * self.element_bytes),
            spare=each(touched.spare, elements * self.element_bytes),
            whole=whole,
            flop=flop,
            product_type=touched.product_type if flop else "",
        )


def _scaled(number: int, sizes: Mapping[int, int]) -> float:
    """What a product of lengths is where each is another size."""
    found = 1.0
    for length, size in sizes.items():
        while length > 1 and number and number % length == 0:
            number //= length
            found *= size
    return found * number


class _Touched(TorchDispatchMode):
    """Counts what kernels read and write while it is entered, by numbers of elements.

    Attributes:
        moved: bytes of an element, of all tensors of so many elements that were read or written.
        flop: how often products of so many FLOP were computed; the last in `product_type`.
        spare: the same as `moved`, of temporaries that were there together when most were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.moved, self.flop, self.spare = Counter[int](), Counter[int](), Counter[int]()
        self.product_type = ""
        self._alive: list[weakref.ref[Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        read, written = _tensors_of(func, args, kwargs or {})
        made = [x for x in _flat(result) if not any(x.data_ptr() == y.data_ptr() for y in (*read, *written))]
        if func._schema.name not in _WITHOUT_WORK and (written or made):
            for x in (*read, *written, *made):
                self.moved[x.numel()] += x.element_size()
        if func._overloadpacket in flop_registry:
            self.flop[int(flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=result))] += 1
            self.product_type = _IR_NAMES[(made or written)[0].dtype]
        if func._schema.name.startswith("aten::_foreach"):
            self._keep(made)
        return result

    def _keep(self, made: Sequence[Tensor]) -> None:
        self._alive = [ref for ref in (*self._alive, *map(weakref.ref, made)) if ref() is not None]
        there = Counter[int]()
        for x in [x for ref in self._alive if (x := ref()) is not None]:
            there[x.numel()] += x.element_size()
        self.spare = max(self.spare, there, key=lambda sizes: sum(n * each for n, each in sizes.items()))


_WITHOUT_WORK = ("aten::empty_like", "aten::new_empty", "aten::empty")


def _tensors_of(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    """What an op reads and what it writes of its arguments, each tensor once; one that is only written is not read."""
    read: dict[int, Tensor] = {}
    written: dict[int, Tensor] = {}
    for place, argument in enumerate(func._schema.arguments):
        given = args[place] if place < len(args) else kwargs.get(argument.name)
        for x in _flat(given):
            if argument.alias_info is not None and argument.alias_info.is_write and not _only_read(argument, kwargs):
                written[id(x)] = x
                if func._schema.name not in _OVERWRITES:
                    read[id(x)] = x
            else:
                read[id(x)] = x
    return list(read.values()), list(written.values())


def _only_read(argument: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether these are gradients, which fused kernels of updates would only write to unscale them."""
    return argument.name == "grads" and kwargs.get("grad_scale") is None


_OVERWRITES = ("aten::copy_", "aten::fill_", "aten::zero_", "aten::_foreach_copy_", "aten::_foreach_zero_")


def _flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [x for item in value for x in _flat(item)] if isinstance(value, (list, tuple)) else []


def _shape(state: State) -> tuple[int, ...]:
    return tuple(int(size) for size in state.type.shape)


def _lengths(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of the stand-in of a parameter: equal where sizes are, in their order, and 1 where they are 1."""
    sizes = sorted({size for size in shape if size > 1})
    primes = _PRIMES.get(len(shape), _MORE_PRIMES)
    return tuple(min(size, 1) if size <= 1 else primes[sizes.index(size) % len(primes)] for size in shape)


def _names_of_rules(optimizer: torch.optim.Optimizer, named: Mapping[str, nn.Parameter]) -> dict[str, str]:
    """For each parameter the class of the optimizer that updates it, as a rule is called."""
    updated = updated_by(optimizer)
    return {name: updated[id(parameter)].rule.lower() for name, parameter in named.items()}
