"""A class for every pixel, or a depth."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.architectures.base import Architecture, Draw, Subject, Trained, batches, floats, integers, uniform
from common.architectures.hugging_face import VISION, Make, made, rows
from common.architectures.libraries import library

CLASSES = 5


class UNet(nn.Module):
    """Ronneberger, Fischer and Brox, "U-Net: convolutional networks for biomedical image segmentation" (2015)."""

    def __init__(self, width: int = 8, depth: int = 2, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()

        def double(before: int, after: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for start in (before, after):
                layers += [nn.Conv2d(start, after, 3, padding=1), norm(after), nn.ReLU()]
            return nn.Sequential(*layers)

        widths = [width * 2**i for i in range(depth + 1)]
        self.inward = double(3, width)
        self.down = nn.ModuleList(double(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.widen = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in reversed(widths[:-1]))
        self.up = nn.ModuleList(double(2 * w, w) for w in reversed(widths[:-1]))
        self.head = nn.Conv2d(width, CLASSES, 1)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        x = self.inward(x)
        skips = []
        for block in self.down:
            skips.append(x)
            x = block(F.max_pool2d(x, 2))
        for widen, block in zip(self.widen, self.up, strict=True):
            x = block(torch.cat([skips.pop(), widen(x)], 1))
        return F.cross_entropy(self.head(x), target)


_VOLUMES = batches(x=floats(3, 16, 16), target=integers(CLASSES, 16, 16))


def labelled(name: str, size: int, settings: dict[str, Any], labels: Draw | None = None) -> Make:
    """A model of transformers that returns the loss of labels for the pixels."""
    batch = batches(pixel_values=floats(3, size, size), labels=labels or integers(CLASSES, size, size))
    return made(name, batch, {"num_labels": CLASSES, "image_size": size, "semantic_loss_ignore_index": 255} | settings)


def deep(name: str, /, **settings: Any) -> Make:
    """A model of depth of transformers, which returns no loss in training, under the one of Eigen et al. (2014)."""
    batch = batches(pixel_values=floats(3, 32, 32), target=uniform(32, 32))
    return partial(_deep, name, settings, batch)


def _deep(name: str, settings: dict[str, Any], batch: Any) -> Subject:
    found = made(name, batch, settings)()
    return Subject(Trained(found.model, _logarithmic), batch)


def _logarithmic(output: Any, target: Tensor) -> Tensor:
    size = target.shape[-2:]
    depth = F.interpolate(output.predicted_depth[:, None], size, mode="bilinear")[:, 0]
    difference = (F.softplus(depth) + 1e-3).log() - (target + 1e-3).log()
    return difference.square().mean() - 0.5 * difference.mean(dim=(1, 2)).square().mean()


def torchvision(name: str, backbone: str) -> Make:
    """A head of torchvision on a small backbone of its own."""
    return partial(_torchvision, name, backbone)


def _torchvision(name: str, head: str) -> Subject:
    module = library(f"torchvision.models.segmentation.{name}")
    backbone = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()
    )
    return Subject(_Heads(backbone, getattr(module, head)(16, CLASSES)), _VOLUMES)


class _Heads(nn.Module):
    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        found = self.head(self.backbone(x))
        return F.cross_entropy(F.interpolate(found, x.shape[-2:], mode="bilinear"), target)


_STAGES = {
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [8, 8, 16, 16],
    "num_attention_heads": [1, 1, 2, 2],
    "sr_ratios": [4, 2, 1, 1],
    "mlp_ratios": [2, 2, 2, 2],
    "decoder_hidden_size": 16,
}
_DENSE = {
    "is_hybrid": False,
    "backbone_out_indices": [0, 1, 2, 3],
    "neck_hidden_sizes": [8, 8, 16, 16],
    "fusion_hidden_size": 8,
    "auxiliary_loss_weight": 0.4,
    "num_hidden_layers": 4,
}
_SWIN = {
    "model_type": "swin",
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 2, 2],
    "window_size": 2,
    "image_size": 32,
    "patch_size": 2,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
_CONVNEXT = {
    "model_type": "convnext",
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 1, 1],
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
    "patch_size": 2,
}
_PLAIN = {
    "model_type": "dinov2",
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 4,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
    "reshape_hidden_states": False,
}

ROWS = (
    *rows(
        "segmentation",
        {
            "SegFormer": labelled("SegformerForSemanticSegmentation", 32, _STAGES),
            "BEiT segmentation": labelled(
                "BeitForSemanticSegmentation",
                16,
                VISION
                | {
                    "num_hidden_layers": 4,
                    "out_indices": [1, 2, 3, 4],
                    "pool_scales": [1, 2],
                    "use_auxiliary_head": False,
                    "use_relative_position_bias": True,
                    "auxiliary_channels": 8,
                },
            ),
            "MobileViT segmentation": labelled(
                "MobileViTForSemanticSegmentation",
                32,
                {
                    "hidden_sizes": [16, 24, 32],
                    "patch_size": 2,
                    "expand_ratio": 2.0,
                    "neck_hidden_sizes": [8, 8, 16, 24, 32, 32, 48],
                    "aspp_out_channels": 8,
                    "atrous_rates": [1, 2, 3],
                },
            ),
            "DPT": labelled("DPTForSemanticSegmentation", 16, VISION | _DENSE),
            "UPerNet": labelled(
                "UperNetForSemanticSegmentation",
                32,
                {"backbone_config": _CONVNEXT, "hidden_size": 16, "pool_scales": [1, 2], "use_auxiliary_head": False},
            ),
            "Depth Anything": deep(
                "DepthAnythingForDepthEstimation",
                backbone_config=_PLAIN,
                reassemble_hidden_size=16,
                patch_size=4,
                neck_hidden_sizes=[8, 8, 16, 16],
                fusion_hidden_size=8,
                head_hidden_size=8,
            ),
            "GLPN": deep("GLPNForDepthEstimation", **_STAGES),
            "MaskFormer": made(
                "MaskFormerForInstanceSegmentation",
                batches(pixel_values=floats(3, 32, 32)),
                {
                    "backbone_config": _SWIN,
                    "fpn_feature_size": 32,
                    "mask_feature_size": 32,
                    "num_labels": CLASSES,
                    "decoder_config": {
                        "model_type": "detr",
                        "d_model": 16,
                        "encoder_layers": 1,
                        "decoder_layers": 2,
                        "encoder_attention_heads": 2,
                        "decoder_attention_heads": 2,
                        "num_queries": 6,
                        "encoder_ffn_dim": 32,
                        "decoder_ffn_dim": 32,
                    },
                },
                lambda output, batch: (
                    output.masks_queries_logits.square().mean() + output.class_queries_logits.square().mean()
                ),
            ),
        },
    ),
    Architecture("U-Net", "segmentation", "torch", lambda: Subject(UNet(), _VOLUMES)),
    Architecture(
        "U-Net with group norm", "segmentation", "torch", lambda: Subject(UNet(norm=partial(nn.GroupNorm, 4)), _VOLUMES)
    ),
    Architecture(
        "U-Net with instance norm", "segmentation", "torch", lambda: Subject(UNet(norm=nn.InstanceNorm2d), _VOLUMES)
    ),
    Architecture("FCN", "segmentation", "torchvision", torchvision("fcn", "FCNHead")),
    Architecture("DeepLab-v3", "segmentation", "torchvision", torchvision("deeplabv3", "DeepLabHead")),
)
