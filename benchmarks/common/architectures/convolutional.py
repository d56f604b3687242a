"""Convolutional networks, with their batch norms in training mode."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from common.architectures.base import Classifier, Subject, batches, floats, integers
from common.architectures.hugging_face import Make
from common.architectures.images import CLASSES, rows, staged, timm, timm_class, torchvision
from common.architectures.libraries import library


def _block(path: str, name: str, **settings: Any) -> Any:
    return getattr(library(f"torchvision.models.{path}"), name)(**settings)


def _residual(block: str, **settings: Any) -> Make:
    """A ResNet of torchvision from one block per stage."""
    return lambda: torchvision(
        "ResNet", block=getattr(library("torchvision.models.resnet"), block), layers=[1, 1, 1, 1], **settings
    )()


def _efficient() -> Any:
    blocks = partial(_block, "efficientnet", "MBConvConfig")
    fused = partial(_block, "efficientnet", "FusedMBConvConfig")
    settings = [
        fused(expand_ratio=1, kernel=3, stride=1, input_channels=8, out_channels=8, num_layers=1),
        blocks(expand_ratio=4, kernel=3, stride=2, input_channels=8, out_channels=16, num_layers=2),
        blocks(expand_ratio=4, kernel=5, stride=2, input_channels=16, out_channels=24, num_layers=2),
    ]
    return torchvision(
        "EfficientNet", inverted_residual_setting=settings, dropout=0.0, stochastic_depth_prob=0.0, last_channel=32
    )()


def _mobile_3() -> Any:
    block = partial(_block, "mobilenetv3", "InvertedResidualConfig", dilation=1, width_mult=1.0)
    settings = [
        block(
            input_channels=16, kernel=3, expanded_channels=16, out_channels=16, use_se=True, activation="RE", stride=2
        ),
        block(
            input_channels=16, kernel=3, expanded_channels=32, out_channels=24, use_se=False, activation="RE", stride=2
        ),
        block(
            input_channels=24, kernel=5, expanded_channels=48, out_channels=24, use_se=True, activation="HS", stride=1
        ),
    ]
    return torchvision("MobileNetV3", inverted_residual_setting=settings, last_channel=32)()


def _regular() -> Any:
    from_width = library("torchvision.models.regnet").BlockParams.from_init_params
    parameters = from_width(depth=4, w_0=16, w_a=16.0, w_m=2.0, group_width=8, se_ratio=0.25)
    return torchvision("RegNet", block_params=parameters, stem_width=8)()


def _modern() -> Any:
    block = partial(_block, "convnext", "CNBlockConfig")
    settings = [
        block(input_channels=16, out_channels=32, num_layers=2),
        block(input_channels=32, out_channels=None, num_layers=2),
    ]
    return torchvision("ConvNeXt", block_setting=settings, stochastic_depth_prob=0.0)()


def _deep() -> Subject:
    features = library("torchvision.models.vgg").make_layers([8, "M", 16, "M", 32, "M"], batch_norm=True)
    head = nn.Sequential(nn.Flatten(), nn.Linear(32 * 16, 32), nn.ReLU(), nn.Linear(32, CLASSES))
    batch = batches(x=floats(3, 32, 32), target=integers(CLASSES))
    return Subject(Classifier(nn.Sequential(features, head)), batch)


ROWS = (
    *rows(
        "convolutional",
        "torchvision",
        {
            "VGG": _deep,
            "ResNet-18": torchvision("resnet18"),
            "ResNet with bottlenecks": _residual("Bottleneck"),
            "ResNet with group norm": _residual("Bottleneck", norm_layer=lambda channels: nn.GroupNorm(8, channels)),
            "ResNeXt": _residual("Bottleneck", groups=8, width_per_group=4),
            "Wide ResNet": _residual("Bottleneck", width_per_group=96),
            "DenseNet": torchvision("DenseNet", growth_rate=8, block_config=(2, 2, 2), num_init_features=16, bn_size=2),
            "EfficientNet": _efficient,
            "MobileNet-v2": torchvision(
                "MobileNetV2", inverted_residual_setting=[[1, 8, 1, 1], [4, 16, 2, 2], [4, 24, 2, 2]], dropout=0.0
            ),
            "MobileNet-v3": _mobile_3,
            "MNASNet": torchvision("mnasnet0_5", dropout=0.0),
            "ShuffleNet-v2": torchvision(
                "ShuffleNetV2", stages_repeats=[2, 2, 2], stages_out_channels=[8, 16, 24, 32, 48]
            ),
            "SqueezeNet": torchvision("squeezenet1_1", dropout=0.0),
            "RegNet": _regular,
            "ConvNeXt": _modern,
            "GoogLeNet": torchvision("GoogLeNet", aux_logits=False, init_weights=False, dropout=0.0),
        },
    ),
    *rows(
        "convolutional",
        "timm",
        {
            "ConvNeXt-v2": timm("convnextv2_atto", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32)),
            "SE-ResNet": timm("seresnet18"),
            "ResNeSt": timm("resnest14d"),
            "Res2Net": timm("res2net50_14w_8s", layers=[1, 1, 1, 1]),
            "GhostNet": timm("ghostnet_050", 64),
            "RepVGG": timm("repvgg_a0"),
            "DLA": timm("dla46_c", 64),
            "ConvMixer": timm_class("convmixer", "ConvMixer", dim=16, depth=3, kernel_size=3, patch_size=4),
            "InceptionNeXt": timm("inception_next_atto", 64),
            "StarNet": timm("starnet_s1", 64),
            "FastViT": timm("fastvit_t8", 64),
            "MambaOut": timm("mambaout_femto", 64, depths=(1, 1, 1, 1), dims=(8, 16, 24, 32)),
        },
    ),
    *rows(
        "convolutional",
        "transformers",
        {
            "ResNet (transformers)": staged(
                "ResNetForImageClassification", 32, embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1]
            ),
        },
    ),
)
