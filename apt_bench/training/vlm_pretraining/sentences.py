"""Sentences about the objects of an observation: naming, counting, relating and pointing.

No sentence has the form of the robot's instruction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from apt_bench.models.mini_vlm import BOS_ID, END_ID, MiniTokenizer
from apt_bench.training.vlm_pretraining.scenes import SceneSource, VisibleObject


@dataclass(frozen=True)
class Sentence:
    """A sentence as tokens.

    Attributes:
        ids: Token ids, begin and end included.
        answer: Index of the first token that is to be predicted.
        nouns: (index of a phrase's last token, index of the object it means) for each noun phrase.
    """

    ids: tuple[int, ...]
    answer: int
    nouns: tuple[tuple[int, int], ...]


TEMPLATES = (
    "where is the ?",
    "there is a , and .",
    "what is left right of in front behind",
    "is there yes no",
    "how many things are there ?",
)
"""Words of the sentences below, without names of objects and numbers."""


LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")


NUMBERS = ("nothing", "one", "two", "three", "four", "five", "six", "seven", "eight")


def vocabulary(source: SceneSource, start: Sequence[str] = ()) -> tuple[str, ...]:
    """Every word of the sentences below about scenes of this source. The words of `start` come first, in their order,
    so that a VLM with that vocabulary keeps its token ids."""
    words = {word for text in (*TEMPLATES, *NUMBERS, *source.texts()) for word in text.lower().split()}
    return (*start, *sorted(words - set(start)))


class SentenceMaker:
    """Makes sentences about an observation. Left, right, in front and behind refer to its first image."""

    def __init__(self, tokenizer: MiniTokenizer, source: SceneSource) -> None:
        self.tokenizer, self.source = tokenizer, source

    def sentence(self, objects: Sequence[VisibleObject], rng: np.random.Generator) -> Sentence:
        """A sentence of a random kind about these objects."""
        kinds = [self._exists] + ([self._count] if len(objects) < len(NUMBERS) else [])
        if objects:
            kinds += [self._point, self._point, self._mention, self._mention, self._caption]
        if sum(t.places[0] is not None for t in objects) > 1:
            kinds += [self._relation, self._relation]
        return kinds[rng.integers(len(kinds))](objects, rng)

    def compose(self, *parts: str | tuple[str, int], answer: int | None = None) -> Sentence:
        """Join parts into a sentence.

        Args:
            parts: Texts, or (noun phrase, index of the object).
            answer: Number of the first part that is to be predicted; None = none is.
        """
        ids, nouns, start = [BOS_ID], [], None
        for i, part in enumerate(parts):
            if i == answer:
                start = len(ids)
            ids += self.tokenizer(part if isinstance(part, str) else part[0])
            if not isinstance(part, str):
                nouns.append((len(ids) - 1, part[1]))
        ids.append(END_ID)
        return Sentence(tuple(ids), len(ids) if start is None else start, tuple(nouns))

    def _phrase(
        self, objects: Sequence[VisibleObject], index: int, rng: np.random.Generator
    ) -> tuple[str, int]:
        phrases = objects[index].phrases
        return phrases[rng.integers(len(phrases))], index

    def _point(self, objects: Sequence[VisibleObject], rng: np.random.Generator) -> Sentence:
        return self.compose("where is the", self._phrase(objects, int(rng.integers(len(objects))), rng), "?")

    def _mention(self, objects: Sequence[VisibleObject], rng: np.random.Generator) -> Sentence:
        """Noun phrases among meaningless words: other sentences hold words that this model has not learned."""
        count = 1 if self.source.longest_noise == 1 else int(rng.integers(1, 3))
        parts: list[str | tuple[str, int]] = []
        for index in rng.permutation(len(objects))[:count]:
            parts += [f"{self._noise(rng)} the", self._phrase(objects, int(index), rng)]
        return self.compose(*parts, self._noise(rng))

    def _noise(self, rng: np.random.Generator) -> str:
        """Meaningless words of one to three letters."""
        words = rng.integers(1, 4, int(rng.integers(1, self.source.longest_noise + 1)))
        return " ".join("".join(rng.choice(LETTERS, n)) for n in words)

    def _caption(self, objects: Sequence[VisibleObject], rng: np.random.Generator) -> Sentence:
        order = rng.permutation(len(objects))[:3]
        parts: list[str | tuple[str, int]] = ["there is a"]
        for place, index in enumerate(order):
            parts += [*(["and a"] if place else []), self._phrase(objects, int(index), rng)]
        return self.compose(*parts, ".", answer=1)

    def _relation(self, objects: Sequence[VisibleObject], rng: np.random.Generator) -> Sentence:
        """`what is left of the bowl ? the pear`: the nearest object on that side, or nothing."""
        shown = [i for i, t in enumerate(objects) if t.places[0]]
        centres = np.array([t.places[0] or (np.nan, np.nan) for t in objects])
        index = shown[rng.integers(len(shown))]
        away = centres - centres[index]
        side, axis, sign = (("left of", 0, -1), ("right of", 0, 1), ("behind", 1, -1), ("in front of", 1, 1))[
            rng.integers(4)
        ]
        on_side = (away[:, axis] * sign > 0.08) & (np.abs(away[:, axis]) > np.abs(away[:, 1 - axis]))
        asked = self._phrase(objects, index, rng)
        if not on_side.any():
            return self.compose(f"what is {side} the", asked, "?", "nothing", answer=3)
        found = int(np.where(on_side, (away**2).sum(1), np.inf).argmin())
        return self.compose(
            f"what is {side} the", asked, "? the", self._phrase(objects, found, rng), answer=3
        )

    def _exists(self, objects: Sequence[VisibleObject], rng: np.random.Generator) -> Sentence:
        if objects and rng.random() < 0.5:
            return self.compose(
                "is there a",
                self._phrase(objects, int(rng.integers(len(objects))), rng),
                "?",
                "yes",
                answer=3,
            )
        missing = self.source.absent([t.kind for t in objects], rng)
        return self.compose("is there a", missing, "?", "no", answer=3)

    def _count(self, objects: Sequence[VisibleObject], rng: np.random.Generator) -> Sentence:
        return self.compose("how many things are there ?", NUMBERS[len(objects)], answer=1)
