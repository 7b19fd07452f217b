"""The page of a method: formula, source, what differs from it, knobs, cost, and what it did on the models here."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from inspect import cleandoc
from pathlib import Path

from bench.site.committed_results import Cells, CommittedResults, markdown
from methods.framework.catalogue import CATALOGUE
from methods.framework.description import facts, knobs, summary
from methods.framework.errors import ConfigError
from methods.framework.method import Method

FORMULAS: Mapping[str, Mapping[str, str]] = tomllib.loads(
    (Path(__file__).parent / "formulas.toml").read_text(encoding="utf-8")
)
"""For each method ``formula``, in LaTeX, and maybe ``where``."""

LETTERS = {
    "g": "$g_j(x)$ is the weight that multiplies the output of expert $j$ (0 unless chosen)",
    "f": "$f_j(x)$ is the output of expert $j$",
    "T": "$T_j$ are the tokens that are routed to expert $j$",
    "n": "$n_j$ is their number",
    "W": "$W$ are the weights of a matrix of an expert",
    "Q": "$Q$ is rounding to the nearest of the values that a group may have",
}
"""What is explained on every page whose formula has the letter, beside what the method's own entry explains."""

COSTS = {
    "weights": "weights alone, no tokens",
    "routed": "one pass; experts run on their routed tokens",
    "sampled": "one pass; all experts run on the sampled tokens",
    "boundary": "one pass; hidden states are kept",
    "gradient": "forward and backward passes of the whole model",
}

Section = tuple[str, str, Cells]
"""Heading, sentence below it, table."""


def method_page(cls: type[Method], results: CommittedResults) -> str:
    """Return the page of a method as Markdown.

    Raises:
        ConfigError: the method has no formula in ``formulas.toml``.
    """
    if cls.name not in FORMULAS:
        raise ConfigError(
            f"method {cls.name} has no formula in bench/site/formulas.toml; add a table [{cls.name}] with `formula` in LaTeX"
        )
    return "\n".join([*_head(cls), *_told(cls), *_knobs(cls), *_cost(cls), *_results(cls, results)]) + "\n"


def _head(cls: type[Method]) -> Iterator[str]:
    yield from (f"# {cls.title}", "", f"`{cls.name}`: {_lower(summary(cls))}", "")
    formula = FORMULAS[cls.name]
    yield from ("## Formula", "")
    for part in formula["formula"].split(r"\qquad"):
        yield from ("$$", part.strip().removesuffix(","), "$$", "")
    where = [formula["where"]] if "where" in formula else []
    own = " ".join(where)
    where += [text for letter, text in LETTERS.items() if _has(formula["formula"], letter) and f"${letter}" not in own]
    if where:
        yield from (f"Where {'; '.join(where)}.", "")


def _has(formula: str, letter: str) -> bool:
    """Return whether a formula has a letter that is no part of a command of LaTeX, of a word or of an index."""
    plain = re.sub(r"\\(mathrm|text|operatorname)\{[^}]*\}|\\[A-Za-z]+", " ", formula)
    return re.search(rf"(?<![A-Za-z]){letter}(?![A-Za-z])", plain) is not None


def _told(cls: type[Method]) -> Iterator[str]:
    """Yield what the docstring says beyond its first sentence: the rest, *Source* and *Differs* under their own headings."""
    paragraphs = cleandoc(cls.__doc__ or "").split("\n\n")[1:]
    marked = {"Source": "## Source", "Differs": "## Differs from the source"}
    plain = [text for text in paragraphs if not text.startswith(("*Source*", "*Differs*"))]
    if plain:
        yield from ("## What it does", "", *("\n" + text if at else text for at, text in enumerate(plain)), "")
    for mark, heading in marked.items():
        found = [text.split(":", 1)[1].strip() for text in paragraphs if text.startswith(f"*{mark}*")]
        if mark == "Source" and not found:
            found = [f"{cls.source}."]
        if found:
            yield from (heading, "")
            yield from (f"{_capital(text)}\n" for text in found)
            if mark == "Differs":
                yield from (f"{_capital(text)}\n" for text in _inherited(cls, mark))
    yield from (f"The code is `{cls.__module__.replace('.', '/')}.py`.", "")


def _inherited(cls: type[Method], mark: str) -> Iterator[str]:
    """Yield the paragraphs with ``mark`` of the classes that a method is made from and that are no method themselves."""
    for owner in cls.__mro__[1:]:
        if issubclass(owner, Method) and "name" not in vars(owner) and owner.__doc__:
            for text in cleandoc(owner.__doc__).split("\n\n"):
                if text.startswith(f"*{mark}*"):
                    yield text.split(":", 1)[1].strip()


def _knobs(cls: type[Method]) -> Iterator[str]:
    rows = [["knob", "values", "default", "what it is"]]
    rows += [[f"`{one.name}`", one.values, f"`{one.default}`", _lower(one.meaning)] for one in knobs(cls)]
    yield from ("## Knobs", "", *markdown(rows), "")
    yield from ("```bash", *method_command(cls), "```", "")


def method_command(cls: type[Method]) -> list[str]:
    """Return the lines of a command that tries a method on a pocket model."""
    share = cls.model_fields["keep"].default
    return [
        f"moebench run --model pocket-mixtral --method {cls.name} --keep {share} \\",
        "  --sequences 16 --length 128 --tasks pocket --limit 50 --no-time",
    ]


def _cost(cls: type[Method]) -> Iterator[str]:
    plain = cls()
    told = facts(cls)
    yield from ("## Cost", "")
    yield f"It decides {told['decides']}. " + (
        "What is stored becomes smaller." if cls.stores_less else "What is stored keeps its size."
    )
    yield ""
    names = {name: "the decision" for name in sorted(plain.needs)}
    names |= {name: "both" if name in names else "writing" for name in sorted(plain.moments)}
    if names:
        rows = [["statistic", "read by", "shape", "cost", "what it is"]]
        rows += [_statistic(name, reader) for name, reader in names.items()]
        yield from ("With its default knobs it reads:", "", *markdown(rows), "")
    else:
        yield from ("With its default knobs it reads no statistics.", "")


def _statistic(name: str, reader: str) -> list[str]:
    spec = CATALOGUE[name]
    shape = f"({', '.join(spec.dims)})" if spec.dims else "one number"
    return [f"`{name}`", reader, shape, COSTS[spec.cost], _safe(spec.definition)]


def _results(cls: type[Method], results: CommittedResults) -> Iterator[str]:
    sections: list[Section] = [
        (
            "As a selection of experts",
            "Mean of ten tasks in %, three calibration seeds, ± half of a 95 % interval over them; the uncompressed model in "
            "brackets ([the study](../expert-selection.md)).",
            results.in_selection(cls),
        ),
        (
            "Beside other kinds of compression",
            "Mean of ten tasks in % ± one standard error, one seed; share of the bytes; the uncompressed model in brackets "
            "([slimming](../slimming.md)).",
            results.on_frontier(cls),
        ),
        ("In the demo", "200 items of each of ten tasks ([report](../results/demo.md)).", results.in_demo(cls)),
        (
            "On real language",
            "Mean of four whole test sets in % ± one standard error, on a model of 135 M parameters "
            "([report](../results/real-language/leaderboard.md)).",
            results.in_language(cls),
        ),
        (
            "Speed under vLLM",
            "Against the uncompressed model, more is faster, with 95 % intervals, on two processor cores "
            "([report](../results/speed/leaderboard.md), [what the marks mean](../timing.md)).",
            results.in_speed(cls),
        ),
    ]
    yield from ("## What it did on the models here", "")
    known = [section for section in sections if section[2]]
    if not known:
        yield from ("No table of `docs/results` has it yet.", "")
    for heading, sentence, cells in known:
        yield from (f"### {heading}", "", sentence, "", *markdown(cells), "")


def _safe(text: str) -> str:
    """Return text of a table's cell, where Markdown would take stars and angles for its own."""
    return text.replace("*", "\\*").replace("<", "&lt;")


def _capital(text: str) -> str:
    return text if text.startswith("arXiv") else text[:1].upper() + text[1:]


def _lower(text: str) -> str:
    """Return a sentence as the end of another one: its first letter small, unless a name begins with it."""
    return text[:1].lower() + text[1:] if text[1:2].islower() and not re.match(r"[A-Z][a-z]*[A-Z]", text) else text


def methods_index(classes: Mapping[str, type[Method]], page: str) -> str:
    """Return the page of all methods, where names in its table lead to their own pages.

    Raises:
        ConfigError: the table leaves a method out.
    """

    def linked(match: re.Match[str]) -> str:
        return f"[`{match[1]}`]({match[1]}.md)" if match[1] in classes else match[0]

    lines = [
        "|".join([part[0], re.sub(r"`([a-z0-9_]+)`", linked, part[1]), *part[2:]])
        if line.startswith("| `") and (part := line.split("|"))
        else line
        for line in page.splitlines()
    ]
    text = "\n".join(lines)
    if missing := [name for name in classes if f"({name}.md)" not in text]:
        raise ConfigError(f"docs/methods/index.md leaves out {', '.join(missing)}; add each to a row of its table")
    return text + "\n\n" + toctree(list(classes))


def toctree(names: Sequence[str]) -> str:
    """Return Sphinx's list of the pages below one, out of sight, which its navigation is made of."""
    return "\n".join(["```{toctree}", ":hidden:", "", *names, "```", ""])
