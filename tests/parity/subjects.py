"""The models of the parity tests by name, each in float64 with a maker of batches."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from galvatron.ir.capture import Dynamic
from tests import models
from tests.parity import (
    adapters,
    coupled,
    derivatives,
    functions,
    lengths,
    reductions,
    routed,
    selections,
    situations,
    states,
    turns,
    ways,
)
from tests.parity.forwards import FORWARDS, Blocks, inputs

Batch = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """A model, a maker of batches for it (size, seed), its loss where it returns none, its name in `models`, and what
    of its batches is dynamic."""

    model: nn.Module
    batch: Callable[[int, int], Batch]
    loss_fn: Callable[[Any, Any], Tensor] | None = None
    name: str | None = None
    dynamic: Dynamic | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The element type of the model."""
        return next(self.model.parameters()).dtype

    def loss(self, batch: Batch) -> Tensor:
        """What the unmodified model computes."""
        output = self.model(**batch)
        if self.loss_fn is not None:
            return self.loss_fn(output, batch)
        return output if isinstance(output, Tensor) else output.loss


class Skips(nn.Module):
    """A U-Net of linear layers: every way up also reads its way down, and the last one the input itself."""

    def __init__(self, width: int = 16, depth: int = 3) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.up = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(depth))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        skips, h = [], x
        for layer in self.down:
            skips.append(h)
            h = torch.tanh(layer(h))
        for layer in self.up:
            h = torch.tanh(layer(torch.cat([h, skips.pop()], dim=-1)))
        return nn.functional.mse_loss(self.out(h) + x, target)


class Weighted(nn.Module):
    """Residual blocks with buffers and a frozen matrix; the loss weighs samples by inputs that only it reads."""

    running: Tensor
    order: Tensor

    def __init__(self, width: int = 16, depth: int = 4) -> None:
        super().__init__()
        self.register_buffer("running", torch.rand(width))
        self.register_buffer("order", torch.randperm(width), persistent=False)
        self.frozen = nn.Parameter(torch.randn(width, width) / 4, requires_grad=False)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            for _ in range(depth)
        )

    def forward(self, x: Tensor, target: Tensor, weight: Tensor, keep: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x * self.running) @ self.frozen
        errors = (x[:, :, self.order] - target).pow(2).mean(-1) * keep
        return (errors.sum(-1) * weight).sum() / keep.sum()


class FineTuned(nn.Module):
    """A front that does not train, of which the head reads something too, and a back that does."""

    def __init__(self, width: int = 16, depth: int = 3) -> None:
        super().__init__()
        self.front = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(depth))).requires_grad_(False)
        self.back = nn.Sequential(*(nn.Linear(width, width) for _ in range(depth)))

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        early = h = torch.tanh(self.front[0](x))
        for layer in [*self.front, *self.back][1:]:
            h = torch.tanh(layer(h))
        return nn.functional.mse_loss(h * early, target)


class Shared(nn.Module):
    """One block applied again and again, and a head that is the embedding."""

    def __init__(self, width: int = 16, times: int = 4) -> None:
        super().__init__()
        self.times = times
        self.embedding = nn.Embedding(models.VOCABULARY, width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for _ in range(self.times):
            x = x + self.down(torch.relu(self.up(self.norm(x))))
        logits = x @ self.embedding.weight.T
        return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)


class Capped(nn.Module):
    """A head with a bias whose logits are capped, with label smoothing and a penalty on the normaliser, over a
    vocabulary that no number of ranks divides."""

    vocabulary = 101

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(self.vocabulary, width, padding_idx=100)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width)) for _ in range(2))
        self.head = nn.Linear(width, self.vocabulary)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        logits = 2.0 * torch.tanh(self.head(x) / 2.0)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), label_smoothing=0.1)
        return loss + 1e-2 * logits.logsumexp(-1).pow(2).mean()


class Encoder(nn.Module):
    """`nn.TransformerEncoder` under a classifier of sequences that returns logits, not a loss."""

    def __init__(self, norm_first: bool = True, width: int = 16, heads: int = 4, classes: int = 6) -> None:
        super().__init__()
        self.embedding = nn.Embedding(models.VOCABULARY, width)
        block = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout=0.0, batch_first=True, norm_first=norm_first, activation="gelu"
        )
        self.encoder = nn.TransformerEncoder(block, 3, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor, label: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(tokens)).mean(1))


def _floats(size: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x, target = torch.randn(2, size, 16, generator=generator, dtype=torch.float64)
    return {"x": x, "target": target}


def _weighted(size: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x, target = torch.randn(2, size, 8, 16, generator=generator, dtype=torch.float64)
    weight = torch.rand(size, generator=generator, dtype=torch.float64)
    keep = torch.rand(size, 8, generator=generator) < 0.7
    return {"x": x, "target": target, "weight": weight, "keep": keep}


def _classes(size: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, models.VOCABULARY, (size, models.SEQUENCE), generator=generator)
    return {"tokens": tokens, "label": torch.randint(0, 6, (size,), generator=generator)}


def _tokens(size: int, seed: int) -> Batch:
    return models.ragged_tokens(size, seed, "tokens", "targets")


def _capped(size: int, seed: int) -> Batch:
    return models.ragged_tokens(size, seed, "tokens", "targets", vocabulary=Capped.vocabulary)


def _classifier_loss(output: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(output, batch["label"], label_smoothing=0.1)


class RandomTransformer(nn.Module):
    """A decoder whose sizes and parts are drawn from a seed; nothing about it need divide by the number of ranks."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        choose = random.Random(seed).choice
        self.heads, head_width = choose([2, 3, 4, 6]), choose([4, 6, 8])
        self.groups = choose([n for n in (1, 2, 3, 4, 6) if self.heads % n == 0])
        width = self.heads * head_width
        self.positions = choose(["learned", "rotary", "none"])
        self.attention = choose(["sdpa", "causal sdpa", "softmax"])
        self.loss = choose(["mean", "smooth", "sum", "per token"])
        self.parallel = choose([False, False, True])
        self.embedding = nn.Embedding(models.VOCABULARY, width)
        self.position = nn.Embedding(models.SEQUENCE, width) if self.positions == "learned" else None
        norm = choose([nn.LayerNorm, nn.RMSNorm])
        bias, gated = choose([True, False]), choose([True, False])
        inner = choose([2 * width, 30, 48])
        self.blocks = nn.ModuleList()
        for index in range(choose([1, 2, 3, 4])):
            # In some models every other block is of another kind.
            hidden = inner + 6 if index % 2 and seed % 3 == 0 else inner
            parts = {
                "norm1": norm(width),
                "query": nn.Linear(width, width, bias=bias),
                "key_value": nn.Linear(width, 2 * self.groups * head_width, bias=bias),
                "out": nn.Linear(width, width, bias=bias),
                "norm2": norm(width),
                "up": nn.Linear(width, hidden, bias=bias),
                "down": nn.Linear(hidden, width, bias=bias),
            }
            self.blocks.append(nn.ModuleDict(parts | ({"gate": nn.Linear(width, hidden)} if gated else {})))
        self.norm = norm(width)
        self.activation = choose([nn.functional.gelu, nn.functional.relu, nn.functional.silu])
        self.head = nn.Linear(width, models.VOCABULARY, bias=choose([True, False]))
        if choose([True, False]):
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.embedding(tokens)
        if self.position is not None:
            x = x + self.position(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            parts: Any = block
            h = parts["norm1"](x)
            mixed = parts["out"](self._attend(parts["query"](h), parts["key_value"](h)))
            h = parts["norm2"](x if self.parallel else x + mixed)
            up = parts["up"](h) * parts["gate"](h) if "gate" in parts else parts["up"](h)
            x = x + mixed + parts["down"](self.activation(up))
        return self._loss(self.head(self.norm(x)).flatten(0, 1), targets.flatten())

    def _attend(self, query: Tensor, key_value: Tensor) -> Tensor:
        batch, length, width = query.shape
        q = query.view(batch, length, self.heads, -1).transpose(1, 2)
        k, v = key_value.view(batch, length, 2, self.groups, -1).permute(2, 0, 3, 1, 4)
        if self.positions == "rotary":
            q, k = _rotated(q), _rotated(k)
        k, v = (t.repeat_interleave(self.heads // self.groups, dim=1) for t in (k, v))
        if self.attention == "softmax":
            future = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
            scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
            mixed = scores.masked_fill(future, float("-inf")).softmax(-1) @ v
        else:
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.attention == "causal sdpa")
        return mixed.transpose(1, 2).reshape(batch, length, width)

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        kept = targets != -100
        if self.loss == "sum":
            return nn.functional.cross_entropy(logits, targets, reduction="sum") / kept.sum()
        if self.loss == "per token":
            return (nn.functional.cross_entropy(logits, targets, reduction="none") * kept).mean()
        return nn.functional.cross_entropy(logits, targets, label_smoothing=0.1 if self.loss == "smooth" else 0.0)


def _rotated(x: Tensor) -> Tensor:
    """Rotary position embedding of (batch, heads, length, width)."""
    width = x.shape[-1]
    rates = 100.0 ** (-torch.arange(0, width, 2, dtype=torch.float64, device=x.device) / width)
    angles = torch.arange(x.shape[-2], dtype=torch.float64, device=x.device)[:, None] * rates
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], dim=-1)


def _of(case: models.Case) -> Subject:
    return Subject(case.model, case.batch, name=case.name)


def _hugging_face(name: str, **options: Any) -> Callable[[], Subject]:
    return lambda: _of(models.hugging_face(name, **options))


def _little_trained(kind: str) -> Callable[[], Subject]:
    def make() -> Subject:
        case = models.hugging_face("llama", mask=False, hidden_size=64, intermediate_size=128, num_hidden_layers=4)
        return Subject(adapters.LITTLE[kind](case.model).double(), case.batch)

    return make


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "gpt": lambda: _of(models.gpt()),
    # Eight and twelve layers, for as many stages.
    "gpt-8": lambda: _of(models.gpt(layers=6, width=16)),
    "gpt-12": lambda: _of(models.gpt(layers=10, width=16)),
    "gpt-12-untied": lambda: _of(models.gpt(layers=10, width=16, tied=False)),
    "gpt-untied": lambda: _of(models.gpt(tied=False)),
    "llama": _hugging_face("llama", mask=False),
    "llama-tied": _hugging_face("llama", tie_word_embeddings=True),
    "llama-tied-97": _hugging_face("llama", tie_word_embeddings=True, vocab_size=97),
    "gpt2": _hugging_face("gpt2"),
    # Compared with itself only: eager PyTorch draws other masks.
    "gpt2-dropout": _hugging_face("gpt2", mask=False, resid_pdrop=0.2, embd_pdrop=0.2, attn_pdrop=0.2),
    # Attention written out in products, softmax and dropout.
    "gpt2-written-out": _hugging_face("gpt2", mask=False, attn_implementation="eager"),
    "gpt2-written-out-dropout": _hugging_face(
        "gpt2", mask=False, attn_implementation="eager", resid_pdrop=0.2, embd_pdrop=0.2, attn_pdrop=0.2
    ),
    "gpt2-untied": _hugging_face("gpt2", mask=False, tie_word_embeddings=False),
    "bert": _hugging_face("bert"),
    "bert-untied": _hugging_face("bert", tie_word_embeddings=False),
    "roberta": _hugging_face("roberta"),
    "deberta": _hugging_face("deberta"),
    # Only as float32: its TorchScript functions take no doubles for floats.
    "deberta-v2": _hugging_face("deberta-v2"),
    "t5": _hugging_face("t5"),
    "vit": _hugging_face("vit"),
    # 15 patches and the class token: a sequence that divides.
    "vit-16": _hugging_face("vit", image_size=(12, 20)),
    "qwen3": _hugging_face("qwen3"),
    "mixtral": _hugging_face("mixtral"),
    "mixtral-tied": _hugging_face("mixtral", mask=False, tie_word_embeddings=True),
    "mixtral-balanced": _hugging_face("mixtral", mask=False, output_router_logits=True, router_aux_loss_coef=0.1),
    **{
        f"{family}-{kind}": _hugging_face(family, mask=False, experts_implementation=kind)
        for family in ("mixtral", *models.EXPERTS)
        for kind in ("eager", "batched_mm", "grouped_mm")
    },
    "mistral": _hugging_face("mistral", sliding_window=4),
    "gemma": _hugging_face("gemma"),
    "opt": _hugging_face("opt"),
    "gpt-neox": _hugging_face("gpt-neox"),
    "skips": lambda: Subject(Skips().double(), _floats),
    "fine-tuned": lambda: Subject(FineTuned().double(), _floats),
    "adapted": lambda: Subject(adapters.Decoder().double(), _tokens),
    # Whole layers that are frozen, before and after what trains; and nothing but a head that trains.
    "adapted-at-the-end": lambda: Subject(adapters.Decoder((False, False, True)).double(), _tokens),
    "adapted-64": lambda: Subject(adapters.Decoder(width=64).double(), _tokens),
    "head-only": lambda: Subject(adapters.Decoder((False, False), head=True).double(), _tokens),
    **{f"llama-{kind}": _little_trained(kind) for kind in adapters.LITTLE},
    "weighted": lambda: Subject(Weighted().double(), _weighted),
    "shared": lambda: Subject(Shared().double(), _tokens),
    "llama-12-heads": _hugging_face("llama", hidden_size=48, num_attention_heads=12, num_key_value_heads=6, head_dim=4),
    "llama-1-key-head": _hugging_face("llama", num_key_value_heads=1),
    "llama-8-heads": _hugging_face("llama", mask=False, num_attention_heads=8, head_dim=4),
    # Four key heads with three query heads each, and hidden units that three does not divide.
    "llama-uneven": _hugging_face(
        "llama", hidden_size=48, num_attention_heads=12, num_key_value_heads=4, head_dim=4, intermediate_size=50
    ),
    "llama-97": _hugging_face("llama", mask=False, vocab_size=97),
    "gpt2-101": _hugging_face("gpt2", mask=False, vocab_size=101, tie_word_embeddings=False),
    "gpt2-tied-101": _hugging_face("gpt2", mask=False, vocab_size=101),
    "t5-101": _hugging_face("t5", vocab_size=101),
    "gemma-101": _hugging_face("gemma", vocab_size=101),
    "bert-101": _hugging_face("bert", vocab_size=101),
    "capped": lambda: Subject(Capped().double(), _capped),
    "towers": lambda: Subject(coupled.Towers().double(), coupled.pairs),
    "views": lambda: Subject(coupled.Views().double(), coupled.alone),
    "balanced": lambda: Subject(coupled.Balanced().double(), coupled.labelled),
    "penalised": lambda: Subject(coupled.Penalised().double(), coupled.labelled),
    "encoder": lambda: Subject(Encoder().double(), _classes, _classifier_loss),
    "encoder-post-norm": lambda: Subject(Encoder(norm_first=False).double(), _classes, _classifier_loss),
}


def ignore_labels(batch: Batch, samples: slice | list[int]) -> Batch:
    """The batch with all labels of some samples ignored."""
    name = next(name for name in ("labels", "targets") if name in batch)
    labels = batch[name].clone()
    labels[samples] = -100
    return batch | {name: labels}


def make(name: str) -> Subject:
    """The subject called `name`: one of `SUBJECTS`, the same with `-float32`, `random-<seed>` for a transformer drawn
    at random, `reduced: <words>` for a loss in the words of `reductions`, `situation: <name>` for one of `situations`,
    `selection: <name>` for one of `selections`, `state: <name>` for one of `states`, `ways: <name>` for one of `ways`,
    `derivative: <name>` for one of `derivatives`, `function: <name>` for a model with one of `functions`,
    `turns: <name>` for one of `turns`, `routed: <name>` for one of `routed`, `lengths: <name>` for one of `lengths`
    with free lengths, or one of `forwards.FORWARDS`."""
    if name.startswith("turns:"):
        return Subject(turns.Model(name.removeprefix("turns: ")).double(), turns.batch)
    if name.startswith("routed:"):
        return Subject(routed.ROUTED[name.removeprefix("routed: ")]().double(), routed.batch)
    if name.startswith("lengths:"):
        case = lengths.LENGTHS[name.split()[1]]()
        return Subject(case.model.double(), case.batch, dynamic=case.dynamic)
    if name.startswith("situation:"):
        return Subject(situations.SITUATIONS[name.split()[1]]().double(), situations.batch_of)
    if name.startswith("selection:"):
        return Subject(selections.selecting(name.split()[1]).double(), selections.batch_of)
    if name.startswith("derivative:"):
        return Subject(derivatives.DERIVATIVES[name.split()[1]]().double(), derivatives.batch_of)
    if name.startswith("function:"):
        return Subject(functions.FUNCTIONS[name.split()[1]]().double(), functions.batch_of)
    if name.startswith("state:"):
        which = name.split()[1]
        batch = states.images_of if which == "residual" else states.batch_of
        return Subject(states.STATES[which]().double(), batch)
    if name.startswith("ways:"):
        return Subject(ways.model_of(name.split()[1]).double(), states.batch_of, ways.loss_of)
    if name.startswith("reduced:"):
        return Subject(reductions.Reductions(tuple(name.split()[1:])), reductions.batch_of)
    if name.startswith("random-"):
        return Subject(RandomTransformer(int(name.removeprefix("random-"))).double(), _tokens)
    if name in FORWARDS:
        return Subject(Blocks(FORWARDS[name]).double(), partial(inputs, FORWARDS[name]))
    if name.endswith("-float32"):
        case = SUBJECTS[name.removesuffix("-float32")]()
        return replace(case, model=case.model.float())
    return SUBJECTS[name]()
