"""Every word of the language, by class, and the fixed vocabulary order."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence

PAD, BOUNDARY, UNKNOWN = "<pad>", "<s>", "<unk>"
SPECIALS = (PAD, BOUNDARY, UNKNOWN)

LEXICON_SEED = 20240
_ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "dr", "kr", "st", "tr", "sh")
_NUCLEI = ("a", "e", "i", "o", "u", "ai", "ou")
_CODAS = ("", "", "l", "n", "r", "s", "k", "m")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


DIGITS = tuple("0123456789")
FUNCTION_WORDS = _words(
    """. ; = + - the of is in near by with lives home works as job keeps pet eats food lies land river
    on sells ware stands goes put where copy sort sadri velu set add take print"""
)

JOBS = _words("baker smith weaver miller sailor tailor hunter potter mason scribe barber farmer")
PETS = _words("parrot rabbit falcon turtle lizard ferret donkey pigeon hamster otter gecko mouse")
FOODS = _words("plums bread beans honey olives cheese onions figs rice soup pears nuts")
WARES = _words("wool salt glass paper silk copper timber wine ropes amber tin coal")

SUBJECTS = _words("author girl boy pilot king queen doctor nurse clerk dancer poet judge cook driver singer teacher")
THINGS = _words("tree house car boat lamp chair clock gate bridge tower wagon barrel")
VERB_STEMS = _words("run walk sleep laugh wait sing fall smile jump shout rest swim")

LETTERS = tuple("abcdefghijkl")
VARIABLES = tuple("xyz")
BRACKETS = (("(", ")"), ("[", "]"), ("{", "}"), ("<", ">"))

ACTORS = _words("tom mia sam")
OBJECTS = _words("key ball")
ROOMS = _words("cellar attic kitchen garden hall office bedroom garage")


def _syllable(rng: random.Random, *, closed: bool) -> str:
    return rng.choice(_ONSETS) + rng.choice(_NUCLEI) + (rng.choice(_CODAS) if closed else "")


@functools.cache
def invented_words() -> dict[str, tuple[str, ...]]:
    """Return the invented words by class; no word is in two classes."""
    rng = random.Random(LEXICON_SEED)
    taken = {word for group in _REAL_GROUPS for word in group}
    sizes = {
        "first": 16, "last": 16, "city": 24, "land": 6, "river": 12,
        "sadri_noun": 20, "sadri_verb": 10, "sadri_adjective": 10,
        "velu_noun": 20, "velu_verb": 10, "velu_adjective": 10,
    }  # fmt: skip
    words: dict[str, tuple[str, ...]] = {}
    for group, size in sizes.items():
        found: list[str] = []
        while len(found) < size:
            word = _syllable(rng, closed=False) + _syllable(rng, closed=True)
            if word not in taken:
                taken.add(word)
                found.append(word)
        words[group] = tuple(found)
    return words


def plural(noun: str) -> str:
    """Return the plural of a noun of the agreement domain."""
    return noun + "s"


def singular_verb(stem: str) -> str:
    """Return the third-person singular of a verb of the agreement domain."""
    return stem + "s"


_REAL_GROUPS: tuple[Sequence[str], ...] = (
    DIGITS, FUNCTION_WORDS, JOBS, PETS, FOODS, WARES,
    SUBJECTS, [plural(noun) for noun in SUBJECTS], THINGS, [plural(noun) for noun in THINGS],
    VERB_STEMS, [singular_verb(stem) for stem in VERB_STEMS],
    LETTERS, VARIABLES, [symbol for pair in BRACKETS for symbol in pair], ACTORS, OBJECTS, ROOMS,
)  # fmt: skip


@functools.cache
def vocabulary() -> dict[str, int]:
    """Return the id of every word; ids are dense and never depend on a seed given by a user."""
    groups = [*_REAL_GROUPS, *invented_words().values()]
    ordered = dict.fromkeys([*SPECIALS, *(word for group in groups for word in group)])
    return {word: index for index, word in enumerate(ordered)}


def encode(text: str) -> list[int]:
    """Return the token ids of a text whose words stand apart by white space."""
    ids = vocabulary()
    return [ids[word] for word in text.split()]
