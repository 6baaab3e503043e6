"""Models of toy size that score captions, written as folders in the formats in which the real ones are published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from avcap_zoo.metrics.contrast import ContrastModel

WORDS = (
    *("a", "dog", "is", "barking", "and", "rain", "falls", "man", "speaks", "then", "door"),
    *("closes", "birds", "are", "chirping", "photo", "depicts"),
)
OPEN_CLIP = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def _tokenizer() -> Any:
    """One token per word, between a token that begins the text and one that ends it."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    names = ["[PAD]", "[UNK]", "[BEGIN]", "[END]", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[BEGIN] $A [END]", special_tokens=[("[BEGIN]", 2), ("[END]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", bos_token="[BEGIN]", eos_token="[END]"
    )


def _lively(model: Any) -> Any:
    """Weights so large that texts and pictures differ; those of a new model hardly do."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.5)
    return model.eval()


def _bert() -> BertModel:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    bert: BertModel = _lively(BertModel(BertConfig(vocab_size=4 + len(WORDS), max_position_embeddings=64, **sizes)))
    return bert


def write_sentence_encoder(folder: Path) -> BertModel:
    """As sentence-transformers saves one."""
    torch.manual_seed(1)
    model = _bert()
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    write_json(folder / "1_Pooling/config.json", {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 8})
    return model


def write_error_detector(folder: Path) -> tuple[BertModel, nn.Linear]:
    """As FENSE publishes one: a checkpoint with the names of an older transformers, beside the encoder's config."""
    torch.manual_seed(2)
    encoder, head = _bert(), nn.Linear(16, 6)
    nn.init.normal_(head.weight, std=3.0)
    encoder.config.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    whole = nn.ModuleDict({"encoder": encoder, "clf": head}).eval()
    tensors = {**whole.state_dict(), "encoder.embeddings.position_ids": torch.arange(64)[None]}
    torch.save({"model_type": "bert", "num_classes": 6, "state_dict": tensors}, folder / "echecker.ckpt")
    return encoder, head


def write_transformers_clip(folder: Path) -> CLIPModel:
    """Both towers in transformers format."""
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text = {"vocab_size": 4 + len(WORDS), "max_position_embeddings": 24, "eos_token_id": 3, "bos_token_id": 2, **sizes}
    vision = {"image_size": 16, "patch_size": 8, **sizes}
    model: CLIPModel = _lively(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)))
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return model


def write_open_clip(folder: Path) -> ContrastModel:
    """As OpenCLIP pushes one to a hub."""
    torch.manual_seed(4)
    model = ContrastModel("", None, OPEN_CLIP, "float32", "key")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.clone() for name, tensor in model.clip.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors")
    write_json(folder / "open_clip_config.json", {"model_cfg": OPEN_CLIP})
    return model


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
