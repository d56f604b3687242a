"""Detection of objects: under the loss of its library, which matches predictions to objects on the host, or with the
objects assigned to predictions in the batch, as in datasets of anchors."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.architectures.base import Architecture, Batch, Subject, Trained, batches, floats, integers, uniform
from common.architectures.hugging_face import VISION, Make, model_of
from common.architectures.libraries import library

CLASSES, QUERIES = 5, 6


def _assigned(output: Any, target: Tensor) -> Tensor:
    """Classes and boxes, i64 and f64 in one tensor f64[samples, queries, 5], against the predictions in their order."""
    classes, boxes = target[..., 0].long(), target[..., 1:]
    loss = F.cross_entropy(output.logits.flatten(0, 1), classes.flatten())
    return loss + 5 * F.l1_loss(output.pred_boxes, boxes)


def assigned(name: str, size: int, /, queries: int = QUERIES, **settings: Any) -> Make:
    """A detector of transformers with assigned objects."""
    batch = batches(pixel_values=floats(3, size, size), target=partial(_objects, queries))
    return partial(_made, name, settings, batch)


def _objects(queries: int, samples: int, generator: Any) -> Tensor:
    classes = integers(CLASSES, queries, 1)(samples, generator).double()
    return torch.cat([classes, uniform(queries, 4)(samples, generator)], -1)


def _made(name: str, settings: dict[str, Any], batch: Any) -> Subject:
    return Subject(Trained(model_of(name, **settings), _assigned), batch)


_BACKBONE = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_features": ["stage4"],
}
_PYRAMID = _BACKBONE | {"out_features": ["stage2", "stage3", "stage4"]}
_DETR = {
    "backbone_config": _BACKBONE,
    "use_timm_backbone": False,
    "backbone": None,
    "use_pretrained_backbone": False,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_queries": QUERIES,
    "num_labels": CLASSES,
}
_REAL_TIME = {
    "backbone_config": _PYRAMID,
    "encoder_hidden_dim": 16,
    "encoder_in_channels": [8, 16, 16],
    "encoder_layers": 1,
    "encoder_ffn_dim": 32,
    "encoder_attention_heads": 2,
    "d_model": 16,
    "num_queries": QUERIES,
    "decoder_layers": 2,
    "decoder_in_channels": [16, 16, 16],
    "decoder_ffn_dim": 32,
    "decoder_attention_heads": 2,
    "num_denoising": 0,
    "num_labels": CLASSES,
    "use_pretrained_backbone": False,
    "decoder_n_points": 2,
}


class DETRWithMatching(nn.Module):
    """DETR under its own loss: the objects of an image are matched to predictions by the Hungarian algorithm."""

    def __init__(self) -> None:
        super().__init__()
        self.model = model_of("DetrForObjectDetection", **_DETR)

    def forward(self, pixel_values: Tensor, classes: Tensor, boxes: Tensor) -> Tensor:
        labels = [{"class_labels": c, "boxes": b} for c, b in zip(classes, boxes, strict=True)]
        return self.model(pixel_values=pixel_values, labels=labels).loss


class SingleShot(nn.Module):
    """A head over anchors on a small backbone, of torchvision, under the focal loss of Lin et al. (2017)."""

    def __init__(self, anchors: int = 3) -> None:
        super().__init__()
        head = library("torchvision.models.detection.retinanet").RetinaNetHead(16, anchors, CLASSES)
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
        self.classes, self.boxes = head.classification_head, head.regression_head

    def forward(self, x: Tensor, anchor_classes: Tensor, anchor_boxes: Tensor) -> Tensor:
        features = [self.backbone(x)]
        logits, boxes = self.classes(features), self.boxes(features)
        wanted = F.one_hot(anchor_classes, CLASSES).to(logits.dtype)
        focal = library("torchvision.ops").sigmoid_focal_loss(logits, wanted, reduction="mean")
        return focal + F.smooth_l1_loss(boxes, anchor_boxes)


def _images_with_objects(samples: int, seed: int) -> Batch:
    return batches(pixel_values=floats(3, 32, 32), classes=integers(CLASSES, 3), boxes=uniform(3, 4))(samples, seed)


_TABLE: dict[str, Make] = {
    "DETR": assigned("DetrForObjectDetection", 32, **_DETR),
    "Conditional DETR": assigned("ConditionalDetrForObjectDetection", 32, **_DETR),
    "Deformable DETR": assigned(
        "DeformableDetrForObjectDetection",
        32,
        **_DETR
        | {
            "backbone_config": _PYRAMID,
            "d_model": 32,
            "num_feature_levels": 3,
            "encoder_n_points": 2,
            "decoder_n_points": 2,
        },
    ),
    "Table Transformer": assigned("TableTransformerForObjectDetection", 32, **_DETR),
    "RT-DETR": assigned("RTDetrForObjectDetection", 64, **_REAL_TIME),
    "YOLOS": assigned(
        "YolosForObjectDetection",
        16,
        **VISION | {"num_detection_tokens": QUERIES, "image_size": [16, 16], "num_labels": CLASSES},
    ),
    "DETR with matching": lambda: Subject(DETRWithMatching(), _images_with_objects),
}

_SINGLE = ("DETR with matching",)

ROWS = (
    *(Architecture(name, "detection", "transformers", make, single=name in _SINGLE) for name, make in _TABLE.items()),
    Architecture(
        "RetinaNet head",
        "detection",
        "torchvision",
        lambda: Subject(
            SingleShot(),
            batches(x=floats(3, 16, 16), anchor_classes=integers(CLASSES, 48), anchor_boxes=floats(48, 4)),
        ),
    ),
)
