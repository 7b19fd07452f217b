"""Translation between two invented languages that differ in their words and in their word order."""

from __future__ import annotations

import random

from bench.pocket.language.instance import Item, Part, Split, choose, draw
from bench.pocket.language.lexicon import invented_words

OPTIONS = 4
LANGUAGES = ("sadri", "velu")
Meaning = tuple[int, int, int, int]  # subject's adjective, subject, verb, object


def _sample(rng: random.Random) -> Meaning:
    words = invented_words()
    nouns, verbs, adjectives = (len(words[f"sadri_{kind}"]) for kind in ("noun", "verb", "adjective"))
    return rng.randrange(adjectives), rng.randrange(nouns), rng.randrange(verbs), rng.randrange(nouns)


def sentence(meaning: Meaning, language: str) -> str:
    """Return a meaning in one language: Sadri says adjective noun verb noun, Velu says verb noun adjective noun."""
    words = invented_words()
    adjective, subject, action, target = meaning
    a, s = words[f"{language}_adjective"][adjective], words[f"{language}_noun"][subject]
    v, o = words[f"{language}_verb"][action], words[f"{language}_noun"][target]
    return f"{a} {s} {v} {o}" if language == "sadri" else f"{v} {s} {a} {o}"


def _question(meaning: Meaning, source: str, target: str) -> str:
    return f"{source} {sentence(meaning, source)} {target}"


def document(rng: random.Random, split: Split) -> list[Part]:
    """Return one sentence in one language and its translation."""
    source, target = rng.sample(LANGUAGES, 2)
    meaning = draw(rng, split, _sample, str)
    return [(_question(meaning, source, target), f"{sentence(meaning, target)} .")]


def item(rng: random.Random) -> Item:
    """Return an unseen sentence, its translation, two with one wrong word and one with two words exchanged."""
    source, target = rng.sample(LANGUAGES, 2)
    meaning = draw(rng, "test", _sample, str)
    right = sentence(meaning, target)
    other = _sample(rng)
    slots = [slot for slot in range(4) if other[slot] != meaning[slot]]
    while len(slots) < 2:
        other = _sample(rng)
        slots = [slot for slot in range(4) if other[slot] != meaning[slot]]
    wrong = []
    for slot in rng.sample(slots, 2):
        changed = [*meaning]
        changed[slot] = other[slot]
        wrong.append(sentence((changed[0], changed[1], changed[2], changed[3]), target))
    exchanged = right.split()
    first = rng.randrange(3)
    exchanged[first], exchanged[first + 1] = exchanged[first + 1], exchanged[first]
    return choose(rng, _question(meaning, source, target), right, [*wrong, " ".join(exchanged)], options=OPTIONS)
