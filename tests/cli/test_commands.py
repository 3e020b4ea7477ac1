"""The command line: what is typed is read right, what is shown is what was measured, errors are plain."""

from __future__ import annotations

import json
import sys
from inspect import signature

import pytest
import torch
from typer.testing import CliRunner

import tokenzoo
from tokenzoo import plugins
from tokenzoo.cli import app
from tokenzoo.cli.demo_rows import margin
from tokenzoo.cli.list_ import KINDS
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

CONTROLS = {"random", "uniform", "pool", "downsample"}


# With an older click the runner mixes stdout and stderr unless it is told not to.
SEPARATE = {"mix_stderr": False} if "mix_stderr" in signature(CliRunner).parameters else {}


def call(*arguments):
    return CliRunner(**SEPARATE).invoke(app, [str(argument) for argument in arguments])


# --- options


GOOD = [
    ("64", 64),
    (" 64 ", 64),
    ("1", 1),  # one token ...
    ("1.0", 1.0),  # ... and all of them
    ("100%", 1.0),
    ("0.25", 0.25),
    (".25", 0.25),
    ("25%", 0.25),
    ("12.5%", 0.125),
    ("1%", 0.01),
]
BAD = [
    "",
    "0",
    "0.0",
    "0%",
    "-3",
    "+3",
    "1.5",
    "101%",
    "a",
    "0,25",
    "25 %",
    "%",
    "1e-1",
    "nan",
    "inf",
]
BAD += ["1_000", "٣", "0x10", "64.5", "."]


@pytest.mark.parametrize(("text", "value"), GOOD)
def test_a_keep_is_a_count_or_a_fraction(text, value) -> None:
    keep = parse_keep(text)
    assert keep == KeepOption(text.strip(), value)
    assert type(keep.value) is type(value)


@pytest.mark.parametrize("text", BAD)
def test_a_bad_keep_is_named_with_what_is_allowed(text) -> None:
    with pytest.raises(BadArgumentError) as error:
        parse_keep(text)
    assert repr(text) in str(error.value)
    assert "64" in str(error.value)
    assert "25%" in str(error.value)


def test_keeps_come_in_lists_and_repeated_each_once() -> None:
    found = parse_keeps(["0.5, 25%", "16", "0.25", "1", "1.0"])
    assert [keep.text for keep in found] == ["0.5", "25%", "16", "1", "1.0"]


@pytest.mark.parametrize("texts", [[], [""], ["a,,b"], ["a,"], [" , "]])
def test_an_empty_item_is_an_error(texts) -> None:
    with pytest.raises(BadArgumentError, match="empty item"):
        split(texts, "recipes")


def test_controls_are_known_by_where_they_come_from() -> None:
    assert {name for name in tokenzoo.list_recipes() if is_control(name)} == CONTROLS
    with pytest.raises(UnknownNameError, match="did you mean 'random'"):
        is_control("randon")


def test_a_file_that_cannot_be_written_is_an_error_now(tmp_path) -> None:
    assert output_file(tmp_path / "a.PNG", (".png",)) == tmp_path / "a.PNG"
    (tmp_path / "folder.png").mkdir()
    for name, complaint in {
        "a.jpg": "must end in .png",
        "none/a.png": "does not exist; create it",
        "folder.png": "is a folder",
    }.items():
        with pytest.raises(BadArgumentError, match=complaint):
            output_file(tmp_path / name, (".png",))


# --- list, describe, and the other commands


@pytest.mark.parametrize("kind", KINDS)
def test_list_names_everything(kind) -> None:
    result = call("list", kind)
    assert result.exit_code == 0, result.output
    known = tokenzoo.list_adapters() if kind == "adapters" else plugins.names(kind)
    assert known
    firsts = {line.split()[0] for line in result.output.splitlines()[1:] if line[:1].strip()}
    assert firsts == set(known)


def test_list_shows_recipes_with_their_stages_and_marks_the_controls() -> None:
    lines = call("list").output.splitlines()
    shown = {line.split()[0]: line for line in lines if line[:1].strip()}
    assert "features" in shown["visionzip"]
    assert "image" in shown["downsample"]
    assert {name for name, line in shown.items() if "control:" in line} == CONTROLS


def test_list_can_show_a_plugin_whose_recipe_needs_an_option() -> None:
    class Plugin:
        @staticmethod
        @tokenzoo.hookimpl
        def tokenzoo_recipes():
            def needy(*, keep):
                return keep

            return {"needy": needy}

    with plugins.registered(Plugin()):
        line = next(line for line in call("list").output.splitlines() if line.startswith("needy"))
    assert line.split()[1] == "?"


def test_describe_prints_what_describe_returns() -> None:
    for name in ("evoprune", "random", "similarity"):
        result = call("describe", name)
        assert result.exit_code == 0
        assert result.output == tokenzoo.describe(name)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["list", "recipe"], "did you mean 'recipes'"),
        (["describe", "evoprun"], "did you mean 'evoprune'"),
    ],
)
def test_an_error_of_ours_is_one_message_on_stderr(arguments, complaint) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("tokenzoo: ")
    assert complaint in result.stderr
    assert "Traceback" not in result.stderr


def test_other_errors_are_not_swallowed(monkeypatch) -> None:
    def broken(name):
        raise ZeroDivisionError(name)

    monkeypatch.setattr("tokenzoo.cli.describe.describe", broken)
    assert isinstance(call("describe", "tome").exception, ZeroDivisionError)


def test_help_and_version() -> None:
    for arguments in ([], ["--help"]):
        output = call(*arguments).output
        for name in ("demo", "list", "describe"):
            assert f"  {name} " in output
    assert call("--version").output == f"tokenzoo {tokenzoo.__version__}\n"
    assert call("dmo").exit_code == 2


# --- demo


@pytest.fixture
def small(monkeypatch, threads):
    """A tiny model in place of the shipped one: 64 patch tokens, 4 blocks, random weights."""
    from timm.models.vision_transformer import VisionTransformer

    del threads
    torch.manual_seed(0)
    vit = VisionTransformer(
        img_size=64, patch_size=8, embed_dim=24, depth=4, num_heads=2, num_classes=60
    ).eval()
    # Its own initial weights are so small that every image would get the same answers.
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    monkeypatch.setattr(digits, "load_digits_vit", lambda: vit)
    return vit


@pytest.fixture
def threads():
    """One thread: on a busy machine two wait for each other in a model this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_demo_shows_and_writes_what_it_measured(small, tmp_path) -> None:
    out, figures = tmp_path / "a.png", tmp_path / "a.json"
    result = call(
        *("demo", "--keep", "0.25,3", "--keep", "25%", "--recipes", "evoprune,random"),
        *("--recipes", "downsample,visionzip", "--images", 7, "--rounds", 3, "--threads", 1),
        *("--seed", 5, "--out", out, "--json", figures),
    )
    assert result.exit_code == 0, result.output
    assert out.read_bytes().startswith(b"\x89PNG")
    content = json.loads(figures.read_text())
    rows = content["rows"]
    assert [(row["recipe"], row["keep"]) for row in rows] == [
        ("bare model", None),
        *((recipe, 0.25) for recipe in ("evoprune", "random", "downsample", "visionzip")),
        *((recipe, 3) for recipe in ("evoprune", "random", "downsample", "visionzip")),
    ]
    assert [row["control"] for row in rows] == [False, *(False, True, True, False) * 2]

    # The figures are those of the library, on the collages of this seed.
    data = digits.collages("test", 7, seed=5)
    for row in rows:
        if row["problem"]:
            continue
        if row["keep"] is None:
            flops, tokens, logits = 1.0, 64, small(data.images)
        else:
            zoo = tokenzoo.build(row["recipe"], keep=row["keep"])
            with zoo.attach(small) as attached:
                flops, tokens = attached.plan().flops, attached.plan().features
                logits = small(data.images)
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


@pytest.mark.usefixtures("small")
def test_what_cannot_be_run_is_a_row_and_not_the_end(tmp_path) -> None:
    result = call(
        *("demo", "--keep", "0.25,3", "--recipes", "evoprune,random,divprune"),
        *("--images", 3, "--rounds", 1, "--out", tmp_path / "a.png"),
    )
    assert result.exit_code == 0, result.output
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


@pytest.mark.usefixtures("small")
def test_keeping_everything_is_the_bare_model(tmp_path) -> None:
    figures = tmp_path / "a.json"
    result = call(
        *("demo", "--keep", "100%", "--images", 3, "--rounds", 1),
        *("--out", tmp_path / "a.png", "--json", figures),
    )
    assert result.exit_code == 0, result.output
    rows = json.loads(figures.read_text())["rows"]
    assert len(rows) == 7
    for row in rows:
        assert (row["tokens"], row["flops"]) == (64, 1.0)
        assert row["marked"] == rows[0]["marked"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--keep", "0"], "keep '0'; it must be a count of tokens from 1 on"),
        (["--recipes", "tome,evoprun"], "did you mean 'evoprune'"),
        (["--images", "4", "--rounds", "5"], "--rounds 5 with --images 4"),
        (["--out", "a.jpg"], "must end in .png"),
        (["--out", "no/such/folder/a.png"], "does not exist; create it"),
        (["--json", "a.txt"], "must end in .json"),
    ],
)
def test_demo_refuses_before_it_works(options, complaint, monkeypatch) -> None:
    monkeypatch.setattr(digits, "load_digits_vit", lambda: pytest.fail("the work began"))
    result = call("demo", *options)
    assert result.exit_code == 2, result.output
    assert complaint in result.stderr


def test_demo_without_matplotlib_names_the_extra(monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(digits, "load_digits_vit", lambda: pytest.fail("the work began"))
    result = call("demo", "--out", tmp_path / "a.png")
    assert result.exit_code == 2
    assert "pip install 'tokenzoo[viz]'" in result.stderr


def test_the_margin_is_the_binomial_one() -> None:
    assert margin(0.5, 10_000) == pytest.approx(0.0098, abs=1e-5)
    assert margin(1.0, 100) > 0  # a hundred right answers are no proof
    assert margin(0.9, 400) == pytest.approx(1.96 * (0.09 / 400) ** 0.5, rel=0.03)
