"""Files of prompts: which image each prompt is about, and which line is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenzoo.errors import BadArgumentError
from tokenzoo.evaluation.prompts import read_prompts

RECORD = '{"image": "b.png", "prompt": " é? ", "id": 7}'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with three files that end like images; nothing opens them."""
    made = tmp_path / "images"
    (made / "more").mkdir(parents=True)
    for name in ("b.png", "a.jpg", "more/c.png"):
        (made / name).touch()
    return made


def read(folder: Path, content: str, name: str = "p.txt", **options: int) -> list[tuple[str, str]]:
    file = folder.parent / name
    file.write_text(content, encoding="utf-8")
    return [(one.image.name, one.text) for one in read_prompts(file, folder, **options)]


@pytest.mark.parametrize(
    ("content", "pairs"),
    [
        ("one\n", ["a.jpg one", "b.png one", "c.png one"]),
        ("one\n two \n", ["a.jpg one", "b.png two", "c.png one"]),
        ("1\n2\n3\n4", ["a.jpg 1", "b.png 2", "c.png 3", "a.jpg 4"]),
    ],
)
def test_lines_and_images_in_turn(folder: Path, content: str, pairs: list[str]) -> None:
    assert [" ".join(pair) for pair in read(folder, content)] == pairs


def test_records_name_their_images(folder: Path) -> None:
    more = '{"prompt": "two\\nlines", "image": "more/c.png"}\n'
    found = read(folder, f"{RECORD}\n{more}", "p.jsonl")
    assert found == [("b.png", "é?"), ("c.png", "two\nlines")]


def test_a_record_of_a_video_names_its_frames(folder: Path) -> None:
    file = folder.parent / "p.jsonl"
    file.write_text('{"frames": ["b.png", "more/c.png"], "prompt": "when?"}')
    (found,) = read_prompts(file, folder)
    assert (found.frames, found.text) == ((folder / "b.png", folder / "more/c.png"), "when?")


def test_a_draw_keeps_the_order_and_comes_again(folder: Path) -> None:
    content = "\n".join(map(str, range(10, 30)))
    whole, drawn = read(folder, content), read(folder, content, count=6)
    assert [one for one in whole if one in drawn] == drawn
    assert len(drawn) == 6
    assert read(folder, content, count=6) == drawn != read(folder, content, count=6, seed=1)
    assert read(folder, content, count=20) == whole


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.txt", "", "has no prompts"),
        ("p.jsonl", "", "has no prompts"),
        ("p.txt", "one\n \nthree\n", r"line 2 of .*p\.txt is empty"),
        ("p.jsonl", f"{RECORD}\n\n", r"line 2 of .*p\.jsonl is empty"),
        ("p.csv", "one", r"must end in \.txt.*\.jsonl"),
        ("p.jsonl", f"{RECORD}\nwhat is this?", "line 2 of .* is not JSON"),
        ("p.jsonl", "[" * 100_000, "line 1 of .* is not JSON"),
        ("p.jsonl", '["b.png", "what?"]', "needs an image and a prompt"),
        ("p.jsonl", '{"image": "b.png", "prompt": " "}', "needs an image and a prompt"),
        ("p.jsonl", '{"image": 3, "prompt": "what?"}', "needs an image and a prompt"),
        ("p.jsonl", '{"image": "no.png", "prompt": "what?"}', r"line 1 .*'no\.png'.*no file"),
        ("p.jsonl", '{"frames": ["b.png"], "prompt": "what?"}', "frames of a video, two or more"),
        (
            "p.jsonl",
            '{"frames": ["b.png", 3], "prompt": "what?"}',
            "frames of a video, two or more",
        ),
        ("p.jsonl", RECORD.replace("{", '{"frames": ["b.png", "a.jpg"], '), "two or more"),
    ],
)
def test_a_line_that_is_no_prompt(folder: Path, name: str, content: str, words: str) -> None:
    with pytest.raises(BadArgumentError, match=words):
        read(folder, content, name)


def test_files_that_are_not_there(folder: Path) -> None:
    (folder.parent / "latin.txt").write_bytes("é".encode("latin-1"))
    for name in ("none.txt", "latin.txt"):
        with pytest.raises(BadArgumentError, match=rf"{name} cannot be read as text"):
            read_prompts(folder.parent / name, folder)
    with pytest.raises(BadArgumentError, match="not a folder"):
        read(folder.parent / "none", "one")
