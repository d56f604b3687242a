"""Speech and sound."""

from __future__ import annotations

from typing import Any

from common.architectures.base import Draw, batches, floats, integers, ones
from common.architectures.hugging_face import TEXT, Make, made, rows

_WAVE = {
    "conv_dim": (16, 16),
    "conv_kernel": (8, 4),
    "conv_stride": (4, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "mask_time_prob": 0.0,
    "mask_feature_prob": 0.0,
    "layerdrop": 0.0,
    "num_labels": 5,
    "classifier_proj_size": 16,
    "apply_spec_augment": False,
    "squeeze_factor": 2,
    "num_hidden_layers": 2,
    "max_bucket_distance": 16,
    "num_buckets": 8,
}
_SPEECH = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "decoder_start_token_id": 1,
    "num_mel_bins": 8,
    "max_source_positions": 16,
    "max_target_positions": 32,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
}


def classifier(name: str, /, **settings: Any) -> Make:
    """A classifier of waves."""
    return made(name, batches(input_values=floats(160), labels=integers(5)), TEXT | _WAVE | settings)


def transcriber(name: str, /, **settings: Any) -> Make:
    """A model of waves under the loss of Graves et al., "Connectionist temporal classification" (2006)."""
    batch = batches(input_values=floats(160), labels=integers(30, 5, least=3))
    return made(name, batch, TEXT | _WAVE | {"ctc_zero_infinity": True} | settings)


def speech(name: str, features: Draw, /, **settings: Any) -> Make:
    """An encoder of spectra and a decoder of text."""
    return made(name, batches(input_features=features, labels=integers(96, 8, least=3)), TEXT | _SPEECH | settings)


ROWS = rows(
    "audio",
    {
        "Whisper": speech("WhisperForConditionalGeneration", floats(8, 32)),
        "Speech2Text": speech(
            "Speech2TextForConditionalGeneration",
            floats(32, 8),
            input_feat_per_channel=8,
            conv_channels=16,
            num_conv_layers=2,
            conv_kernel_sizes=[3, 3],
        ),
        "Moonshine": made(
            "MoonshineForConditionalGeneration",
            batches(input_values=floats(2000), labels=integers(96, 8, least=3)),
            TEXT
            | {
                "encoder_num_hidden_layers": 2,
                "decoder_num_hidden_layers": 2,
                "encoder_num_attention_heads": 4,
                "decoder_num_attention_heads": 4,
                "decoder_start_token_id": 1,
            },
        ),
        "Wav2Vec2": classifier("Wav2Vec2ForSequenceClassification"),
        "Wav2Vec2 with CTC": transcriber("Wav2Vec2ForCTC"),
        "HuBERT": classifier("HubertForSequenceClassification"),
        "HuBERT with CTC": transcriber("HubertForCTC"),
        "WavLM": classifier("WavLMForSequenceClassification"),
        "UniSpeech-SAT": classifier("UniSpeechSatForSequenceClassification"),
        "Data2Vec audio": classifier(
            "Data2VecAudioForSequenceClassification", conv_pos_kernel_size=3, num_conv_pos_embeddings=2
        ),
        "SEW": classifier("SEWForSequenceClassification"),
        "Wav2Vec2-Conformer": classifier("Wav2Vec2ConformerForSequenceClassification", conv_depthwise_kernel_size=3),
        "Wav2Vec2-BERT": made(
            "Wav2Vec2BertForSequenceClassification",
            batches(input_features=floats(16, 8), labels=integers(5)),
            TEXT
            | _WAVE
            | {
                "feature_projection_input_dim": 8,
                "conv_depthwise_kernel_size": 3,
                "left_max_position_embeddings": 4,
                "right_max_position_embeddings": 2,
            },
        ),
        "AST": made(
            "ASTForAudioClassification",
            batches(input_values=floats(24, 16), labels=integers(5)),
            TEXT
            | {
                "max_length": 24,
                "num_mel_bins": 16,
                "patch_size": 4,
                "frequency_stride": 4,
                "time_stride": 4,
                "num_labels": 5,
            },
        ),
        "EnCodec": made(
            "EncodecModel",
            batches(input_values=floats(1, 64)),
            {
                "num_filters": 4,
                "hidden_size": 8,
                "codebook_size": 16,
                "codebook_dim": 8,
                "upsampling_ratios": [2, 2],
                "num_lstm_layers": 1,
                "num_residual_layers": 1,
                "sampling_rate": 64,
                "target_bandwidths": [0.064],
            },
            lambda output, batch: (output.audio_values - batch["input_values"]).square().mean(),
        ),
        "Parakeet": made(
            "ParakeetForCTC",
            batches(input_features=floats(32, 16), attention_mask=ones(32), labels=integers(30, 3, least=3)),
            {
                "vocab_size": 32,
                "pad_token_id": 0,
                "encoder_config": {
                    "hidden_size": 16,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 2,
                    "intermediate_size": 32,
                    "num_mel_bins": 16,
                    "subsampling_conv_channels": 8,
                    "conv_kernel_size": 3,
                },
            },
        ),
    },
)
