"""What the browser may say: every malformed message is refused with a text that names what is wrong."""

from __future__ import annotations

import json

import pytest

from tracker_ros.geometry.boxes import Box
from tracker_ros.remote.page.commands import (
    MAX_BYTES,
    Heatmap,
    InvalidMessage,
    Pause,
    Seen,
    Select,
    Start,
    Stop,
    parse,
)

START = {"do": "start", "id": 7, "stamp": "1700000000123456789", "target": "car"}


def message(**fields):
    return json.dumps(fields)


def test_reads_each_command():
    assert parse(message(do="seen", n=3)) == Seen(3)
    box = Start(1700000000123456789, "car", box=Box(1.5, 2.0, 30.0, 40.0))
    assert parse(message(**START, box=[1.5, 2, 30, 40])) == (7, box)
    assert parse(message(**START, point=[3, 4])) == (7, Start(1700000000123456789, "car", point=(3.0, 4.0)))
    assert parse(message(do="stop", id=0, target="")) == (0, Stop(""))
    assert parse(message(do="pause", id=1, paused=True)) == (1, Pause(True))
    assert parse(message(do="tracker", id=1, name="csrt")) == (1, Select("csrt"))
    assert parse(message(do="heatmap", id=1, on=False)) == (1, Heatmap(False))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not JSON"),
        ('{"do": "sta', "not JSON"),
        ("[" * 2000, "not JSON"),
        (" " * (MAX_BYTES + 1), "longer than"),
        ("é" * MAX_BYTES, "longer than"),
        ("[]", "must be a JSON object"),
        ('"stop"', "must be a JSON object"),
        (message(do="seen"), "'n' must be"),
        (message(do="seen", n=-1), "'n' must be"),
        (message(do="seen", n=1.5), "'n' must be"),
        (message(do="seen", n=True), "'n' must be"),
        (message(do="stop", target="car"), "'id' must be"),
        (message(do="stop", id="7", target="car"), "'id' must be"),
    ],
)
def test_refuses_what_is_no_request(text: str, said: str):
    with pytest.raises(InvalidMessage, match=said) as caught:
        parse(text)
    assert caught.value.request is None


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"do": "format"}, "'do' must be one of start, stop"),
        ({"do": ["stop"]}, "'do' must be one of"),
        ({"do": "stop"}, "'target' must be a name"),
        ({"do": "stop", "target": "a\x00b"}, "'target' must be a name"),
        ({"do": "stop", "target": "a" * 65}, "'target' must be a name"),
        ({"do": "stop", "target": "\ud800"}, "'target' must be a name"),
        ({"do": "pause", "paused": "yes"}, "'paused' must be true or false"),
        ({"do": "pause", "paused": 1}, "'paused' must be true or false"),
        ({"do": "tracker", "name": {"a": 1}}, "'name' must be a name"),
        ({"do": "start", "target": "car", "box": [0, 0, 9, 9]}, "'stamp' must be"),
        ({**START, "stamp": 17, "box": [0, 0, 9, 9]}, "'stamp' must be"),
        ({**START, "stamp": "-5", "box": [0, 0, 9, 9]}, "'stamp' must be"),
        ({**START, "stamp": "٣", "box": [0, 0, 9, 9]}, "'stamp' must be"),
        ({**START, "stamp": "9" * 4000, "box": [0, 0, 9, 9]}, "'stamp' must be|longer than"),
        ({**START}, "either 'box' or 'point'"),
        ({**START, "box": [0, 0, 9, 9], "point": [0, 0]}, "either 'box' or 'point'"),
        ({**START, "box": [0, 0, 9]}, "4 finite numbers"),
        ({**START, "box": "0,0,9,9"}, "4 finite numbers"),
        ({**START, "box": [0, 0, "9", 9]}, "4 finite numbers"),
        ({**START, "box": [0, 0, True, 9]}, "4 finite numbers"),
        ({**START, "box": [0, 0, 10**400, 9]}, "4 finite numbers"),
        ({**START, "box": [0, 0, None, 9]}, "4 finite numbers"),
        ({**START, "point": [1e9, 0]}, "2 finite numbers"),
    ],
)
def test_refuses_a_request_and_says_which(fields: dict, said: str):
    with pytest.raises(InvalidMessage, match=said) as caught:
        parse(json.dumps({"id": 7, **fields}))
    assert caught.value.request in (7, None)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_refuses_numbers_that_are_none(value: str):
    text = json.dumps({**START, "box": [0, 0, 9, 123]}).replace("123]", f"{value}]")
    with pytest.raises(InvalidMessage, match=r"not a number|finite numbers"):
        parse(text)
