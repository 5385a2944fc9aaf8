"""Questions on passages: every answer stands where it is said to, or is a fault."""

import gzip
import json
from pathlib import Path

import pytest

from regard.core.errors import DataError
from regard.data.source import Fault, Row, values
from regard.data.squad import Answer, Question, questions

XQUAD = Path(__file__).parents[3] / "shared/data/xquad-en"
CONTEXT = "Ada Lovelace wrote of the Analytical Engine \N{SNOWMAN}."


def asked(name="q", answer="Ada", start=0, **more):
    return {"id": name, "question": "Who?", "answers": [{"text": answer, "answer_start": start}], **more}


def store(path, content):
    path.write_bytes(gzip.compress(json.dumps(content).encode()))
    return path


def file(*qas):
    return {"version": "v2.0", "data": [{"title": "x", "paragraphs": [{"context": CONTEXT, "qas": list(qas)}]}]}


def test_questions_with_and_without_answers_are_read(tmp_path):
    impossible = {"id": "r", "question": "Why?", "answers": [], "is_impossible": True, "plausible_answers": [{}]}
    path = store(
        tmp_path / "a.json.gz", file(asked(), impossible, asked("s", "\N{SNOWMAN}.", CONTEXT.index("\N{SNOWMAN}")))
    )
    assert list(values(questions(path))) == [
        Question("q", "Who?", CONTEXT, (Answer("Ada", 0),)),
        Question("r", "Why?", CONTEXT, (), is_impossible=True),
        Question("s", "Who?", CONTEXT, (Answer("\N{SNOWMAN}.", 44),)),
    ]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (asked(answer="Ada", start=1), "the answer 'Ada' is not at 1, where the context has 'da '"),
        (asked(answer="", start=0), "the answer '' is not at 0"),
        (asked(answer=".", start=-1), "the answer '.' is not at -1"),
        (asked(answer="Ada", start="0"), "'answer_start' should be a whole number, found '0'"),
        (asked(answer="Ada", start=True), "'answer_start' should be a whole number, found True"),
        (asked(answer=3), "'text' should be text, found int"),
        (asked(is_impossible=True), "'q' has 1 answers, and is_impossible is true"),
        (asked(is_impossible="no"), "'is_impossible' should be true or false, found 'no'"),
        ({**asked(), "answers": []}, "'q' has no answers, and is_impossible is false"),
        ({"id": "q", "question": "Who?"}, "missing key 'answers'"),
        ({"id": 3, "question": "Who?", "answers": []}, "'id' should be text, found int"),
        ("q", "expected a JSON object, found str"),
    ],
)
def test_a_wrong_question_is_a_fault_among_good_ones(tmp_path, wrong, says):
    path = store(tmp_path / "a.json", file(asked("one"), wrong, asked("three")))
    rows = list(questions(path))
    assert [row.value.id for row in rows if isinstance(row, Row)] == ["one", "three"]
    assert str(rows[1]).startswith(f"{path}, question 2: ")
    assert says in str(rows[1])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([], ", line 1: expected a JSON object, found list"),
        ({"dat": []}, ", line 1: missing key 'data' (did you mean 'dat'?)"),
        ({"data": {}}, ", line 1: 'data' should be a list, found dict"),
        ({"data": [{"title": "x"}]}, ", article 1: missing key 'paragraphs'"),
        ({"data": [{"paragraphs": [{"qas": []}]}]}, ", paragraph 1: missing key 'context'"),
    ],
)
def test_a_file_of_another_shape_says_where_it_differs(tmp_path, content, says):
    path = store(tmp_path / "a.json", content)
    (fault,) = questions(path)
    assert isinstance(fault, Fault)
    assert f"{path}{says}" in str(fault)


def test_what_is_no_json_is_a_fault_with_its_line(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'{"data":\n [}')
    assert [str(row) for row in questions(path)] == [f"{path}, line 2: not valid JSON (Expecting value at column 3)"]
    path.write_bytes(b'{"data":\n\n "\xff"}')
    assert [row.place.number for row in questions(path)] == [3]
    path.write_bytes(b"[" * 200_000)
    assert "nested too deep" in str(next(questions(path)))
    path.write_bytes(b"")
    with pytest.raises(DataError, match="empty"):
        list(questions(path))


@pytest.mark.skipif(not XQUAD.exists(), reason="the XQuAD files are not beside this checkout")
@pytest.mark.parametrize(("name", "count"), [("train", 872), ("val", 160), ("test", 158)])
def test_xquad_is_read_whole(name, count):
    assert len(list(values(questions(XQUAD / f"{name}.json.gz")))) == count
