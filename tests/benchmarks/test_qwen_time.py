"""The measurement of a whole Qwen2.5-VL: its prompt, its floors by hand, its table."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import qwen_time as bench  # noqa: E402
from llava_time import PARTS  # noqa: E402

SIZES = {"image": (12, 14), "part": (4, 6)}  # 42 tokens, and 6 a slice
WORDS = 32


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("qwen") / "time.json"
    arguments = ["--tiny", "--frames", "4", "--rounds", "2", "--recipe", "evoprune", "random"]
    threads = torch.get_num_threads()
    bench.main([*arguments, "--threads", str(threads), "--out", str(out)])
    return json.loads(out.read_text())


def test_the_table(written):
    assert written["command"].startswith("python benchmarks/qwen_time.py --tiny --frames 4")
    bare, evoprune, again, random = written["rows"]
    assert [bare["recipe"], again["recipe"]] == ["bare model", "bare model again"]
    assert bare["tokens_of_image_and_slice"] == [1036, 192]
    assert evoprune["tokens_of_image_and_slice"] == [259, 48]
    assert bare["prompt"] == again["prompt"] == WORDS + 1036 + 2 * 192
    assert evoprune["prompt"] == random["prompt"] == WORDS + 259 + 2 * 48
    for part in PARTS:
        assert bare["time"][part]["median"] == bare["floor"][part] == again["floor"][part] == 1.0
        assert 0 < evoprune["floor"][part] < 1
    assert "seconds" not in json.dumps(written)


def test_a_prompt_is_what_a_processor_writes():
    model = bench.make("tiny", "cpu", torch.float32, "sdpa")
    given = bench.asked(model, 4, **SIZES)
    ids = given["input_ids"]
    assert ids.shape == (1, WORDS + 42 + 2 * 6)
    assert torch.equal(given["mm_token_type_ids"] == 1, ids == bench.TOKENS["image_token_id"])
    assert torch.equal(given["mm_token_type_ids"] == 2, ids == bench.TOKENS["video_token_id"])
    one = bench.watched(model, "random", 0.5, bench.ENCODERS)
    assert set(one.ask(given)) == set(PARTS)
    assert one.prompt == WORDS + 21 + 2 * 3


def test_floors_are_those_of_the_plan():
    model = bench.make("tiny", "cpu", torch.float32, "sdpa")
    given = bench.asked(model, 4, **SIZES)
    bare, half = (bench.watched(model, name, 0.5, bench.ENCODERS) for name in (None, "divprune"))

    def blocks(tokens: int) -> int:
        rows, width, hidden = 4 * tokens, 64, 96 * 3 // 2  # three matrices in the MLP
        seen = min(16, tokens) * 4
        linear = 8 * rows * width**2 + 4 * rows * width * hidden
        return 4 * linear + 2 * 4 * rows * seen * width + 2 * 4 * rows * rows * width

    def layers(tokens: int) -> int:
        matrices = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96
        return 3 * (2 * tokens * matrices + 4 * tokens * tokens * 64) + 2 * 64 * 151660

    costs = bench.operations(bare, given)
    assert costs["encoder"] == blocks(42) + 2 * blocks(6)
    assert costs["prefill"] == layers(WORDS + 42 + 12)
    # divprune works behind the tower: all of its blocks remain.
    costs = bench.operations(half, given)
    assert costs["encoder"] == blocks(42) + 2 * blocks(6)
    assert costs["prefill"] == layers(WORDS + 21 + 6)
