"""The model whose steps are timed: transformers' Llama of about a billion parameters, and how it is recomputed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from galvatron.ir.plan import Plan
from galvatron.ir.strategy import Strategy

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Shape:
    """The sizes of a model and its batches."""

    vocabulary: int = 32000
    width: int = 2048
    hidden: int = 5632
    heads: int = 16
    key_heads: int = 8
    layers: int = 16
    sequence: int = 2048

    @property
    def parameters(self) -> int:
        """How many numbers the model trains."""
        attention = (2 + 2 * self.key_heads / self.heads) * self.width**2
        block = attention + 3 * self.width * self.hidden + 2 * self.width
        return round(self.layers * block + 2 * self.vocabulary * self.width + self.width)

    def step_flop(self, samples: int) -> float:
        """Of the matrix products of a step, forward and backward, without recomputation (Kaplan et al. 2020): six per
        weight and token; attention is causal, so half of its scores count."""
        tokens = samples * self.sequence
        weights = self.parameters - self.vocabulary * self.width
        return tokens * (6 * weights + 6 * self.layers * self.width * self.sequence)


TINY = Shape(vocabulary=128, width=32, hidden=48, heads=4, key_heads=2, layers=2, sequence=16)


def model_of(shape: Shape, device: torch.device | str) -> nn.Module:
    """The model with random float32 weights, made on the device."""
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        max_position_embeddings=shape.sequence,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    with torch.device(device):
        return LlamaForCausalLM(config).train()


def batch_of(shape: Shape, samples: int, device: torch.device | str) -> Batch:
    """Random tokens, which are the labels too: the model shifts them itself."""
    if str(device) == "meta":
        tokens = torch.empty(samples, shape.sequence, dtype=torch.int64, device="meta")
    else:
        generator = torch.Generator().manual_seed(samples)
        tokens = torch.randint(0, shape.vocabulary, (samples, shape.sequence), generator=generator).to(device)
    return {"input_ids": tokens, "labels": tokens.clone()}


def recomputing_blocks(plan: Plan, kind: str) -> Plan:
    """A plan of one stage with its decoder blocks recomputed, as `gradient_checkpointing_enable` does; embedding and
    head, the first and the last layer, are not."""
    (stage,) = plan.stages
    block = replace(Strategy.parse("dp1"), recompute=kind)
    return replace(plan, stages=((stage[0], *(block for _ in stage[1:-1]), stage[-1]),))
