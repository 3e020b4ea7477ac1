"""`tokenzoo report`: which files it writes, and which it refuses to read or write."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.cli.calling import call, done
from tests.cli.calling import small_vit as small_vit
from tests.evaluation.test_report import small_library as small_library
from tests.evaluation.test_summary import ROWS, row
from tokenzoo.evaluation import TaskOptions, jobs, run
from tokenzoo.evaluation.tasks import prepare


def written(path: Path, rows=ROWS) -> Path:
    path.write_text("".join(one.line() for one in rows))
    return path


def test_a_page_and_tables(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(Path("a.jsonl"))
    Image.new("RGB", (2, 2)).save("seen.png")
    result = done("report", "a.jsonl", "--images", "seen.png")
    assert result.output == "report.html: 7 rows, 1 tasks\n"
    page = Path("report.html").read_text()
    assert page.count("data:image/png;base64,") == 1
    assert 'data-name="pool"' in page
    assert 'data-control="1"' in page
    result = done("report", "a.jsonl", "--markdown", "board.md")
    assert result.output == "board.md: 7 rows, 1 tasks\n"
    assert "pool\\*" in Path("board.md").read_text()
    result = done("report", "a.jsonl", "--markdown", "board.md", "-o", "b.html")
    assert result.output.splitlines() == ["b.html: 7 rows, 1 tasks", "board.md: 7 rows, 1 tasks"]


def test_two_files_with_the_same_rows_are_one(tmp_path) -> None:
    a, b = written(tmp_path / "a.jsonl"), written(tmp_path / "b.jsonl", ROWS[2:])
    pages = []
    for files in ([a], [a, b]):
        out = tmp_path / "report.html"
        done("report", *files, "-o", out)
        pages.append(out.read_text())
    assert pages[0] == pages[1]


def test_what_cannot_be_reported(tmp_path) -> None:
    good = written(tmp_path / "good.jsonl")
    empty = written(tmp_path / "empty.jsonl", [])
    cut = tmp_path / "cut.jsonl"
    cut.write_text(good.read_text()[:-20])
    other = written(tmp_path / "other.jsonl", [row("tome", 35)])
    text = tmp_path / "text.png"
    text.write_text("no picture")
    out = tmp_path / "report.html"
    for arguments, complaint in [
        ((tmp_path / "none.jsonl",), "there is no results file"),
        ((tmp_path,), "there is no results file"),
        ((empty,), "empty.jsonl has no rows"),
        ((good, cut), "line 7 of"),
        ((good, other), "other scores under the same key"),
        ((good, "--images", text), "neither PNG nor JPEG"),
        ((good, "--images", tmp_path / "no.png"), "cannot be read"),
        ((good, "--markdown", tmp_path / "a.html"), "must end in .md"),
        ((good, "-o", tmp_path / "no" / "a.html"), "does not exist; create it first"),
        ((good, "-o", good), "must end in .html"),
    ]:
        result = call("report", *([] if "-o" in arguments else ["-o", out]), *arguments)
        assert result.exit_code == 2, arguments
        assert result.stderr.startswith("tokenzoo: ")
        assert complaint in " ".join(result.stderr.split()), result.stderr
        assert not out.exists()


def test_a_recipe_that_is_not_installed_here_is_shown(tmp_path) -> None:
    rows = [*ROWS, row("of-a-plugin", 30)]
    out = tmp_path / "report.html"
    done("report", written(tmp_path / "a.jsonl", rows), "-o", out)
    assert 'data-name="of-a-plugin"' in out.read_text()


@pytest.mark.parametrize("option", ["-o", "--markdown"])
def test_an_older_page_is_kept_until_the_new_one_is_made(tmp_path, option) -> None:
    bad = written(tmp_path / "a.jsonl", [*ROWS, ROWS[1]])
    out = tmp_path / ("a.html" if option == "-o" else "a.md")
    out.write_text("older")
    assert call("report", bad, option, out).exit_code == 2
    assert out.read_text() == "older"


@pytest.fixture
def measured(tmp_path, small_vit) -> Path:
    """Rows of `digits` on a small model, and of a task that cannot be drawn."""
    subject = prepare("digits", TaskOptions(samples=4))
    return written(
        tmp_path / "m.jsonl", [*run(subject, jobs(["tome", "pool"], [16]), rounds=0), *ROWS]
    )


@pytest.mark.parametrize(
    ("options", "images"),
    [
        (("--maps", "digits"), 6),
        (("--maps", "all", "--map-images", 3), 9),
        (("--maps", "all", "--maps", "digits", "--map-images", 1), 3),
    ],
)
def test_maps_of_samples(measured: Path, options: tuple, images: int) -> None:
    """An image each of the original and of two recipes."""
    out = measured.parent / "report.html"
    done("report", measured, "-o", out, *options)
    assert out.read_text().count("data:image/webp;base64,") == images


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--maps", "dense"), "maps 'dense'; it must be TASK, TASK=PATH or all"),
        (("--maps", "all=here"), "maps 'all=here'; it must be"),
        (("--maps", "read"), "maps of 'read'; there are maps of digits"),
        (("--maps", "digits=here"), "its model and images are fixed"),
        (("--maps", "digits", "--map-images", 5), "which has 4 that can be drawn"),
        (("--maps", "digits", "--map-images", 0), "map-images=0"),
        (("--maps", "digits", "--markdown", "board.md"), "without a page"),
    ],
)
def test_maps_that_cannot_be_drawn(measured: Path, options: tuple, words: str) -> None:
    out = measured.parent / "report.html"
    page = () if "--markdown" in options else ("-o", out)
    result = call("report", measured, *page, *options)
    assert result.exit_code == 2, result.output
    assert words in " ".join(result.stderr.split())
    assert not out.exists()
