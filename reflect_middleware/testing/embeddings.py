"""An embedder for tests: no model, no network, the same vectors on every machine."""

from __future__ import annotations

import math
import re
from hashlib import blake2b

from langchain_core.embeddings import Embeddings

_WORD = re.compile(r"\w+")


class HashingEmbeddings(Embeddings):
    """A hashed bag of words: texts are near when they share words, and only then.

    Args:
        dimensions: length of the vectors, at least 1.
        ngrams: size of character n-grams to count as well, at a quarter of a word's weight; 0 for none. They bring word
            forms (`refund`, `refunds`) together.
    """

    def __init__(self, dimensions: int = 256, *, ngrams: int = 0) -> None:
        self.dimensions = dimensions
        self.ngrams = ngrams
        self.model = f"hashing-{ngrams}" if ngrams else "hashing"

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector of length 1 per text."""
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        """A vector of length 1; a text without words has one of its own."""
        vector = [0.0] * self.dimensions
        for feature, weight in self._features(text):
            digest = int.from_bytes(blake2b(feature.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
            vector[(digest >> 1) % self.dimensions] += weight if digest & 1 else -weight
        length = math.hypot(*vector)
        if not length:
            return [1.0, *[0.0] * (self.dimensions - 1)]
        return [value / length for value in vector]

    def _features(self, text: str) -> list[tuple[str, float]]:
        words = _WORD.findall(text.casefold())
        features = [(word, 1.0) for word in words]
        if self.ngrams:
            padded = [f" {word} " for word in words]
            grams = (word[i : i + self.ngrams] for word in padded for i in range(len(word) - self.ngrams + 1))
            features += [(f"#{gram}", 0.25) for gram in grams]
        return features
