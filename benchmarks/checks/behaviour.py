"""What a training script does besides one step: each check says in a line what it found, or raises."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from common.llama import Batch, Llama, Size, batch_of
from common.peers import adamw
from torch import Tensor, nn

import galvatron
from galvatron import runtime as rt
from galvatron.runtime import deferral

SIZE = Size(vocabulary=257, width=64, hidden=96, heads=4, layers=3, sequence=32)
STEPS = 4
TOLERANCE = 1e-5


class Dropping(Llama):
    """With dropout before the head and inside every block, by way of their outputs."""

    def __init__(self, size: Size) -> None:
        super().__init__(size)
        for layer in self.layers:
            layer.register_forward_hook(_drop)


def _drop(module: nn.Module, given: Any, result: Tensor) -> Tensor:
    return nn.functional.dropout(result, 0.2, module.training)


def model_of(kind: type[Llama] = Llama) -> Llama:
    torch.manual_seed(0)
    return kind(SIZE)


def batches(device: torch.device) -> list[Batch]:
    return [{k: v.to(device) for k, v in batch_of(SIZE, 8, seed).items()} for seed in range(STEPS)]


def compiled_of(model: nn.Module, batch: Batch, plan: str = "m2/dp1", **options: Any) -> galvatron.CompiledModel:
    return galvatron.compile(model, batch, plan=plan, **{"optimizer": adamw, **options})


def training(device: torch.device) -> str:
    """Steps of fused AdamW with clipping end where eager PyTorch ends; batches lie in pageable, then pinned memory."""
    model = model_of()
    data = batches(torch.device("cpu"))
    if device.type == "cuda":
        data = data[: STEPS // 2] + [{k: v.pin_memory() for k, v in b.items()} for b in data[STEPS // 2 :]]
    compiled = compiled_of(copy.deepcopy(model), data[0], max_grad_norm=0.5)
    losses = [float(compiled.train_step(batch)) for batch in data]
    peer = copy.deepcopy(model).to(device)
    optimizer = adamw(peer.parameters())
    expected = []
    for batch in data:
        loss = peer(**{k: v.to(device) for k, v in batch.items()})
        loss.backward()
        nn.utils.clip_grad_norm_(peer.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        expected.append(float(loss.detach()))
    error = max(abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True))
    assert error < TOLERANCE, f"losses {losses} instead of {expected}"
    drift = _drift(compiled.full_state_dict(), peer.state_dict())
    assert drift < 1e-3, f"parameters differ by {drift:.1e} of what they moved"
    state = next(iter(compiled.optimizer.state.values()))
    assert state["exp_avg"].device.type == device.type, f"the optimizer's state is on {state['exp_avg'].device}"
    return f"losses differ by {error:.1e}, parameters by {drift:.1e} of how far they moved"


def _drift(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    first = model_of().state_dict()
    off = torch.stack([(found[n] - v.cpu()).norm() for n, v in expected.items()]).norm()
    moved = torch.stack([(first[n] - v.cpu()).norm() for n, v in expected.items()]).norm()
    return float(off / moved)


def figures(device: torch.device) -> str:
    """Metrics of a step are there and make sense."""
    data = batches(device)
    compiled = compiled_of(model_of(), data[0], max_grad_norm=1.0)
    for batch in data:
        loss = compiled.train_step(batch)
    found = compiled.metrics
    assert found.loss == float(loss) and found.gradient_norm and found.peak_bytes, found
    parts = found.compute_s + found.exposed_communication_s + found.bubble_s
    assert found.step_s > 0 and math.isclose(parts, found.step_s, rel_tol=1e-3), found
    evaluated = float(compiled.eval_step(data[0]))
    assert math.isfinite(evaluated)
    return f"step {found.step_s * 1e3:.2f} ms, peak {found.peak_bytes[0] / 2**20:.0f} MiB, loss {found.loss:.4f}"


def dropout_replays(device: torch.device) -> str:
    """The same seed gives the same loss and gradients again, with recomputation too; the user's generator is not
    touched."""
    data = batches(device)[0]
    found = []
    for plan in ("m2/dp1", "m2/dp1", "m2/dp1-recompute", "m2/dp1-recompute=selective"):
        model = model_of(Dropping)
        torch.manual_seed(3)
        compiled = compiled_of(model, data, plan)
        before = _generator_state(device)
        loss = float(compiled.forward_backward(data))
        assert torch.equal(before, _generator_state(device)), "the user's generator has moved on"
        found.append((loss, compiled.full_gradients()))
    (loss, gradients), *others = found
    evaluated = float(compiled.eval_step(data))
    assert evaluated != loss, "nothing was dropped"
    for other, own in others:
        assert math.isclose(other, loss, rel_tol=1e-6), [loss for loss, _ in found]
        worst = max(float((own[n] - g).norm() / g.norm()) for n, g in gradients.items())
        assert worst < TOLERANCE, f"gradients differ by {worst:.1e}"
    return f"loss {loss:.6f}, without dropout {evaluated:.6f}"


def _generator_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def postponed_gradients(device: torch.device) -> str:
    """Gradients of weights that are computed after the backward, as zero-bubble schedules have it, are the same."""
    torch.manual_seed(0)
    leaves = [torch.randn(16, 16, device=device, requires_grad=True) for _ in range(4)]

    def loss(linear: Callable[..., Tensor]) -> Tensor:
        y, *weights = leaves
        for weight in weights:
            y = torch.tanh(linear(y, weight))
        return y.square().sum()

    expected = torch.autograd.grad(loss(nn.functional.linear), leaves)
    with deferral.put_off() as tasks:
        loss(rt.linear).backward()
    assert leaves[0].grad is not None and all(leaf.grad is None for leaf in leaves[1:]), "nothing was put off"
    count = len(tasks)
    deferral.run(tasks)
    for leaf, gradient in zip(leaves, expected, strict=True):
        assert leaf.grad is not None
        torch.testing.assert_close(leaf.grad, gradient)
    return f"{count} gradients later"


def half_precision(device: torch.device) -> str:
    """float16 with loss scaling trains, and an overflow is skipped."""
    data = batches(device)
    compiled = compiled_of(model_of(), data[0], precision="fp16", max_grad_norm=1.0)
    losses = [float(compiled.train_step(batch)) for batch in data]
    peer = model_of().to(device)
    expected = float(peer(**data[0]).detach())
    assert abs(losses[0] - expected) < 2**-7 * expected, f"{losses[0]} instead of {expected}"
    return f"losses {', '.join(f'{loss:.4f}' for loss in losses)}, scale {compiled.loss_scale:.0f}"


def bfloat16_training(device: torch.device) -> str:
    """Masters in float32 on the device; the losses stay near those of float32."""
    data = batches(device)
    losses = []
    for precision in (None, "bf16"):
        compiled = compiled_of(model_of(), data[0], precision=precision)
        losses.append([float(compiled.train_step(batch)) for batch in data])
    assert all(abs(a - b) < 2**-7 * a for a, b in zip(*losses, strict=True)), losses
    masters = [p for group in compiled.optimizer.param_groups for p in group["params"]]
    assert {(p.dtype, p.device.type) for p in masters} == {(torch.float32, device.type)}
    return f"losses {losses[1][0]:.4f} to {losses[1][-1]:.4f}, in float32 {losses[0][0]:.4f} to {losses[0][-1]:.4f}"


def from_meta(device: torch.device) -> str:
    """A model on the meta device is initialised on the device; its state goes out and comes in again."""
    with torch.device("meta"):
        model = nn.Transformer(32, 2, 1, 1, 64, 0.0, batch_first=True)
    given = {"src": torch.randn(4, 6, 32), "tgt": torch.randn(4, 6, 32)}
    options: dict[str, Any] = {"plan": "dp1", "loss_fn": lambda output, batch: (output - batch["tgt"]).square().mean()}
    compiled = galvatron.compile(model, given, **options)
    loss = float(compiled.forward_backward(given))
    state = compiled.full_state_dict()
    assert all(value.device.type == "cpu" and value.isfinite().all() for value in state.values())
    compiled.load_full_state_dict({name: value.to(device) for name, value in state.items()})
    assert float(compiled.forward_backward(given)) == loss
    return f"{len(state)} tensors, loss {loss:.4f}"


def not_finite(device: torch.device) -> str:
    """The layer that computes an invalid number is named."""
    data = batches(device)[0]
    model = model_of()
    with torch.no_grad():
        model.layers[1].get_submodule("feed_forward.w2").get_parameter("weight")[0, 0] = math.nan
    compiled = compiled_of(model, data, detect_nonfinite=True)
    try:
        compiled.train_step(data)
    except galvatron.GalvatronError as error:
        return str(error)
    raise AssertionError("nothing was found")


def searched(device: torch.device) -> str:
    """Without a plan the device is measured and a plan is searched."""
    data = batches(device)[0]
    compiled = galvatron.compile(model_of(), data, optimizer=adamw)
    loss = float(compiled.train_step(data))
    assert math.isfinite(loss)
    return f"{compiled.plan}"


BEHAVIOURS: tuple[Callable[[torch.device], str], ...] = (
    training,
    figures,
    dropout_replays,
    postponed_gradients,
    half_precision,
    bfloat16_training,
    from_meta,
    not_finite,
    searched,
)
