"""A model beside the pocket models: words fitted to its shape, and sections that the page takes up."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.papers.filling import fill
from analysis.papers.tables import BESIDE
from methods.framework.errors import UnknownNameError
from sweeps.papers.asked import asked
from sweeps.papers.beside import read_beside, spelled, write_beside
from sweeps.papers.fitted import Shape, fitted_words
from sweeps.papers.laid_out import sheet
from sweeps.papers.shelf import read_paper
from sweeps.papers.stand_in import conditions, stand_ins
from tests.support.records import record

SHAPE = Shape(experts=16, layers=30, blocks=30)


def test_counts_steps_and_labels_are_those_of_the_model() -> None:
    found = fitted_words(read_paper("holistic").file, "deepseek", SHAPE)
    labels = {"E": "E4/16", "L": "L4/30", "B": "B4/30"}  # 25 % of the experts, 15 % and 1/7 of the layers
    steps = {"expert_step": 2, "band_step": 4, "expert_most": 14, "drop_step": 2, "drop_most": 15}
    assert found == {**labels, **steps, "experts": 16, "layers": 30, "blocks": 30}


def test_a_model_of_the_paper_s_own_shape_keeps_the_paper_s_words() -> None:
    paper = read_paper("holistic").file
    words = paper.models["deepseek"].words
    found = fitted_words(paper, "deepseek", Shape(experts=64, layers=27, blocks=28))
    assert found and found == {word: words[word] for word in found}


def test_of_several_places_the_first_that_a_table_has_counts() -> None:
    paper = read_paper("holistic")
    exhibit = paper.exhibits["table-2"]
    places = f"mistral,{exhibit.models[0]}"
    (one,) = stand_ins(paper.file, exhibit, "folder/own", places, "mixtral", SHAPE)
    assert one.key == next(key for key in places.split(",") if key in exhibit.models)
    with pytest.raises(UnknownNameError, match="model of this paper"):
        stand_ins(paper.file, exhibit, "folder/own", "nobody", "mixtral", SHAPE)


def test_a_linked_folder_keeps_its_own_name_and_is_found_under_that_of_the_folder(tmp_path: Path) -> None:
    paper = read_paper("holistic")
    (tmp_path / "real").mkdir()
    link = tmp_path / "linked"
    link.symlink_to("real")
    (one,) = stand_ins(paper.file, paper.exhibits["table-3"], str(link), "mixtral", "mixtral", SHAPE)
    assert (one.name, one.recorded) == ("linked", "real")
    settings = conditions(paper, paper.exhibits["table-3"], False, {})
    (block,) = sheet(
        paper, "table-3", [(one, asked(paper.file, paper.exhibits["table-3"], one, settings))], settings
    ).blocks
    (base,) = [row for row in fill(block, [record(None, "real")]).rows if row.line.method is None]
    assert base.record is not None and block.model == "linked"
    assert stand_ins(paper.file, paper.exhibits["table-3"], "hub/own", "mixtral", None)[0].recorded == "own"


def test_sections_are_taken_up_with_addresses_below_the_model(tmp_path: Path) -> None:
    section = f"### Own\n\n![a]({BESIDE}figure.svg)\n"
    written = write_beside(section, {"figure.svg": b"<svg/>"}, "figure-4", tmp_path / "own", "A small model.\n")
    assert sorted(path.name for path in written) == ["about.md", "figure-4.md", "figure.svg"]
    (found,) = read_beside(tmp_path)
    assert (found.name, found.about) == ("own", "A small model.")
    assert found.sections == {"figure-4": f"### Own\n\n![a]({BESIDE}own/figure.svg)\n"}


def test_the_command_names_folders_by_their_last_part(tmp_path: Path) -> None:
    folder = tmp_path / "secret" / "own"
    folder.mkdir(parents=True)
    text = tmp_path / "secret" / "c4.txt"
    text.write_text("text")
    given = {"calibration": {"corpus": str(text), "length": 512}, "evaluation": {"tasks": ["a", "b"]}}
    command = spelled("holistic", "table-3", str(folder), "deepseek", None, given)
    assert command == (
        "moebench paper holistic table-3 --model own --place deepseek --corpus c4.txt --length 512 --tasks a,b"
    )
