"""The command line: what is typed is read right, what is shown is what was measured, errors are plain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tokenzoo
from tests.cli.calling import call, done
from tests.cli.calling import small_vit as small_vit
from tokenzoo.cli.demo_rows import margin
from tokenzoo.cli.options import (
    KeepOption,
    is_control,
    output_file,
    parse_keep,
    parse_keeps,
    split,
)
from tokenzoo.errors import BadArgumentError, UnknownNameError
from tokenzoo.tools import digits

GOOD = {"64": 64, " 64 ": 64, "1": 1, "1.0": 1.0, "100%": 1.0, "0.25": 0.25, ".25": 0.25}
GOOD |= {"25%": 0.25, "12.5%": 0.125, "1%": 0.01}
BAD = ["", "0", "0.0", "0%", "-3", "+3", "1.5", "101%", "a", "0,25", "25 %", "%", "1e-1", "nan"]
BAD += ["inf", "1_000", "٣", "0x10", "64.5", "."]


@pytest.mark.parametrize(("text", "value"), GOOD.items())
def test_a_keep_is_a_count_or_a_fraction(text: str, value: float) -> None:
    keep = parse_keep(text)
    assert keep == KeepOption(text.strip(), value)
    assert type(keep.value) is type(value)  # 1 is one token, and 1.0 all of them


@pytest.mark.parametrize("text", BAD)
def test_a_bad_keep_is_named(text: str) -> None:
    with pytest.raises(BadArgumentError) as error:
        parse_keep(text)
    assert f"keep {text!r}; " in str(error.value)


def test_keeps_come_in_lists_and_repeated_each_once() -> None:
    found = parse_keeps(["0.5, 25%", "16", "0.25", "1", "1.0"])
    assert [keep.text for keep in found] == ["0.5", "25%", "16", "1", "1.0"]


@pytest.mark.parametrize("texts", [[], [""], ["a,,b"], ["a,"], [" , "]])
def test_an_empty_item_is_an_error(texts: list[str]) -> None:
    with pytest.raises(BadArgumentError, match="empty item"):
        split(texts, "recipes")


def test_controls_are_known_by_where_they_come_from() -> None:
    controls = {name for name in tokenzoo.list_recipes() if is_control(name)}
    assert controls == {"random", "uniform", "pool", "downsample", "every_kth_frame"}
    with pytest.raises(UnknownNameError, match="did you mean 'random'"):
        is_control("randon")


def test_a_file_that_cannot_be_written_is_an_error_now(tmp_path: Path) -> None:
    assert output_file(tmp_path / "a.PNG", (".png",)) == tmp_path / "a.PNG"
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(BadArgumentError, match="is a folder"):
        output_file(tmp_path / "folder.png", (".png",))


def test_describe_prints_what_describe_returns() -> None:
    for name in ("evoprune", "random", "similarity"):
        assert done("describe", name).output == tokenzoo.describe(name)


def test_other_errors_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ZeroDivisionError(name)

    monkeypatch.setattr("tokenzoo.cli.describe.describe", broken)
    assert isinstance(call("describe", "tome").exception, ZeroDivisionError)


def test_help_and_version() -> None:
    for arguments in ([], ["--help"]):
        output = call(*arguments).output
        assert all(f"  {name} " in output for name in ("demo", "list", "describe"))
    assert call("--version").output == f"tokenzoo {tokenzoo.__version__}\n"
    assert call("dmo").exit_code == 2


def test_demo_shows_and_writes_what_it_measured(small_vit: Any, tmp_path: Path) -> None:
    out, figures = tmp_path / "a.png", tmp_path / "a.json"
    done(
        *("demo", "--keep", "0.25,3", "--keep", "25%", "--recipes", "evoprune,random"),
        *("--recipes", "downsample,visionzip", "--images", 7, "--rounds", 3, "--threads", 1),
        *("--seed", 5, "--out", out, "--json", figures),
    )
    assert out.read_bytes().startswith(b"\x89PNG")
    content = json.loads(figures.read_text())
    rows, recipes = content["rows"], ("evoprune", "random", "downsample", "visionzip")
    assert [(row["recipe"], row["keep"]) for row in rows] == [
        ("bare model", None),
        *((recipe, keep) for keep in (0.25, 3) for recipe in recipes),
    ]
    assert [row["control"] for row in rows] == [False, *(False, True, True, False) * 2]

    # The figures are those of the library, on the collages of this seed.
    data = digits.collages("test", 7, seed=5)
    for row in rows:
        if row["problem"]:
            continue
        if row["keep"] is None:
            flops, tokens, logits = 1.0, 64, small_vit(data.images)
        else:
            zoo = tokenzoo.build(row["recipe"], keep=row["keep"])
            with zoo.attach(small_vit) as attached:
                flops, tokens = attached.plan().flops, attached.plan().features
                logits = small_vit(data.images)
        assert (row["flops"], row["tokens"]) == (flops, tokens)
        right = digits.accuracy(logits, data)
        assert row["marked"]["value"] == pytest.approx(right["marked"])
        assert row["counts"]["value"] == pytest.approx(right["counts"])
        difference = row["counts"]["value"] - rows[0]["counts"]["value"]
        assert row["counts"]["difference"] == pytest.approx(difference)
        assert len(row["time"]["rounds"]) == 3

    assert content["threads"] == 1
    assert set(content["versions"]) == {"tokenzoo", "torch", "timm", "python"}
    assert content["command"] == (
        "tokenzoo demo --keep 0.25,3 --recipes evoprune,random,downsample,visionzip --images 7 "
        "--rounds 3 --seed 5 --threads 1"
    )


@pytest.mark.usefixtures("small_vit")
def test_what_cannot_be_run_is_a_row_and_not_the_end(tmp_path: Path) -> None:
    result = done(
        *("demo", "--keep", "0.25,3", "--recipes", "evoprune,random,divprune"),
        *("--images", 3, "--rounds", 1, "--out", tmp_path / "a.png"),
    )
    lines = result.stdout.splitlines()
    unreached = next(line for line in lines if line.startswith("evoprune") and " 3 " in line)
    assert unreached.split() == ["evoprune", "3", "[2]", "out", "of", "reach"]
    assert any(line.startswith("[2] keep=3 of 64 tokens is out of reach") for line in lines)
    misfits = [line for line in lines if line.startswith("divprune")]
    assert len(misfits) == 2
    assert all("[1]" in line and "does not fit" in line for line in misfits)
    assert any(line.startswith("[1] this recipe works at Stage.PROJECTED") for line in lines)
    controls = [line for line in lines if line.startswith("random (control)")]
    assert [line.split()[2] for line in controls] == ["0.25", "3"]
    assert "…" not in result.stdout  # nothing was cut off
    assert all(len(line) <= 80 for line in lines if not line.startswith("Picture"))


@pytest.mark.usefixtures("small_vit")
def test_keeping_everything_is_the_bare_model(tmp_path: Path) -> None:
    figures = tmp_path / "a.json"
    done(
        *("demo", "--keep", "100%", "--images", 3, "--rounds", 1),
        *("--out", tmp_path / "a.png", "--json", figures),
    )
    rows = json.loads(figures.read_text())["rows"]
    assert len(rows) == 7
    for row in rows:
        assert (row["tokens"], row["flops"], row["marked"]) == (64, 1.0, rows[0]["marked"])


def test_the_margin_is_the_binomial_one() -> None:
    assert margin(0.5, 10_000) == pytest.approx(0.0098, abs=1e-5)
    assert margin(1.0, 100) > 0  # a hundred right answers are no proof
    assert margin(0.9, 400) == pytest.approx(1.96 * (0.09 / 400) ** 0.5, rel=0.03)
