"""The soak counts right, and notices a wrong count."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import soak


def test_some_requests_of_every_kind() -> None:
    found = soak.soak(20)
    assert set(found["requests"]) == set(soak.KINDS)
    assert len({state["hooks"] for state in found["states"]}) == 1
    assert found["freed"]


def test_a_wrong_count_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = soak.request

    def larger(*arguments: Any) -> Any:
        given, tokens = right(*arguments)
        return given, [[n + 2 for n in shown] for shown in tokens]

    monkeypatch.setattr(soak, "request", larger)
    with pytest.raises(RuntimeError, match=r"positions, and \d+ planned"):
        soak.soak(20)
