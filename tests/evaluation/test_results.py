"""The results file: rows come back as they were, and what is wrong with a file is said, never mended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tokenzoo.errors import BadArgumentError
from tokenzoo.evaluation import Key, ResultsFile, Row

ROW = Row(
    Key("digits", "vit", "tome", 0.25), {"seed": 0}, scores={"all": [1, 0]}, time=[0.5, 0.4, 0.6]
)
REFUSED = Row(Key("digits", "vit", "fastv", 16), {"seed": 0}, "refused", "no \n language model")
WHOLE = ROW.line() + REFUSED.line()


def written(tmp_path: Path, content: bytes | str) -> ResultsFile:
    path = tmp_path / "results.jsonl"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return ResultsFile(path)


def test_rows_come_back(tmp_path: Path) -> None:
    file = ResultsFile(tmp_path / "results.jsonl")
    assert file.rows() == []
    for row in (ROW, REFUSED):
        file.append(row)
    assert file.rows() == [ROW, REFUSED]
    assert [type(one) for one in file.rows()[0].scores["all"]] == [int, int]


def test_a_row_of_the_first_files_has_no_command(tmp_path: Path) -> None:
    assert written(tmp_path, ROW.line().replace(', "command": ""', "")).rows() == [ROW]


def test_one_token_and_all_of_them_are_two_keys() -> None:
    one, all_ = (Key("digits", "vit", "tome", keep) for keep in (1, 1.0))
    assert one.label != all_.label


DAMAGED = {
    "cut off": (WHOLE[:-30], 2),
    "without its line end": (WHOLE[:-1], 2),
    "not JSON": (ROW.line() + "tome 0.25\n" + REFUSED.line(), 2),
    "not a row": (WHOLE + "[]\n", 3),
    "an empty line": ("\n" + WHOLE, 1),
    "a field is missing": (ROW.line().replace('"facts"', '"fact"'), 1),
    "of a later format": (ROW.line().replace('"format": 1', '"format": 2'), 1),
    "of another status": (ROW.line().replace('"ok"', '"done"'), 1),
    "a score is text": (ROW.line().replace("[1, 0]", '[1, "0"]'), 1),
    "a score is not finite": (ROW.line().replace("[1, 0]", "[1, NaN]"), 1),
    "scores without a name": (ROW.line().replace('{"all": [1, 0]}', "[[1, 0]]"), 1),
    "without scores": (ROW.line().replace('{"all": [1, 0]}', "{}"), 1),
    "a part of a time": (ROW.line().replace("[0.5, 0.4, 0.6]", "[0.5]"), 1),
    "options are not JSON": (ROW.line().replace('"options": "{}"', '"options": "lam"'), 1),
    "a budget is text": (ROW.line().replace('"keep": 0.25', '"keep": "0.25"'), 1),
    "nested": (WHOLE + "[" * 100_000 + "\n", 3),
    "twice": (WHOLE + ROW.line(), 3),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_line_is_named_and_kept(tmp_path: Path, name: str) -> None:
    content, number = DAMAGED[name]
    file = written(tmp_path, content)
    with pytest.raises(BadArgumentError, match=f"line {number} of .*results.jsonl"):
        file.check({})
    assert file.path.read_text() == content


def test_what_is_not_text(tmp_path: Path) -> None:
    with pytest.raises(BadArgumentError, match="cannot be read"):
        written(tmp_path, b"\xff\xfe").rows()


def test_rows_of_other_samples_are_not_mixed(tmp_path: Path) -> None:
    file = written(tmp_path, WHOLE)
    assert list(file.check({("digits", "vit"): {"seed": 0}})) == [ROW.key, REFUSED.key]
    assert len(file.check({("dense", "vit"): {"seed": 1}})) == 2
    with pytest.raises(BadArgumentError, match="Name another file"):
        file.check({("digits", "vit"): {"seed": 1}})


def test_nan_is_not_written() -> None:
    with pytest.raises(ValueError, match="JSON"):
        replace(ROW, scores={"all": [float("nan")]}).line()
