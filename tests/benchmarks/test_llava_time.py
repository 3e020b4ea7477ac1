"""The measurement of a whole model: its floors by hand, its table, and that the bare model is bare."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import llava_time as bench  # noqa: E402

RECIPES = ["evoprune", "fastv"]


@pytest.fixture(scope="module")
def model():
    return bench.make("tiny", "cpu", torch.float32, "sdpa")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("llava") / "time.json"
    arguments = ["--tiny", "--frames", "2", "--rounds", "2", "--recipe", *RECIPES]
    threads = torch.get_num_threads()
    bench.main([*arguments, "--threads", str(threads), "--out", str(out)])
    return json.loads(out.read_text())


def test_the_file_says_how_it_came_to_be(written):
    assert written["command"].startswith("python benchmarks/llava_time.py --tiny --frames 2")
    assert set(written["versions"]) == {"tokenzoo", "torch", "transformers", "python"}
    assert written["weights"] == "random"
    assert written["rounds"] == 2
    assert [row["recipe"] for row in written["rows"]] == [
        "bare model",
        "evoprune",
        "bare model again",
        "fastv",
    ]


def test_no_seconds_leave_it_and_the_bare_model_is_one(written):
    assert "seconds" not in json.dumps(written)
    bare, evoprune, again, fastv = written["rows"]
    for part in bench.PARTS:
        assert bare["time"][part] == {"median": 1.0, "quartiles": [1.0, 1.0]}
        assert bare["floor"][part] == again["floor"][part] == 1.0
        for row in (evoprune, again, fastv):
            assert row["time"][part]["median"] > 0
    shares = written["shares_of_the_bare_models_time"]
    assert 0 < shares["encoder"] + shares["prefill"] < 1 == shares["first_token"]


def test_prompts_and_floors_are_those_of_the_plan(written):
    # 81 patches, pooled to 25: 32 words, 2 frames and a newline.
    bare, evoprune, _, fastv = written["rows"]
    assert bare["prompt"] == fastv["prompt"] == 32 + 2 * 25 + 1
    assert evoprune["prompt"] == 32 + 2 * 20 + 1
    assert evoprune["tokens_of_a_frame_behind_the_encoder"] == 20
    assert evoprune["floor"]["encoder"] < 1 == fastv["floor"]["encoder"]
    assert evoprune["floor"]["prefill"] < 1
    # fastv reads all in two layers of three, and a quarter (6 of 25 a frame) in the third.
    width, hidden, vocabulary, layers = 64, 96, 151650, (83, 83, 83 - 2 * 19)

    def cost(tokens: int) -> int:
        matrices = 2 * width * width + 2 * width * (width // 2) + 3 * width * hidden
        return 2 * tokens * matrices + 4 * tokens * tokens * width

    head = 2 * width * vocabulary
    expected = (sum(map(cost, layers)) + head) / (3 * cost(83) + head)
    assert fastv["floor"]["prefill"] == pytest.approx(expected, abs=1e-4)


def test_models_share_their_weights_and_nothing_else(model):
    one, other = bench.watched(model, "evoprune", 0.25), bench.watched(model, None, 0.25)
    assert one.model is not model
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    assert all(a is b for a, b in pairs)
    given = bench.asked(model, 1)
    assert one.ask(given).keys() == other.ask(given).keys() == set(bench.PARTS)
    assert one.attached.counts[-1] == 20
    assert not hasattr(other.model, "_tokenzoo_attached")
    assert other.model.config._attn_implementation == "sdpa"
    ids = {"max_new_tokens": 2, "do_sample": False}
    assert torch.equal(model.generate(**given, **ids), other.model.generate(**given, **ids))


def test_a_part_that_did_not_run_once_is_no_time(model):
    one = bench.watched(model, None, 0.25)
    words = {"input_ids": torch.randint(5, 50, (1, 8))}
    with pytest.raises(RuntimeError, match="encoder: 0 marks"):
        one.ask(words)


def test_the_table(written):
    lines = bench.table(written["rows"]).splitlines()
    assert len(lines) == 2 + 4
    assert re.fullmatch(r"\| evoprune \| 73 (\| \d\.\d\d \(0\.\d\d\) ){3}\|", lines[3])
