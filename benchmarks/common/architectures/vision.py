"""Transformers of images."""

from __future__ import annotations

from common.architectures.base import Subject, batches, floats, integers
from common.architectures.hugging_face import VISION, Make, made
from common.architectures.images import pixels, rows, staged, timm, timm_class, torchvision
from common.architectures.libraries import library

_VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4}
_MIXER = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "num_blocks": 3}


def _mixer(block: str) -> Make:
    """A network of perceptrons over positions and channels, from one kind of block."""

    def make() -> Subject:
        path = "mlp_mixer"
        kind = getattr(library(f"timm.models.{path}"), block)
        ratio = {} if block == "MixerBlock" else {"mlp_ratio": 2}
        mlp = {"mlp_layer": library("timm.layers").GatedMlp} if block == "SpatialGatingBlock" else {}
        return timm_class(path, "MlpMixer", **_MIXER, block_layer=kind, **ratio, **mlp)()

    return make


ROWS = (
    *rows(
        "vision",
        "transformers",
        {
            "ViT": pixels("ViTForImageClassification"),
            "DeiT": pixels("DeiTForImageClassification"),
            "BEiT": pixels("BeitForImageClassification", use_relative_position_bias=True),
            "DINOv2": pixels("Dinov2ForImageClassification"),
            "DINOv3": made(
                "DINOv3ViTModel",
                batches(pixel_values=floats(3, 16, 16)),
                VISION | {"num_register_tokens": 2, "pos_embed_rescale": None},
                lambda output, batch: output.pooler_output.square().mean(),
            ),
            "ViT-MSN": pixels("ViTMSNForImageClassification"),
            "I-JEPA": pixels("IJepaForImageClassification"),
            "ViViT": made(
                "VivitForVideoClassification",
                batches(pixel_values=floats(4, 3, 16, 16), labels=integers(5)),
                VISION | {"num_frames": 4, "tubelet_size": [2, 4, 4]},
            ),
            "V-JEPA 2": made(
                "VJEPA2ForVideoClassification",
                batches(pixel_values_videos=floats(4, 3, 16, 16), labels=integers(5)),
                VISION
                | {
                    "crop_size": 16,
                    "frames_per_clip": 4,
                    "pred_hidden_size": 16,
                    "pred_num_attention_heads": 2,
                    "pred_num_hidden_layers": 1,
                    "num_pooler_layers": 1,
                },
            ),
            "Swin": staged(
                "SwinForImageClassification",
                32,
                embed_dim=16,
                depths=[2, 2],
                num_heads=[2, 4],
                window_size=4,
                patch_size=2,
            ),
            "Swin-v2": staged(
                "Swinv2ForImageClassification",
                32,
                embed_dim=16,
                depths=[2, 2],
                num_heads=[2, 4],
                window_size=4,
                patch_size=2,
            ),
            "PVT": staged(
                "PvtForImageClassification",
                32,
                depths=[1, 1, 1, 1],
                hidden_sizes=[8, 16, 24, 32],
                num_attention_heads=[1, 2, 2, 4],
                mlp_ratios=[2, 2, 2, 2],
                sequence_reduction_ratios=[2, 1, 1, 1],
                patch_sizes=[4, 2, 2, 2],
                strides=[4, 2, 2, 2],
            ),
            "PVT-v2": pixels(
                "PvtV2ForImageClassification",
                32,
                depths=[1, 1, 1, 1],
                hidden_sizes=[8, 16, 24, 32],
                num_attention_heads=[1, 2, 2, 4],
                mlp_ratios=[2, 2, 2, 2],
                sr_ratios=[2, 1, 1, 1],
            ),
            "CvT": staged("CvtForImageClassification", 32, embed_dim=[8, 16, 32], num_heads=[1, 2, 4], depth=[1, 2, 3]),
            "PoolFormer": pixels(
                "PoolFormerForImageClassification", 32, depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32]
            ),
            "FocalNet": pixels(
                "FocalNetForImageClassification",
                32,
                embed_dim=16,
                depths=[2, 2],
                focal_levels=[2, 2],
                focal_windows=[3, 3],
                hidden_sizes=[16, 32],
            ),
            "MobileViT": pixels(
                "MobileViTForImageClassification",
                32,
                hidden_sizes=[16, 24, 32],
                neck_hidden_sizes=[8, 8, 16, 24, 32, 32, 48],
                patch_size=2,
                expand_ratio=2.0,
            ),
            "LeViT": staged(
                "LevitForImageClassification",
                32,
                hidden_sizes=[16, 24, 32],
                num_attention_heads=[2, 3, 4],
                depths=[1, 1, 1],
                key_dim=[8, 8, 8],
                mlp_ratio=[2, 2, 2],
                attention_ratio=[2, 2, 2],
            ),
            "Hiera": made(
                "HieraForImageClassification",
                batches(pixel_values=floats(3, 32, 32), labels=integers(5)),
                {
                    "embed_dim": 8,
                    "image_size": [32, 32],
                    "patch_stride": [4, 4],
                    "depths": [1, 1],
                    "num_heads": [1, 2],
                    "num_query_pool": 1,
                    "masked_unit_size": [4, 4],
                    "query_stride": [2, 2],
                    "num_labels": 5,
                },
            ),
        },
    ),
    *rows(
        "vision",
        "torchvision",
        {
            "ViT (torchvision)": torchvision(
                "VisionTransformer",
                16,
                image_size=16,
                patch_size=4,
                num_layers=2,
                num_heads=4,
                hidden_dim=32,
                mlp_dim=48,
            ),
            "Swin (torchvision)": torchvision(
                "SwinTransformer",
                patch_size=[2, 2],
                embed_dim=16,
                depths=[2, 2],
                num_heads=[2, 4],
                window_size=[4, 4],
                stochastic_depth_prob=0.0,
            ),
            "MaxViT": torchvision(
                "MaxVit",
                input_size=(32, 32),
                stem_channels=8,
                partition_size=4,
                block_channels=[8, 16],
                block_layers=[1, 1],
                head_dim=4,
                stochastic_depth_prob=0.0,
            ),
        },
    ),
    *rows(
        "vision",
        "timm",
        {
            "DeiT-3": timm("deit3_small_patch16_224", 16, **_VIT),
            "CaiT": timm("cait_xxs24_224", 16, **_VIT, depth_token_only=1),
            "EVA-02": timm("eva02_tiny_patch14_224", 16, **_VIT),
            "MLP-Mixer": _mixer("MixerBlock"),
            "gMLP": _mixer("SpatialGatingBlock"),
            "ResMLP": _mixer("ResBlock"),
            "DaViT": timm("davit_tiny", 64, depths=(1, 1), embed_dims=(16, 32), num_heads=(2, 4), window_size=4),
            "Twins": timm(
                "twins_svt_small",
                64,
                img_size=64,
                embed_dims=[8, 16, 16, 32],
                num_heads=[1, 2, 2, 4],
                depths=[1, 1, 1, 2],
                wss=[4, 4, 2, 2],
            ),
            "CrossViT": timm(
                "crossvit_tiny_240",
                24,
                img_size=24,
                img_scale=(1.0, 1.0),
                patch_size=[3, 4],
                embed_dim=[16, 32],
                depth=[[1, 1, 0]],
                num_heads=[2, 2],
                mlp_ratio=[2, 2, 1],
            ),
            "PiT": timm(
                "pit_ti_224",
                32,
                img_size=32,
                patch_size=4,
                stride=4,
                base_dims=[8, 8, 8],
                depth=[1, 1, 1],
                heads=[2, 2, 2],
            ),
        },
    ),
)
