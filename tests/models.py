"""Small models of many families with batches for them, and what it means to equal eager PyTorch in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from common.doubles import Doubles as Doubles
from common.doubles import precise
from torch import nn

from galvatron.ir.capture import Captured, Dynamic, LossFunction, capture_graph
from galvatron.ir.graph import Graph
from galvatron.ir.interpreter import run_graph
from galvatron.ir.program import Program
from tests import captures

VOCABULARY, SEQUENCE = 96, 24
SAMPLES = 4
"""The size of the example batches; a program holds for other sizes as well."""


def captured(
    name: str | None,
    model: nn.Module,
    batch: Callable[[int, int], dict[str, Any]],
    loss_fn: LossFunction | None = None,
    precision: str | None = None,
    dynamic: Dynamic | None = None,
) -> Captured:
    """The capture of a model, made once per test run if it has a name, which must say what model and batches are."""

    def capture() -> Captured:
        with precise(model):
            return capture_graph(model, batch(SAMPLES, 0), loss_fn=loss_fn, precision=precision, dynamic=dynamic)

    if name is None:
        return capture()
    return captures.kept(f"{name} in {next(model.parameters()).dtype} under {precision}", capture)


class ResidualBlock(nn.Module):
    """Two convolutions with batch norms beside a shortcut, which is a convolution where the shape changes."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside)
        self.conv2, self.bn2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False), nn.BatchNorm2d(outside)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inside != outside:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(h)) + self.shortcut(x))


class ResidualNet(nn.Module):
    """A small residual network for images, with batch norm in training mode."""

    def __init__(self, blocks: int = 3, width: int = 4, classes: int = 8) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        sizes = [(width, 1) if i < blocks - 1 else (2 * width, 2) for i in range(blocks)]
        inside = [width, *(size for size, _ in sizes)]
        self.blocks = nn.Sequential(*(ResidualBlock(a, b, s) for a, (b, s) in zip(inside, sizes, strict=False)))
        self.head = nn.Linear(2 * width, classes)

    def forward(self, images: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        h = self.blocks(F.max_pool2d(F.relu(self.norm(self.stem(images))), 2))
        return F.cross_entropy(self.head(h.mean((2, 3))), y)


class FunctionalGPT(nn.Module):
    """A GPT without modules for its blocks: parameters in one flat dict, a forward of functions, a tied head."""

    def __init__(self, layers: int = 2, width: int = 32, heads: int = 4, tied: bool = True) -> None:
        super().__init__()
        self.layers, self.heads, self.tied = layers, heads, tied
        shapes: dict[str, tuple[int, ...]] = {"tokens": (VOCABULARY, width), "positions": (SEQUENCE, width)}
        for i in range(layers):
            shapes |= {f"qkv_{i}": (3 * width, width), f"out_{i}": (width, width)}
            shapes |= {f"up_{i}": (4 * width, width), f"down_{i}": (width, 4 * width)}
            shapes |= {f"bias_{i}": (4 * width,), f"scale_{i}": (2, width)}
        if not tied:
            shapes["head"] = (VOCABULARY, width)
        self.weights = nn.ParameterDict(
            {name: nn.Parameter(torch.randn(shape) * 0.1) for name, shape in shapes.items()}
        )

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        w = self.weights
        batch, length = tokens.shape
        x = F.embedding(tokens, w["tokens"]) + w["positions"][:length]
        for i in range(self.layers):
            h = F.layer_norm(x, x.shape[-1:]) * (1 + w[f"scale_{i}"][0])
            q, k, v = F.linear(h, w[f"qkv_{i}"]).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            scores = (q @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5
            future = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
            weights = scores.masked_fill(future, float("-inf")).softmax(-1)
            x = x + F.linear((weights @ v).transpose(1, 2).reshape(batch, length, -1), w[f"out_{i}"])
            h = F.layer_norm(x, x.shape[-1:]) * (1 + w[f"scale_{i}"][1])
            x = x + F.linear(F.gelu(F.linear(h, w[f"up_{i}"], w[f"bias_{i}"])), w[f"down_{i}"])
        logits = F.linear(x, w["tokens"] if self.tied else w["head"])
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


@dataclass(frozen=True)
class Case:
    """A model in float64, a maker of batches for it (batch size, seed), and for what several tests have, a name that
    says what these are."""

    model: nn.Module
    batch: Callable[[int, int], dict[str, Any]]
    name: str | None = None

    @cached_property
    def captured(self) -> Captured:
        """Its capture, as if all of it computed in float64."""
        return captured(self.name, self.model, self.batch)


def ragged_tokens(
    size: int,
    seed: int,
    inputs: str = "input_ids",
    labels: str = "labels",
    mask: str | None = None,
    vocabulary: int = VOCABULARY,
) -> dict[str, Any]:
    """Token batches whose rows have different numbers of ignored (-100) labels, padded on the right under a mask."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, vocabulary, (size, SEQUENCE), generator=generator)
    lengths = torch.randint(SEQUENCE // 2, SEQUENCE + 1, (size,), generator=generator)
    kept = torch.arange(SEQUENCE) < lengths[:, None]
    batch = {inputs: tokens, labels: torch.where(kept, tokens.roll(-1, 1), -100)}
    return batch | ({mask: kept.long()} if mask else {})


def gpt(**options: Any) -> Case:
    torch.manual_seed(0)
    model = FunctionalGPT(**options).double()
    return Case(model, partial(ragged_tokens, inputs="tokens", labels="targets"), _described("gpt", options))


def hugging_face(name: str, mask: bool = True, **changes: Any) -> Case:
    """A tiny Hugging Face model of a family, without dropout, in float64."""
    transformers = pytest.importorskip("transformers")
    config_class, model_class, options = (FAMILIES | SINGLE_PRECISION | EXPERTS)[name]
    config = getattr(transformers, config_class)(**(options | changes))
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(config).double().train()
    described = _described(name, {"mask": mask, **changes})
    if name == "vit":
        size = config.image_size
        return Case(model, partial(_images, (size, size) if isinstance(size, int) else size), described)
    vocabulary, mask_name = config.vocab_size, "attention_mask" if mask else None
    return Case(model, partial(ragged_tokens, mask=mask_name, vocabulary=vocabulary), described)


def _described(name: str, options: Mapping[str, Any]) -> str:
    return " ".join([name, *(f"{option}={options[option]!r}" for option in sorted(options))])


@cache
def shared(name: str, **changes: Any) -> Case:
    """`gpt` or a Hugging Face model, and its capture, once for all tests that change neither."""
    return gpt(**changes) if name == "gpt" else hugging_face(name, **changes)


def case_name(value: str | dict[str, Any]) -> str:
    """The name or the options of a case, in the name of a test."""
    return value if isinstance(value, str) else ",".join(f"{name}={of}" for name, of in value.items())


def _images(image: tuple[int, int], size: int, seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(size, 3, *image, generator=generator, dtype=torch.float64)
    return {"pixel_values": pixels, "labels": torch.randint(0, 5, (size,), generator=generator)}


_DECODER = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "use_cache": False,
}  # fmt: skip
_ENCODER = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
_PADDED = {"pad_token_id": 0, "max_position_embeddings": 32}
_RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
_NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "experts_implementation": "batched_mm"}

FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", _DECODER),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", _DECODER),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", _DECODER | _EXPERTS),
    "mistral": ("MistralConfig", "MistralForCausalLM", _DECODER),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", _DECODER),
    "gpt-neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", _ENCODER | {"use_cache": False}),
    "opt": (
        "OPTConfig",
        "OPTForCausalLM",
        {
            "vocab_size": VOCABULARY, "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48,
            "num_hidden_layers": 2, "num_attention_heads": 4, "dropout": 0.0, "max_position_embeddings": 32,
            "use_cache": False,
        },
    ),
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "use_cache": False, **_NO_DROPOUT},
    ),
    "bert": ("BertConfig", "BertForMaskedLM", _ENCODER),
    "roberta": ("RobertaConfig", "RobertaForMaskedLM", _ENCODER | _PADDED),
    "deberta": ("DebertaConfig", "DebertaForMaskedLM", _ENCODER | _PADDED | _RELATIVE),
    "vit": (
        "ViTConfig",
        "ViTForImageClassification",
        _ENCODER | {"image_size": 16, "patch_size": 4, "num_labels": 5},
    ),
    "t5": (
        "T5Config",
        "T5ForConditionalGeneration",
        {
            "vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
            "dropout_rate": 0.0, "decoder_start_token_id": 0, "use_cache": False,
        },
    ),
}  # fmt: skip
"""Family → (configuration class, model class, options)."""

SINGLE_PRECISION: dict[str, tuple[str, str, dict[str, Any]]] = {
    "deberta-v2": (
        "DebertaV2Config",
        "DebertaV2ForMaskedLM",
        _ENCODER | _PADDED | _RELATIVE | {"position_buckets": 4},
    ),
}  # fmt: skip
"""Families that compute in float32 only: their TorchScript functions do not know `Doubles`."""


EXPERTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "qwen3-moe": (
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        _DECODER | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    ),
    "olmoe": (
        "OlmoeConfig",
        "OlmoeForCausalLM",
        _DECODER | {"num_experts": 4, "num_experts_per_tok": 2, "clip_qkv": None},
    ),
    "qwen2-moe": (
        "Qwen2MoeConfig",
        "Qwen2MoeForCausalLM",
        _DECODER
        | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
        # Without a bias of keys, whose gradient is rounding, which an optimizer scales up.
        | {"shared_expert_intermediate_size": 24, "qkv_bias": False},
    ),
    "phimoe": (
        "PhimoeConfig",
        "PhimoeForCausalLM",
        # It draws an expert among those whose scores are near enough to the best, which without jitter is the best.
        _DECODER | _EXPERTS | {"router_jitter_noise": 0.0},
    ),
    "gpt-oss": (
        "GptOssConfig",
        "GptOssForCausalLM",
        _DECODER | {"num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": ["full_attention"] * 2},
    ),
    "deepseek-v3": (
        "DeepseekV3Config",
        "DeepseekV3ForCausalLM",
        {
            "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
            "moe_intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 4, "n_routed_experts": 4,
            "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1,
            "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
            "use_cache": False,
        },
    ),
}  # fmt: skip
"""Families with experts, under each of their implementations (`experts_implementation`)."""


def tensors_of(
    program: Program, model: nn.Module, batch: Mapping[str, Any], constants: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """A tensor for every input and state value of a captured program; only what it trains has a gradient."""
    own = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    held = [state for state in program.state if state.kind != "constant"]
    return {s.name: own[s.name] if s.trainable else own[s.name].detach() for s in held} | {**batch, **constants}


def loss_and_gradients(loss: torch.Tensor, model: nn.Module) -> dict[str, torch.Tensor]:
    """The loss, as "loss", and the gradient of every trainable parameter that has one, by name."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    found = {name: g for name, g in zip(named, gradients, strict=True) if g is not None}
    return {"loss": loss.detach(), **found}


def run(graph: Graph, values: Mapping[str, torch.Tensor], size: int) -> torch.Tensor:
    """The loss that a captured graph computes."""
    return run_graph(graph, values, batch=size)[graph.outputs[0]]


def assert_close(actual: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], tolerance: float) -> None:
    """Equal names, and each tensor equal to a relative tolerance in its norm."""
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        error = (actual[name] - tensor).norm() / tensor.norm().clamp_min(1e-12)
        assert error <= tolerance, f"{name}: relative error {error:.1e}"
