"""Encoders of text."""

from __future__ import annotations

from typing import Any

from common.architectures.base import batches, corners, integers, ones, text
from common.architectures.hugging_face import TEXT, Make, made, rows, without


def masked(name: str, /, **settings: Any) -> Make:
    """A model of masked words, on padded text."""
    return made(name, batches(text()), TEXT | settings)


def classifier(name: str, /, length: int = 16, **settings: Any) -> Make:
    """A classifier of texts of one length."""
    inputs = {"input_ids": integers(96, length, least=3), "attention_mask": ones(length), "labels": integers(5)}
    return made(name, batches(**inputs), TEXT | {"num_labels": 5} | settings)


_RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}

ROWS = rows(
    "encoders",
    {
        "BERT": masked("BertForMaskedLM"),
        "RoBERTa": masked("RobertaForMaskedLM"),
        "XLM-RoBERTa-XL": masked("XLMRobertaXLForMaskedLM"),
        "ALBERT": masked("AlbertForMaskedLM", embedding_size=16),
        "DistilBERT": masked("DistilBertForMaskedLM", dim=32, n_layers=2, n_heads=4, hidden_dim=48),
        "ELECTRA": masked("ElectraForMaskedLM", embedding_size=16),
        "DeBERTa": masked("DebertaForMaskedLM", **_RELATIVE),
        "DeBERTa-v2": masked("DebertaV2ForMaskedLM", **_RELATIVE, position_buckets=4),
        "MPNet": masked("MPNetForMaskedLM"),
        "ModernBERT": masked("ModernBertForMaskedLM", local_attention=8, cls_token_id=1, sep_token_id=2),
        "EuroBERT": masked("EuroBertForMaskedLM", num_key_value_heads=4),
        "NomicBERT": masked("NomicBertForMaskedLM"),
        "ConvBERT": masked("ConvBertForMaskedLM", embedding_size=32, head_ratio=2, conv_kernel_size=3),
        "SqueezeBERT": masked("SqueezeBertForMaskedLM", embedding_size=32),
        "MobileBERT": masked("MobileBertForMaskedLM", embedding_size=16, intra_bottleneck_size=16, true_hidden_size=16),
        "RoFormer": masked("RoFormerForMaskedLM", embedding_size=32),
        "Nystromformer": made(
            "NystromformerForMaskedLM",
            batches(text(mask=False)),
            TEXT | {"segment_means_seq_len": 16, "num_landmarks": 4},
        ),
        "Longformer": masked("LongformerForMaskedLM", attention_window=[4, 4]),
        "BigBird": masked("BigBirdForMaskedLM", attention_type="original_full"),
        "MegatronBERT": masked("MegatronBertForMaskedLM"),
        "ESM": masked("EsmForMaskedLM", mask_token_id=3, position_embedding_type="rotary"),
        "I-BERT": masked("IBertForMaskedLM"),
        "XLNet": made(
            "XLNetForSequenceClassification",
            batches(input_ids=integers(96, 16, least=3), labels=integers(5)),
            without(TEXT, "max_position_embeddings")
            | {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48, "num_labels": 5},
        ),
        "FNet": made(
            "FNetForMaskedLM",
            batches(text(mask=False)),
            TEXT | {"tpu_short_seq_length": 16, "max_position_embeddings": 16},
        ),
        "Funnel": made(
            "FunnelForSequenceClassification",
            batches(input_ids=integers(96, 16, least=3), labels=integers(5)),
            without(TEXT, "num_hidden_layers")
            | {"block_sizes": [1, 1], "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 48, "num_labels": 5},
        ),
        "CANINE": classifier(
            "CanineForSequenceClassification",
            length=32,
            downsampling_rate=4,
            num_hash_functions=4,
            num_hash_buckets=96,
            local_transformer_stride=16,
            upsampling_kernel_size=4,
        ),
        "Perceiver": classifier(
            "PerceiverForSequenceClassification",
            d_model=32,
            d_latents=32,
            num_latents=8,
            num_self_attends_per_block=2,
            num_self_attention_heads=4,
            num_cross_attention_heads=4,
        ),
        "LayoutLM": made(
            "LayoutLMForTokenClassification",
            batches(text(), bbox=corners(16, 60)),
            TEXT | {"num_labels": 96, "max_2d_position_embeddings": 128},
        ),
        "BigBird (block sparse)": masked(
            "BigBirdForMaskedLM", attention_type="block_sparse", block_size=4, num_random_blocks=1
        ),
        "YOSO": made("YosoForMaskedLM", batches(text(mask=False)), TEXT | {"num_hash": 4, "hash_code_len": 4}),
        "MRA": made("MraForMaskedLM", batches(text(length=32, mask=False)), TEXT | {"block_per_row": 1}),
        "LUKE": made(
            "LukeForMaskedLM",
            batches(
                text(),
                entity_ids=integers(20, 3),
                entity_attention_mask=ones(3),
                entity_position_ids=integers(16, 3, 4),
                entity_labels=integers(20, 3),
            ),
            TEXT | {"entity_vocab_size": 20, "entity_emb_size": 16},
        ),
    },
    sequence=True,
    single=("DeBERTa-v2",),
)
