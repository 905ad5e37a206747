"""Tiny BERTs and RoBERTas with random weights: transformers' models in torch, and the folders that hold them."""

import json
import pathlib
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

TEXTS = [
    "The patient has a dry cough and mild fever since Monday.",
    "Patient reports coughing and a fever since Monday.",
    "No known drug allergies.",
    "",
    "  Return in two weeks for chest imaging and follow up as needed, or sooner if the fever comes back.  ",
]
_SIZES = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
}


def _word_piece() -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    made.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=90, special_tokens=specials, show_progress=False)
    )
    ends = [(token, made.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return made


def _byte_level() -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(TEXTS, trainer)
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return made


def build(family: str, **sizes: Any) -> tuple[Any, tokenizers.Tokenizer]:
    """A torch model and a tokenizer.

    Args:
      family: "bert" or "roberta".
      **sizes: fields of config.json.
    """
    torch.manual_seed(7)
    fields = {**_SIZES, **sizes}
    if family == "bert":
        tokenizer = _word_piece()
        config = transformers.BertConfig(
            vocab_size=tokenizer.get_vocab_size(), **{"max_position_embeddings": 64, **fields}
        )
        model = transformers.BertModel(config)
    else:
        tokenizer = _byte_level()
        places = {"max_position_embeddings": 66, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1}
        config = transformers.RobertaConfig(vocab_size=tokenizer.get_vocab_size(), **{**places, **fields})
        model = transformers.RobertaModel(config)
    with torch.no_grad():
        for leaf in model.parameters():  # biases and norms too, which start at 0 and 1
            leaf.add_(0.1 * torch.randn(leaf.shape))
    return model.eval(), tokenizer


def write(folder: pathlib.Path, model: Any, tokenizer: tokenizers.Tokenizer) -> str:
    """Saves both as a checkpoint folder, with the vocabulary files that older tokenizers read, and returns its path."""
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))
    kind = "BertTokenizer" if model.config.model_type == "bert" else "RobertaTokenizer"
    settings = {"tokenizer_class": kind, "model_max_length": 64}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return str(folder)
