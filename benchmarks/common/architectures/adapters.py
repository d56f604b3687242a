"""Fine-tuning with adapters of peft on models of transformers."""

from __future__ import annotations

from functools import partial
from typing import Any

from common.architectures.base import Architecture, Subject
from common.architectures.encoder_decoders import t5
from common.architectures.encoders import masked
from common.architectures.hugging_face import Make, decoder
from common.architectures.images import pixels
from common.architectures.libraries import library

_LINEAR = {"target_modules": ["q_proj", "v_proj", "up_proj"]}


def adapted(base: Make, config: str, **settings: Any) -> Make:
    """A base model that does not train, with adapters that do, by the name of their configuration."""
    return partial(_adapted, base, config, settings)


def _adapted(base: Make, config: str, settings: dict[str, Any]) -> Subject:
    peft = library("peft")
    subject = base()
    model = peft.get_peft_model(subject.model, getattr(peft, config)(**settings))
    for parameter in model.parameters():
        if parameter.requires_grad and not parameter.any():
            parameter.data.normal_(std=0.1)  # matrices that begin as zero would leave the other half without gradient
    return Subject(model, subject.batch, subject.loss_fn)


_LLAMA = decoder("LlamaForCausalLM")

_TABLE: dict[str, Make] = {
    "LoRA on Llama": adapted(_LLAMA, "LoraConfig", r=4, lora_dropout=0.0, **_LINEAR),
    "DoRA on Llama": adapted(_LLAMA, "LoraConfig", r=4, use_dora=True, **_LINEAR),
    "IA3 on Llama": adapted(
        _LLAMA, "IA3Config", target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
    "LoHa on Llama": adapted(_LLAMA, "LoHaConfig", r=4, **_LINEAR),
    "LoKr on Llama": adapted(_LLAMA, "LoKrConfig", r=4, **_LINEAR),
    "VeRA on Llama": adapted(_LLAMA, "VeraConfig", r=4, target_modules=["q_proj", "o_proj"]),
    "prompt tuning of Llama": adapted(_LLAMA, "PromptTuningConfig", task_type="CAUSAL_LM", num_virtual_tokens=4),
    "LoRA on T5": adapted(t5("T5ForConditionalGeneration"), "LoraConfig", r=4, target_modules=["q", "v"]),
    "LoRA on BERT": adapted(masked("BertForMaskedLM"), "LoraConfig", r=4, target_modules=["query", "value"]),
    "LoRA on ViT": adapted(
        pixels("ViTForImageClassification"),
        "LoraConfig",
        r=4,
        target_modules=["q_proj", "v_proj", "query", "value"],
        modules_to_save=["classifier"],
    ),
}

ROWS = tuple(Architecture(name, "adapters", "peft", make, name != "LoRA on ViT") for name, make in _TABLE.items())
