"""Denoisers and autoencoders of images, video and sound, from diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from common.architectures.base import Architecture, Draw, Subject, Trained, batches, constant, floats, integers, ones
from common.architectures.hugging_face import Make
from common.architectures.libraries import library

_TIME = integers(1000)
_UNET = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "sample_size": 8,
}
_CROSS = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 16,
}
_CODER = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
}
_HEADS = {"num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 2}
_LATENT = floats(4, 8, 8)
_TEXT = floats(6, 16)


def _error(output: Any, target: Tensor) -> Tensor:
    found = output if isinstance(output, Tensor) else output[0]
    return F.mse_loss(found, target)


def denoiser(name: str, settings: Mapping[str, Any], target: Draw, **inputs: Draw) -> Make:
    """A model, by the name of its class, that predicts a target (the noise, a velocity)."""
    return partial(_denoiser, name, dict(settings), dict(inputs) | {"target": target})


def _denoiser(name: str, settings: dict[str, Any], inputs: dict[str, Draw]) -> Subject:
    model = getattr(library("diffusers"), name)(**settings)
    return Subject(Trained(model, _error), batches(**inputs))


def autoencoder(name: str, settings: Mapping[str, Any], size: int = 16) -> Make:
    """A model, by the name of its class, that reconstructs images."""
    return denoiser(name, settings, floats(3, size, size), sample=floats(3, size, size))


def _positions(length: int) -> Draw:
    return constant(torch.arange(length)[:, None].expand(length, 3).double().contiguous())


_TABLE: dict[str, Make] = {
    "DDPM U-Net": denoiser(
        "UNet2DModel",
        _UNET
        | {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")},
        floats(3, 8, 8),
        sample=floats(3, 8, 8),
        timestep=_TIME,
    ),
    "Stable Diffusion U-Net": denoiser(
        "UNet2DConditionModel", _UNET | _CROSS, _LATENT, sample=_LATENT, timestep=_TIME, encoder_hidden_states=_TEXT
    ),
    "U-Net 3D": denoiser(
        "UNet3DConditionModel",
        _UNET
        | {
            "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
            "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
            "cross_attention_dim": 16,
        },
        floats(4, 2, 8, 8),
        sample=floats(4, 2, 8, 8),
        timestep=_TIME,
        encoder_hidden_states=_TEXT,
    ),
    "Dance Diffusion": denoiser(
        "UNet1DModel",
        {"sample_size": 32, "block_out_channels": (32, 32, 64), "extra_in_channels": 64, "in_channels": 2},
        floats(2, 32),
        sample=floats(2, 32),
        timestep=_TIME,
    ),
    "VAE": autoencoder("AutoencoderKL", _CODER),
    "VQ-VAE": autoencoder("VQModel", _CODER | {"num_vq_embeddings": 16}),
    "tiny autoencoder": autoencoder(
        "AutoencoderTiny",
        {
            "encoder_block_out_channels": (8, 8),
            "decoder_block_out_channels": (8, 8),
            "num_encoder_blocks": (1, 1),
            "num_decoder_blocks": (1, 1),
        },
    ),
    "DC-AE": autoencoder(
        "AutoencoderDC",
        {
            "encoder_block_types": "ResBlock",
            "decoder_block_types": "ResBlock",
            "encoder_block_out_channels": (8, 16),
            "decoder_block_out_channels": (8, 16),
            "encoder_layers_per_block": (1, 1),
            "decoder_layers_per_block": (1, 1),
            "encoder_qkv_multiscales": ((), ()),
            "decoder_qkv_multiscales": ((), ()),
            "latent_channels": 4,
            "attention_head_dim": 4,
        },
    ),
    "DiT": denoiser(
        "DiTTransformer2DModel",
        _HEADS | {"sample_size": 8, "num_embeds_ada_norm": 10, "norm_num_groups": 4},
        floats(4, 8, 8),
        hidden_states=_LATENT,
        timestep=_TIME,
        class_labels=integers(10),
    ),
    "PixArt": denoiser(
        "PixArtTransformer2DModel",
        _HEADS
        | {
            "sample_size": 8,
            "cross_attention_dim": 32,
            "caption_channels": 16,
            "out_channels": 4,
            "norm_num_groups": 4,
            "use_additional_conditions": False,
        },
        _LATENT,
        hidden_states=_LATENT,
        encoder_hidden_states=_TEXT,
        timestep=_TIME,
    ),
    "Stable Diffusion 3": denoiser(
        "SD3Transformer2DModel",
        _HEADS
        | {
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "joint_attention_dim": 16,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 16,
            "pos_embed_max_size": 8,
        },
        _LATENT,
        hidden_states=_LATENT,
        encoder_hidden_states=_TEXT,
        pooled_projections=floats(16),
        timestep=_TIME,
    ),
    "Flux": denoiser(
        "FluxTransformer2DModel",
        _HEADS
        | {
            "num_single_layers": 2,
            "in_channels": 8,
            "joint_attention_dim": 16,
            "pooled_projection_dim": 16,
            "axes_dims_rope": (4, 2, 2),
        },
        floats(16, 8),
        hidden_states=floats(16, 8),
        encoder_hidden_states=_TEXT,
        pooled_projections=floats(16),
        timestep=_TIME,
        img_ids=_positions(16),
        txt_ids=_positions(6),
    ),
    "Chroma": denoiser(
        "ChromaTransformer2DModel",
        _HEADS
        | {
            "num_single_layers": 2,
            "in_channels": 8,
            "joint_attention_dim": 16,
            "axes_dims_rope": (4, 2, 2),
            "approximator_num_channels": 8,
            "approximator_hidden_dim": 16,
            "approximator_layers": 1,
        },
        floats(16, 8),
        hidden_states=floats(16, 8),
        encoder_hidden_states=_TEXT,
        timestep=_TIME,
        img_ids=_positions(16),
        txt_ids=_positions(6),
    ),
    "AuraFlow": denoiser(
        "AuraFlowTransformer2DModel",
        {
            "sample_size": 8,
            "num_mmdit_layers": 1,
            "num_single_dit_layers": 1,
            "attention_head_dim": 8,
            "num_attention_heads": 4,
            "joint_attention_dim": 16,
            "caption_projection_dim": 32,
            "pos_embed_max_size": 16,
        },
        _LATENT,
        hidden_states=_LATENT,
        encoder_hidden_states=_TEXT,
        timestep=_TIME,
    ),
    "Sana": denoiser(
        "SanaTransformer2DModel",
        _HEADS
        | {
            "in_channels": 4,
            "out_channels": 4,
            "num_cross_attention_heads": 4,
            "cross_attention_head_dim": 8,
            "cross_attention_dim": 32,
            "caption_channels": 16,
            "sample_size": 8,
        },
        _LATENT,
        hidden_states=_LATENT,
        encoder_hidden_states=_TEXT,
        timestep=_TIME,
    ),
    "Lumina 2": denoiser(
        "Lumina2Transformer2DModel",
        {
            "sample_size": 8,
            "in_channels": 4,
            "hidden_size": 32,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "num_attention_heads": 4,
            "num_kv_heads": 2,
            "multiple_of": 8,
            "axes_dim_rope": (4, 2, 2),
            "axes_lens": (32, 16, 16),
            "cap_feat_dim": 16,
        },
        _LATENT,
        hidden_states=_LATENT,
        timestep=_TIME,
        encoder_hidden_states=_TEXT,
        encoder_attention_mask=ones(6, dtype=torch.bool),
    ),
    "Wan": denoiser(
        "WanTransformer3DModel",
        _HEADS | {"in_channels": 4, "out_channels": 4, "text_dim": 16, "freq_dim": 16, "ffn_dim": 48},
        floats(4, 2, 4, 4),
        hidden_states=floats(4, 2, 4, 4),
        timestep=_TIME,
        encoder_hidden_states=_TEXT,
    ),
    "CogVideoX": denoiser(
        "CogVideoXTransformer3DModel",
        _HEADS
        | {
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 16,
            "text_embed_dim": 16,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 5,
            "max_text_seq_length": 6,
        },
        floats(2, 4, 8, 8),
        hidden_states=floats(2, 4, 8, 8),
        encoder_hidden_states=_TEXT,
        timestep=_TIME,
    ),
    "LTX-Video": denoiser(
        "LTXVideoTransformer3DModel",
        _HEADS | {"in_channels": 8, "out_channels": 8, "cross_attention_dim": 32, "caption_channels": 16},
        floats(16, 8),
        hidden_states=floats(16, 8),
        encoder_hidden_states=_TEXT,
        timestep=_TIME,
        encoder_attention_mask=ones(6),
        num_frames=constant(1),
        height=constant(4),
        width=constant(4),
    ),
    "unCLIP prior": denoiser(
        "PriorTransformer",
        {
            "num_attention_heads": 4,
            "attention_head_dim": 8,
            "num_layers": 2,
            "embedding_dim": 16,
            "num_embeddings": 6,
            "additional_embeddings": 4,
        },
        floats(16),
        hidden_states=floats(16),
        timestep=_TIME,
        proj_embedding=floats(16),
        encoder_hidden_states=_TEXT,
    ),
}

ROWS = tuple(
    Architecture(name, "diffusion", "diffusers", make, single=name == "tiny autoencoder")
    for name, make in _TABLE.items()
)
