import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regard.core.errors import ConfigError
from regard.core.serial import from_json, load_json, to_json


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    name: Literal["red", "green"] = "red"


@dataclass(frozen=True)
class Outer:
    count: int
    inner: Inner = field(default_factory=Inner)
    pair: tuple[int, str] = (1, "a")
    many: tuple[Inner, ...] | None = None
    table: dict[str, int] = field(default_factory=dict)
    path: Path = Path("x")
    on: bool = False


inners = st.builds(Inner, rate=st.floats(allow_nan=False), name=st.sampled_from(["red", "green"]))
outers = st.builds(
    Outer,
    count=st.integers(),
    inner=inners,
    pair=st.tuples(st.integers(), st.text()),
    many=st.none() | st.lists(inners).map(tuple),
    table=st.dictionaries(st.text(), st.integers()),
    path=st.sampled_from([Path("x"), Path("a/b")]),
    on=st.booleans(),
)


@given(outers)
def test_what_is_written_is_read_back_equal(value: Outer) -> None:
    assert from_json(Outer, json.loads(json.dumps(to_json(value)))) == value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"count": 1, "iner": {}}, "unknown key 'iner' (did you mean 'inner'?)"),
        ({}, "missing key 'count'"),
        ({"count": "1"}, "Outer.count: expected int, found '1'"),
        ({"count": True}, "Outer.count: expected int, found True"),
        ({"count": 1, "inner": {"name": "gren"}}, "Outer.inner.name: 'gren' is not one of red, green (did you"),
        ({"count": 1, "pair": [1]}, "Outer.pair: expected 2 values, found 1"),
        ({"count": 1, "many": [{"rate": "x"}]}, "Outer.many[0].rate: expected float"),
        ({"count": 1, "table": {"a": None}}, "Outer.table.a: expected int"),
        ([], "Outer: expected dict"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(value: object, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        from_json(Outer, value)
    assert words in str(error.value)


def test_what_json_cannot_hold_is_refused() -> None:
    with pytest.raises(ConfigError, match="function cannot be written as JSON"):
        to_json({"f": test_what_json_cannot_hold_is_refused})


def test_files_that_are_not_json_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    for name, words in (("bad.json", "not readable as JSON"), ("none.json", "no such file")):
        with pytest.raises(ConfigError, match=words) as error:
            load_json(Outer, tmp_path / name)
        assert name in str(error.value)
