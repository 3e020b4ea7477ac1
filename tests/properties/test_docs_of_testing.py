"""docs/testing.md is held to the code: its tables, its failure, its names, its examples."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import tokenzoo
import tokenzoo.testing as kit
from tests.mutants import adapters
from tests.properties.tables import PAGE, page
from tokenzoo import plugins

TEXT = PAGE.read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@dataclass(frozen=True)
class Energy(tokenzoo.Scorer):
    power: float = 2.0

    def score(self, evidence: tokenzoo.Evidence) -> Tensor:
        return evidence.x.float().abs().pow(self.power).mean(-1)  # [b, n]


def test_the_tables_are_made_of_the_code() -> None:
    assert page(TEXT) == TEXT, "write them anew: python -m tests.properties.tables"


def test_every_public_name_is_there() -> None:
    for name in kit.__all__:
        assert re.search(rf"\b{name}\b", TEXT), name


def test_the_examples_run() -> None:
    first, adapter, strategy = EXAMPLES
    names: dict[str, Any] = {"Energy": Energy, "torch": torch}
    for code in (first, strategy):
        exec(code, names)
    names["test_energy"]()
    names["test_energy_grows"]()

    def model(depth: int, width: int) -> Any:
        assert (depth, width) == (3, 24)
        return adapters.tiny(adapters.Adapted)()

    exec(adapter.replace("torch.randn(3, 3, 32, 32)", "images"), names)
    names |= {"MyViT": model, "images": adapters.images(3)}
    with plugins.registered(adapters, "mutants"):
        names["test_my_adapter"]()
