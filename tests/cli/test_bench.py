"""`tokenzoo bench`: its tables, its files, and what it refuses."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.synthetic_clips import write
from tests.cli.calling import call, done


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    out, plot = folder / "a.json", folder / "a.png"
    result = done(
        *("bench", "llava-video-7b", "--tiny", "--frames", 2, "--rounds", 2, "--unfused"),
        *("--recipe", "evoprune,divprune", "--recipe", "random", "--keep", "0.5,15"),
        *("--out", out, "--plot", plot),
    )
    return result.stdout, json.loads(out.read_text()), plot


def test_the_table(written):
    shown, *_ = written
    what = "cpu, float32, batch 1, 2 images and frames, a tiny model of this kind"
    assert f"llava-video-7b ({what}), eager" in shown
    lines = shown.splitlines()
    names = ["evoprune", "divprune", "random (control)", "evoprune, map written out"]
    first = next(i for i, line in enumerate(lines) if line.startswith("bare "))
    cells = [line.split() for line in lines[first : first + 10]]
    assert [
        " ".join(row[: len(name.split())]) for row, name in zip(cells[1:], names * 2, strict=False)
    ] == names * 2
    assert cells[0][1:4] == ["81", "65", "1.00"]
    assert cells[1][1:4] == ["0.5", "41", "115"]
    assert cells[5][1:4] == ["15", "15", "63"]
    assert cells[9][:2] == ["bare", "again"]


def test_the_file_has_everything_and_no_seconds(written):
    _, content, _ = written
    assert set(content) == {
        *("command", "model", "shrunk", "weights", "machine", "versions", "dtype", "attention"),
        *("batch", "images", "warmup", "tables"),
    }
    assert content["model"] == "llava-video-7b"
    assert content["shrunk"] == ["a tiny model of this kind"]
    assert content["images"] == {"81": 2}
    assert {"tokenzoo", "torch", "python", "timm", "transformers"} <= set(content["versions"])
    (table,) = content["tables"]
    assert (table["mode"], table["rounds"], len(table["rows"])) == ("eager", 2, 10)
    for row in table["rows"]:
        assert set(row) == {
            *("recipe", "keep", "control", "problem", "tokens", "prompt", "floor", "time"),
            *("efficiency", "share_of_the_bare_call", "memory"),
        }
        assert row["problem"] is None
        assert row["memory"] is None
        for timing in row["time"].values():
            low, high = timing["quartiles"]
            assert low <= timing["median"] <= high
        ratio = row["floor"]["encoder"] / row["time"]["encoder"]["median"]
        assert row["efficiency"]["encoder"] == pytest.approx(ratio, rel=0.01)
    assert [row["control"] for row in table["rows"][1:5]] == [False, False, True, False]


def test_the_picture(written):
    *_, plot = written
    content = plot.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 20_000


def test_frames_of_a_file(tmp_path):
    """A step over frames keeps a share of the whole video: of 4 x 25 pooled tokens 4 x 6, and a newline."""
    film = write(tmp_path / "film.mp4", torch.zeros(5, 32, 32, 3, dtype=torch.uint8))
    result = done(
        *("bench", "llava-onevision-0.5b", "--tiny", "--video", film, "--frames", 4),
        *("--rounds", 1, "--recipe", "prunevid", "--out", tmp_path / "c.json"),
    )
    assert "frames of film.mp4" in result.stdout
    rows = json.loads((tmp_path / "c.json").read_text())["tables"][0]["rows"]
    assert [row["prompt"] for row in rows] == [32 + 4 * 25 + 1, 32 + 4 * 6 + 1, 32 + 4 * 25 + 1]


def test_a_recipe_that_cannot_be_is_a_row(tmp_path):
    out = tmp_path / "b.json"
    result = done(
        *(
            "bench",
            "vit-b/16",
            "--tiny",
            "--rounds",
            1,
            "--recipe",
            "tome,divprune",
            "--keep",
            "0.5",
        ),
        *("--depth", 2, "--batch", 2, "--out", out, "--threads", 1),
    )
    assert "[1] this recipe works at Stage.PROJECTED; VisionTransformer" in result.stdout
    _, tome, divprune, _ = json.loads(out.read_text())["tables"][0]["rows"]
    assert tome["problem"] is None
    assert divprune["problem"].startswith("this recipe works at Stage.PROJECTED")
    assert divprune["time"] == {}


def test_if_none_can_be_that_is_exit_code_2():
    result = call("bench", "vit-b/16", "--tiny", "--rounds", 1, "--recipe", "divprune,fastv")
    assert result.exit_code == 2
    assert "none of these recipes could be measured on vit-b/16" in result.stderr
    assert "Stage.LLM(2)" in result.stdout
