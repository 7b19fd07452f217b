"""Channels as text: both ways against lists, the shorter one taken, files with lists still read, the digest that of lists."""

import base64
import json
import random

import pytest

from methods.framework.channel_text import BITS, MOST, channel_text, channels_of
from methods.framework.errors import PlanError
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan

WORKED = Plan(family="toy", layers=(LayerPlan(), LayerPlan(experts=(0, 2), channels=((0, 1, 2, 5), (3,)))))


@pytest.mark.parametrize(
    ("channels", "text"),
    [((0,), "0"), ((0, 1, 2, 5), "0-2,5"), ((7, 9, 10), "7,9-10"), (tuple(range(768)), "0-767")],
)
def test_few_ranges_are_written_as_ranges(channels: tuple[int, ...], text: str) -> None:
    assert channel_text(channels) == text
    assert channels_of(text) == channels


def test_scattered_channels_are_bits_the_lowest_first() -> None:
    channels = (1, *range(3, 40, 2))
    text = channel_text(channels)
    assert base64.b64decode(text.removeprefix(BITS)) == bytes([0b10101010] * 5)
    assert channels_of(text) == channels


def test_random_channels_come_back_in_little_room() -> None:
    rng = random.Random(0)
    for width in (1, 8, 9, 64, 768):
        for share in (0.02, 0.3, 0.5, 0.97):
            channels = tuple(c for c in range(width) if rng.random() < share) or (width - 1,)
            text = channel_text(channels)
            assert channels_of(text) == channels
            assert len(text) <= len(",".join(map(str, channels)))
            assert len(text) <= len(BITS) + 4 * -(-width // 24)


def test_a_plan_has_the_digest_of_its_lists_and_reads_files_that_state_them() -> None:
    lists = '{"family":"toy","layers":[{},{"channels":[[0,1,2,5],[3]],"experts":[0,2]}],"schema":1}'
    assert json.loads(WORKED.dumps())["layers"][1]["channels"] == ["0-2,5", "3"]
    assert WORKED.digest == "d8ddd8b08f897b7cb6bb11e41002ea2e9dce16be6a02e5b4e0ef6dcfa824e207", "SHA-256 of the lists"
    assert Plan.loads(lists) == Plan.loads(WORKED.dumps()) == WORKED
    assert Plan.loads(lists.replace("[3]", '"3"')) == WORKED, "ways may stand beside each other"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "stated like"),
        ("3-", "stated like"),
        ("-3", "stated like"),
        ("1,,2", "stated like"),
        ("1,²", "stated like"),
        ("5-3", "ascend"),
        ("3,3", "ascend"),
        (f"0-{MOST}", "ascend and lie below"),
        (BITS + "AB", "base64"),
        (BITS + base64.b64encode(bytes(MOST // 8 + 1)).decode(), "at most"),
        (BITS + "AA==", "one or more"),
    ],
)
def test_other_texts_are_refused(text: str, reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        Plan.loads(json.dumps({"schema": 1, "family": "toy", "layers": [{"channels": [text]}]}))
