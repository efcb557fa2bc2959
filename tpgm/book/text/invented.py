"""Invented tweets, so that tests and a first run need no network. They go through the same code as the real ones."""

from __future__ import annotations

import csv
import io
import itertools

_FEELINGS = {
    "negative": ("awful", "hate", "worst", "broken", "angry", "late"),
    "neutral": ("today", "report", "again", "question", "monday", "news"),
    "positive": ("great", "love", "best", "thanks", "happy", "perfect"),
}
_SUBJECTS = {
    "my flight": 2,
    "the airline": 2,
    "a driverless taxi": 1,
    "deflategate": 1,
    "coachella": 1,
    "the iphone": 1,
    "claritin": 1,
}
_TAILS = ("really", "so they say", "you know", "honestly", "as ever", "right")


def tiny_csv() -> str:
    """A file of the real corpus's form: 18 tweets for every word of feeling, more about airlines than of any other."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("sentiment", "confidence", "text"))
    for (feeling, words), (subject, times) in itertools.product(_FEELINGS.items(), _SUBJECTS.items()):
        for (n, word), tail in itertools.product(enumerate(words), _TAILS[: 3 * times]):
            writer.writerow((feeling, "1", f"{subject} {word} {tail} {words[(n + 1) % len(words)]}"))
    return text.getvalue()
