"""Texts in pieces: seeds draw other windows of small files too, and texts of one study keep apart."""

from __future__ import annotations

import itertools
import json
import random

import pytest

from bench.text.apart import Apart
from bench.text.corpus import parse
from bench.text.cutting import Marked, packed
from bench.text.pieces import pieces
from methods.framework.errors import ConfigError
from tests.bench.text.test_corpus import checkpoint, flat, write_text  # noqa: F401

KIB = 1 << 10


def lines(size: int) -> str:
    """Return about ``size`` characters in lines that are all different."""
    return "".join(f"line {number} of a text\n" for number in range(size // 20))


@pytest.mark.parametrize(("size", "length", "at_least"), [(2 * KIB, 16, 12), (60 * KIB, 64, 100), (330 * KIB, 64, 500)])
def test_small_files_have_many_pieces(tmp_path, size, length, at_least):
    (tmp_path / "a.txt").write_text(lines(size))
    found = list(pieces(tmp_path / "a.txt", 0, length))
    assert len(found) >= at_least and min(map(len, sorted(found, key=len)[1:])) >= 8 * length
    assert sorted("".join(found).splitlines()) == sorted(lines(size).splitlines())


def test_pieces_are_no_longer_than_64_ki_characters(tmp_path):
    (tmp_path / "a.txt").write_text(lines(400 * KIB))
    longest = max(map(len, pieces(tmp_path / "a.txt", 0, 1 << 14)))
    assert 64 * KIB <= longest <= 64 * KIB + 30


def test_a_line_without_end_is_cut_between_words(tmp_path):
    words = " ".join(f"w{number}" for number in range(5000)) + "  \n"
    (tmp_path / "a.txt").write_text(words)
    drawn = [list(pieces(tmp_path / "a.txt", seed, 16)) for seed in range(2)]
    assert len(drawn[0]) > 100 and drawn[0] != drawn[1]
    assert all(piece.startswith((" ", "w0")) for piece in drawn[0])
    assert sorted(" ".join(drawn[0]).split()) == sorted(words.split())
    assert sum(map(len, drawn[0])) == len(words)


@pytest.mark.parametrize("words", [1000, 20000])
def test_seeds_draw_other_windows_of_small_files(checkpoint, tmp_path, words):  # noqa: F811
    write_text(tmp_path / "a.txt", words)
    drawn = [parse(str(tmp_path / "a.txt"), checkpoint, 4, 16, seed) for seed in range(5)]
    assert len({corpus.digest for corpus in drawn}) == 5
    for one, other in itertools.combinations(drawn, 2):
        assert len(set(one.windows) & set(other.windows)) <= 1


@pytest.mark.parametrize("form", ["text", "chat", "instructions"])
def test_windows_keep_apart_from_other_text(checkpoint, tmp_path, form):  # noqa: F811
    rng = random.Random(0)
    words = [" ".join(f"w{rng.randrange(100)}" for _ in range(100)) for _ in range(24)]
    path, spec = tmp_path / "a", f"{form}:{tmp_path / 'a'}"
    if form == "text":
        path.write_text("\n".join(words) + "\n")
        spec = str(path)
    elif form == "instructions":
        (tmp_path / "template").write_text("{instruction} {output}")
        spec += f":{tmp_path / 'template'}"
        path.write_text("".join(json.dumps({"instruction": "", "output": one}) + "\n" for one in words))
    else:
        checkpoint.path.joinpath("chat_template.jinja").write_text(
            "{% for m in messages %}{{ m.content }} {% endfor %}"
        )
        path.write_text("".join(json.dumps({"messages": [{"role": "user", "content": one}]}) + "\n" for one in words))
    first = parse(spec, checkpoint, 24, 36, 0)
    apart, ours = Apart(), Apart()
    for one in (apart, ours):
        one.add(first.windows, first.documents)
    plain, other = parse(spec, checkpoint, 16, 36, 1), parse(spec, checkpoint, 16, 36, 1, apart=apart)
    assert any(map(ours.passes_window, plain.windows)) and not any(map(ours.passes_window, other.windows))
    what = "windows" if form == "text" else "documents"
    with pytest.raises(ConfigError, match=rf"beside \d+ {what} that were passed over, since other text of the study"):
        parse(spec, checkpoint, 60, 36, 1, apart=apart)


def test_a_passage_is_seen_wherever_it_stands():
    rng = random.Random(1)
    text = [rng.randrange(1000) for _ in range(200)]
    apart = Apart()
    assert not apart.passes_window(text)
    apart.add([text[10:110]])
    assert apart.passes_window([*range(50), *text[40:56], *range(9)])
    assert not apart.passes_window([*range(50), *text[40:55], *range(9)])
    assert not apart.passes_window(text[110:])
    apart.add([text[150:160]])
    assert apart.passes_window([1, *text[150:160]])
    assert not apart.passes_window([*text[151:160], 0, 0])
    assert apart.passed == 2


def test_passed_windows_leave_no_gap_within_a_window():
    apart = Apart()
    apart.add([list(range(40, 80))])
    windows = packed([Marked(list(range(200)))], (), 3, 40, "numbers", apart, passages=True)
    assert [list(window.ids) for window in windows] == [list(range(start, start + 40)) for start in (0, 80, 120)]
