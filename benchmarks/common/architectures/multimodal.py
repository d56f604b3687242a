"""Text with images, or with sound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from common.architectures.base import VOCABULARY, Batch, Subject, batches, constant, corners, floats, integers, ones
from common.architectures.hugging_face import DECODER, TEXT, VISION, Make, config_of, made, model_of, rows

_EYE = {name: VISION[name] for name in VISION if name != "num_labels"}
_IMAGE = 90
"""The token that stands for a place of an image."""


def contrastive(name: str, size: int = 16, **settings: Any) -> Make:
    """Two towers that return the loss of telling which text belongs to which image."""
    batch = batches(
        input_ids=integers(VOCABULARY - 10, 12, least=3), attention_mask=ones(12), pixel_values=floats(3, size, size),
        return_loss=constant(True),
    )  # fmt: skip
    return made(name, batch, {"text_config": TEXT, "vision_config": _EYE, "projection_dim": 16} | settings)


def captioner(name: str, places: int, /, size: int = 16, **settings: Any) -> Make:
    """A decoder whose input has `places` tokens that an image takes."""
    return made(name, _with_image(places, size), {"image_token_id": _IMAGE, "image_token_index": _IMAGE} | settings)


def _with_image(places: int, size: int) -> Callable[[int, int], Batch]:
    def tokens(samples: int, generator: torch.Generator) -> Batch:
        words = torch.randint(3, _IMAGE, (samples, 12), generator=generator)
        found = torch.cat([words[:, :2], torch.full((samples, places), _IMAGE), words[:, 2:]], 1)
        labels = torch.where(found == _IMAGE, -100, found)
        return {"input_ids": found, "attention_mask": torch.ones_like(found), "labels": labels}

    return batches(tokens, pixel_values=floats(3, size, size))


def _with_a_prefix(samples: int, seed: int) -> Batch:
    """An image and its tokens as a prefix, whose tokens attend to each other, before the text that is learnt."""
    batch = _with_image(16, 16)(samples, seed)
    return batch | {"token_type_ids": (torch.arange(batch["input_ids"].shape[1]) >= 18).long().repeat(samples, 1)}


def _llama(**settings: Any) -> dict[str, Any]:
    return {"model_type": "llama"} | DECODER | settings


def written(encoder: str, decoder: str, **settings: Any) -> Make:
    """A reader of images and a writer of text, of two kinds of models."""

    def make() -> Subject:
        reads, writes = config_of(encoder, **VISION), config_of(decoder, **TEXT | settings)
        config = config_of("VisionEncoderDecoderConfig", encoder=reads.to_dict(), decoder=writes.to_dict())
        config.decoder_start_token_id, config.pad_token_id = 1, 0
        batch = batches(pixel_values=floats(3, 16, 16), labels=integers(VOCABULARY, 10, least=3))
        return Subject(model_of("VisionEncoderDecoderModel", config), batch)

    return make


def _flattened(samples: int, seed: int) -> Batch:
    """Patches of images that are 4 by 4 patches large, with their tokens: Qwen2-VL takes the patches of all images."""
    batch = _with_image(4, 16)(samples, seed)
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(samples * 16, 3 * 2 * 4 * 4, generator=generator, dtype=torch.float64)
    kinds = (batch["input_ids"] == _IMAGE).long()
    return batch | {
        "mm_token_type_ids": kinds,
        "pixel_values": patches,
        "image_grid_thw": torch.tensor([[1, 4, 4]] * samples),
    }


def _patches(samples: int, seed: int) -> Batch:
    """Patches with their rows and columns in front."""
    generator = torch.Generator().manual_seed(seed)
    rows_, columns = torch.meshgrid(torch.arange(1.0, 5), torch.arange(1.0, 5), indexing="ij")
    places = torch.stack([rows_.flatten(), columns.flatten()], -1).double().expand(samples, -1, -1)
    values = torch.randn(samples, 16, 48, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, VOCABULARY, (samples, 10), generator=generator)
    return {
        "flattened_patches": torch.cat([places, values], -1),
        "attention_mask": torch.ones(samples, 16),
        "labels": labels,
    }


ROWS = rows(
    "multimodal",
    {
        "CLIP": contrastive("CLIPModel"),
        "SigLIP": contrastive("SiglipModel"),
        "AltCLIP": contrastive("AltCLIPModel", text_config=TEXT | {"project_dim": 32}),
        "Chinese-CLIP": contrastive("ChineseCLIPModel"),
        "BLIP": made(
            "BlipForConditionalGeneration",
            batches(
                input_ids=integers(VOCABULARY, 12, least=3),
                attention_mask=ones(12),
                pixel_values=floats(3, 16, 16),
                labels=integers(VOCABULARY, 12, least=3),
            ),
            {"text_config": TEXT | {"encoder_hidden_size": 32}, "vision_config": _EYE, "projection_dim": 16},
        ),
        "BLIP-2": captioner(
            "Blip2ForConditionalGeneration",
            4,
            vision_config=_EYE,
            num_query_tokens=4,
            qformer_config=TEXT | {"encoder_hidden_size": 32},
            text_config={"model_type": "opt", "word_embed_proj_dim": 32, "ffn_dim": 48} | TEXT,
        ),
        "GIT": made(
            "GitForCausalLM",
            batches(
                input_ids=integers(VOCABULARY, 12, least=3),
                attention_mask=ones(12),
                pixel_values=floats(3, 16, 16),
                labels=integers(VOCABULARY, 12, least=3),
            ),
            TEXT | {"vision_config": _EYE},
        ),
        "LLaVA": captioner(
            "LlavaForConditionalGeneration",
            16,
            text_config=_llama(),
            vision_config={"model_type": "clip_vision_model"} | _EYE,
        ),
        "PaliGemma": made(
            "PaliGemmaForConditionalGeneration",
            _with_a_prefix,
            {
                "image_token_id": _IMAGE,
                "image_token_index": _IMAGE,
                "text_config": {"model_type": "gemma"} | DECODER,
                "vision_config": {"model_type": "siglip_vision_model"} | _EYE,
                "projection_dim": 32,
            },
        ),
        "InternVL": captioner(
            "InternVLForConditionalGeneration",
            4,
            text_config=_llama(),
            vision_config=_EYE | {"image_size": [16, 16], "patch_size": [4, 4]},
            image_seq_length=4,
        ),
        "Qwen2-VL": made(
            "Qwen2VLForConditionalGeneration",
            _flattened,
            {
                "image_token_id": _IMAGE,
                "video_token_id": 91,
                "vision_start_token_id": 92,
                "vision_end_token_id": 93,
                "text_config": DECODER
                | {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}},
                "vision_config": {
                    "depth": 2,
                    "embed_dim": 32,
                    "hidden_size": 32,
                    "num_heads": 4,
                    "patch_size": 4,
                    "mlp_ratio": 2,
                },
            },
        ),
        "Chameleon": made(
            "ChameleonForConditionalGeneration",
            batches(
                input_ids=integers(VOCABULARY, 12, least=3),
                attention_mask=ones(12),
                labels=integers(VOCABULARY, 12, least=3),
            ),
            DECODER
            | {
                "vocabulary_map": {"<image>": 3},
                "vq_config": {
                    "base_channels": 32,
                    "channel_multiplier": [1],
                    "num_embeddings": 16,
                    "embed_dim": 8,
                    "latent_channels": 8,
                    "resolution": 16,
                    "num_res_blocks": 1,
                },
            },
        ),
        "ViLT": made(
            "ViltForQuestionAnswering",
            batches(
                input_ids=integers(VOCABULARY, 12, least=3),
                attention_mask=ones(12),
                pixel_values=floats(3, 16, 16),
                labels=floats(5),
            ),
            TEXT | _EYE | {"num_labels": 5},
        ),
        "VisualBERT": made(
            "VisualBertForPreTraining",
            batches(
                input_ids=integers(VOCABULARY, 12, least=3),
                attention_mask=ones(12),
                visual_embeds=floats(4, 16),
                visual_attention_mask=ones(4),
                labels=integers(VOCABULARY, 16, least=3),
            ),
            TEXT | {"visual_embedding_dim": 16},
        ),
        "LXMERT": made(
            "LxmertForQuestionAnswering",
            batches(
                input_ids=integers(VOCABULARY, 12, least=3),
                attention_mask=ones(12),
                visual_feats=floats(4, 16),
                visual_pos=floats(4, 4),
                labels=integers(5),
            ),
            {name: TEXT[name] for name in TEXT if name != "num_hidden_layers"}
            | {"num_qa_labels": 5, "visual_feat_dim": 16, "l_layers": 1, "x_layers": 1, "r_layers": 1},
        ),
        "LayoutLM-v3": made(
            "LayoutLMv3ForTokenClassification",
            batches(
                input_ids=integers(VOCABULARY, 12, least=3),
                attention_mask=ones(12),
                bbox=corners(12, 60),
                pixel_values=floats(3, 16, 16),
                labels=integers(5, 12),
            ),
            TEXT
            | {
                "num_labels": 5,
                "input_size": 16,
                "patch_size": 4,
                "coordinate_size": 6,
                "shape_size": 4,
                "max_2d_position_embeddings": 128,
                "rel_pos_bins": 8,
                "max_rel_pos": 16,
                "rel_2d_pos_bins": 8,
                "max_rel_2d_pos": 16,
                "pad_token_id": 1,
            },
        ),
        "Pix2Struct": made(
            "Pix2StructForConditionalGeneration",
            _patches,
            {
                "text_config": {
                    "vocab_size": VOCABULARY,
                    "hidden_size": 32,
                    "d_kv": 8,
                    "d_ff": 48,
                    "num_layers": 2,
                    "num_heads": 4,
                    "decoder_start_token_id": 0,
                    "pad_token_id": 0,
                    "use_cache": False,
                },
                "vision_config": {
                    "hidden_size": 32,
                    "patch_embed_hidden_size": 48,
                    "d_ff": 48,
                    "d_kv": 8,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 4,
                    "seq_len": 16,
                },
            },
        ),
        "TrOCR": written(
            "ViTConfig",
            "TrOCRConfig",
            d_model=32,
            decoder_layers=2,
            decoder_attention_heads=4,
            decoder_ffn_dim=48,
            cross_attention_hidden_size=32,
        ),
        "ViT and GPT-2": written("ViTConfig", "GPT2Config", add_cross_attention=True),
    },
)
