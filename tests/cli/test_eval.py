"""`tokenzoo eval`: the command that a row carries, and the table."""

from __future__ import annotations

import io
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.cli.calling import call, done
from tests.evaluation.subjects import subject
from tokenzoo.cli import eval as command_file
from tokenzoo.cli.eval import data_of
from tokenzoo.cli.eval_report import below, controls_of, table
from tokenzoo.errors import BadArgumentError
from tokenzoo.evaluation import Key, ResultsFile, Row
from tokenzoo.evaluation.summary import summarize
from tokenzoo.evaluation.task import Control


def test_rows_carry_what_was_typed_without_the_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_file, "prepare", lambda name, options: subject())
    out, data = tmp_path / "my results.jsonl", tmp_path / "images"
    data.mkdir()
    file = ResultsFile(out)
    file.append(row(None, "word"))  # of another task: it stays, and is not shown
    result = done(
        *("eval", "--task", "digits", "--recipe", "tome,random", "--recipe", "pool"),
        *("--keep", "25%", "--rounds", 0, "--seeds", 1, "--no-quick", "--out", out),
        *("--data", data, "--model", data),
    )
    assert "toy, vit: 6 samples" in result.output
    assert "read, vit" not in result.output
    [command] = {row.command for row in file.rows()[1:]}
    assert sorted(shlex.split(command)) == sorted(
        shlex.split(
            "tokenzoo eval --task digits --recipe tome,random,pool --keep 25% --no-quick --seeds 1 "
            "--out 'my results.jsonl' --data images --model images --rounds 0"
        )
    )


def test_controls_of_a_task_have_a_line_at_each_budget_and_run_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy, asked = subject(), list[float]()

    def control(keep: int | float) -> Control:
        asked.append(keep)
        return Control(toy.score, toy.call, 12, 0.25)

    toy = replace(toy, controls={"fewer-frames": control})
    monkeypatch.setattr(command_file, "prepare", lambda name, options: toy)
    given = ("--recipe", "tome,random", "--keep", "0.25,16", "--rounds", 0)
    done("eval", *given, "--out", tmp_path / "rows.jsonl")
    result = done("eval", *given, "--out", tmp_path / "rows.jsonl")
    lines = [line.split() for line in result.output.splitlines() if "fewer-frames*" in line]
    assert [line[2:5] for line in lines] == [["0.25", "12", "0.25"], ["16", "12", "0.25"]]
    assert asked == [0.25, 16]


def test_an_engine_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = replace(subject(), task="digits")
    monkeypatch.setattr(command_file, "prepare", lambda name, options: toy)
    monkeypatch.setitem(sys.modules, "ray", None)
    out = tmp_path / "results.jsonl"
    result = call("eval", "--recipe", "tome", "--keep", "16", "--engine", "ray", "--out", out)
    assert result.exit_code == 2
    assert "pip install 'tokenzoo[ray]'" in result.output
    assert not out.exists()


def printed(*rows: Row, width: int = 80) -> list[str]:
    console = Console(width=width, file=io.StringIO(), record=True)
    [found] = summarize(rows, controls_of(rows))
    console.print(table(found, width))
    return [*console.export_text().splitlines(), *below(found)]


def row(recipe: str | None, *metrics: str, **options: Any) -> Row:
    keep = None if recipe is None else 0.125
    scores = {name: [1, 0, 1, 1] for name in metrics}
    given = {"tokens": 128, "flops": 0.5, "time": [0.5] * 3, "agreement": [1, 0, 1, 1], **options}
    return Row(Key("read", "vit", recipe, keep), {}, **{"scores": scores, **given})


def test_a_line_of_the_table_has_each_value() -> None:
    lines = printed(*(row(name, "all words", "hard words") for name in (None, "evoprune", "pool")))
    assert lines[0].split() == ["read,", "vit:", "4", "samples"]
    expected = ["0.125", "128", "0.50", "0.50", "0.750", "+-0.327", "100.0%", "75.0%", "0.750"]
    bare = [one for one in expected[1:] if one != "100.0%"]
    assert ["bare", *bare] in [line.split() for line in lines]
    assert [">", "evoprune", *expected] in [line.split() for line in lines]
    assert [">", "pool*", *expected] in [line.split() for line in lines]


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("metrics", [1, 2, 12])
def test_the_table_fits_and_names_what_does_not(width: int, metrics: int) -> None:
    """No cell is cut off or broken; the metrics that have no room are named below."""
    names = [f"kind{place}" for place in range(metrics)]
    lines = printed(row(None, *names), row("evoprune", *names), width=width)
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    assert "…" not in text
    [line] = [one for one in lines if "evoprune" in one]
    shown = line.split().count("0.750")
    _, _, missing = text.partition("in the file too: ")
    assert missing == ", ".join(names[shown:])
    assert bool(missing) == (metrics == 12)


def test_scores_on_hard_samples_are_an_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_file, "prepare", lambda name, options: subject())
    options = ("--task", "digits", "--keep", "16", "--rounds", 0, "--out", tmp_path / "a.jsonl")
    without = call("eval", *options, "--recipe", "tome,downsample").output
    assert "easy samples" not in without
    shown = done("eval", *options, "--recipe", "tome,downsample", "--hard")
    lines = shown.output.splitlines()
    assert "toy, vit: right, hard and easy samples" in [line.strip() for line in lines]
    [sorter] = [line.split() for line in lines if line.startswith("downsample* ")]
    [tome] = [line.split() for line in lines if line.startswith("tome ")]
    assert sorter[:3] == ["downsample*", "16", "16"]
    assert tome == ["tome", "16", "16", "too", "few", sorter[3], "too", "few", sorter[4]]
    assert max(map(len, lines[:-1])) <= 80  # the last has the path of the file
    options = ("--task", "digits", "--keep", "8", "--rounds", 0, "--out", tmp_path / "a.jsonl")
    shown = call("eval", *options, "--recipe", "tome", "--hard")
    assert "no hard samples: keep=8: downsample did not run; add it to --recipe" in shown.output


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        ([], {}),
        (["a"], {"dense": "a", "knn": "a"}),
        (["knn=b", "a"], {"knn": "b", "dense": "a"}),
        (["other=b"], {"dense": "other=b", "knn": "other=b"}),
    ],
)
def test_data_of_each_task(texts: list[str], found: dict[str, str]) -> None:
    paths = data_of(("digits", "dense", "knn"), texts)
    assert {name: str(path) for name, path in paths.items()} == found


@pytest.mark.parametrize("text", ["digits=a", "linear=a"])
def test_data_of_a_task_without(text: str) -> None:
    with pytest.raises(BadArgumentError, match="dense, knn"):
        data_of(("digits", "dense", "knn"), [text])


def test_recipes_that_do_not_run_are_named_once() -> None:
    no = row("fastv", status="refused", reason="AttachError: no language model")
    plugin = row("of-a-plugin-elsewhere", "word")
    lines = printed(row(None, "word"), plugin, no, row("visionzip", status="refused"))
    assert lines[-1] == "do not run on this model: fastv, visionzip (reason in the file)"
    assert not any("fastv" in line for line in lines[:-1])
