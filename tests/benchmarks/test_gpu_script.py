"""benchmarks/gpu.sh: it is valid, takes ten minutes at most, and what it runs can be told what it tells."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
from importlib import import_module
from pathlib import Path

import pytest
from typer.main import get_command

from tokenzoo.cli import bench, options
from tokenzoo.tools.benchmark import NAMES

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"


@pytest.fixture(scope="module")
def commands():
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    environment = {**os.environ, "DRY": "1", "TOME": "there"}
    done = subprocess.run([SCRIPT], env=environment, check=True, capture_output=True, text=True)
    return [shlex.split(line) for line in done.stdout.splitlines()]


class _ParsedError(Exception):
    pass


def test_it_takes_ten_minutes_at_most():
    limits = re.findall(r"^ *(?:run|bench) (\d+) ", SCRIPT.read_text(), re.MULTILINE)
    assert len(limits) == 9
    assert sum(map(int, limits)) <= 600


def test_every_option_is_known(commands, monkeypatch):
    parse = argparse.ArgumentParser.parse_args

    def parsed(*args, **kwargs):
        parse(*args, **kwargs)
        raise _ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    assert len(commands) == 9
    for program, first, *rest in commands:
        if program == "tokenzoo":
            assert first == "bench"
            given = get_command(bench.app).make_context("bench", rest).params
            assert given["model"] in NAMES
            assert given["device"] == "cuda"
            assert str(given["out"]).startswith("docs/results/gpu-")
            options.parse_keeps(given["keep"])
            for recipe in options.split(given["recipe"], "recipe"):
                options.is_control(recipe)  # an unknown one is an error
        elif first == "-m":
            assert rest[0] == "pytest"
            assert all((ROOT / path).is_dir() for path in rest if path.startswith("tests"))
        else:
            module = import_module(Path(first).stem)
            with pytest.raises(_ParsedError):
                module.main(rest)


def test_files_are_told_apart(commands):
    files = [words[words.index("--out") + 1] for words in commands if "--out" in words]
    assert len(set(files)) == len(files) == 8


def test_a_failure_is_named_and_the_others_run(tmp_path):
    environment = {**os.environ, "PYTHON": "false", "TOKENZOO": "true", "OUT": str(tmp_path)}
    done = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout.count("== ") == 8
    named = [line for line in done.stderr.splitlines() if line.startswith("failed: ")]
    assert len(named) == 2
    assert "exit code 1" in named[0]
    assert "kernel_time.py" in named[0]
