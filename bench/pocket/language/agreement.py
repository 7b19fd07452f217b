"""Agreement of subject and verb, with nouns of the other number in between."""

from __future__ import annotations

import random

from bench.pocket.language.instance import Item, Part, Split, choose, draw
from bench.pocket.language.lexicon import SUBJECTS, THINGS, VERB_STEMS, plural, singular_verb

OPTIONS = 2
PREPOSITIONS = ("near", "by", "with")
Sentence = tuple[str, bool, str]


def _noun_phrase(rng: random.Random, nouns: tuple[str, ...], is_plural: bool) -> str:
    noun = rng.choice(nouns)
    return f"the {plural(noun) if is_plural else noun}"


def _sample(rng: random.Random) -> Sentence:
    subject_is_plural = rng.random() < 0.5
    words = [_noun_phrase(rng, SUBJECTS, subject_is_plural)]
    for _ in range(rng.choice((1, 1, 2))):
        attractor_is_plural = subject_is_plural if rng.random() < 0.3 else not subject_is_plural
        words += [rng.choice(PREPOSITIONS), _noun_phrase(rng, THINGS, attractor_is_plural)]
    return " ".join(words), subject_is_plural, rng.choice(VERB_STEMS)


def _key(sentence: Sentence) -> str:
    return sentence[0]


def verb(stem: str, is_plural: bool) -> str:
    """Return the form of a verb for the number of its subject."""
    return stem if is_plural else singular_verb(stem)


def document(rng: random.Random, split: Split) -> list[Part]:
    """Return two sentences."""
    sentences = [draw(rng, split, _sample, _key) for _ in range(2)]
    return [(subject, f"{verb(stem, is_plural)} .") for subject, is_plural, stem in sentences]


def item(rng: random.Random) -> Item:
    """Return an unseen subject with attractors and the two forms of a verb."""
    subject, is_plural, stem = draw(rng, "test", _sample, _key)
    return choose(rng, subject, verb(stem, is_plural), [verb(stem, not is_plural)], options=OPTIONS)
