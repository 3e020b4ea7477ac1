"""Which form of a kernel runs, and what is said where it cannot."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.interpreting import INTERPRETED
from tokenzoo.errors import BadArgumentError
from tokenzoo.kernels import choice, received_attention
from tokenzoo.kernels.choice import exporting, forced, use_triton, wants_gradients

X = torch.ones(1, 1, 2, 3)


def test_without_a_gpu_it_is_torch() -> None:
    assert not use_triton(X)
    assert not use_triton(X, None)


def test_the_choice_ends_with_its_block_and_another_word_is_refused() -> None:
    with pytest.raises(BadArgumentError, match="form='cuda'"), forced("torch"), forced("cuda"):
        pass
    assert choice._form == "auto"


@pytest.mark.skipif(INTERPRETED, reason="the interpreter runs on the CPU")
def test_triton_on_a_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_installed", True)
    with forced("triton"), pytest.raises(BadArgumentError, match=r"tensors on cpu.*TRITON_INTERP"):
        received_attention(X, X, scale=1.0)


def test_triton_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_installed", False)
    with forced("triton"), pytest.raises(BadArgumentError, match="Triton is not installed"):
        use_triton(X)


def test_triton_has_no_gradients_and_no_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_installed", True)
    monkeypatch.setattr(choice, "_interpreted", True)
    learned = X.clone().requires_grad_()
    with forced("triton"):
        assert use_triton(X, None)
        assert not use_triton(X, X.double())
        assert not use_triton(X, learned)
        with torch.no_grad():
            assert use_triton(X, learned)
    assert wants_gradients(None, learned)
    assert not wants_gradients(X, None)


def test_a_traced_program_is_an_exported_one() -> None:
    seen: list[bool] = []

    def note(x: torch.Tensor) -> torch.Tensor:
        seen.append(exporting())
        return x + 1

    note(X)
    torch.jit.trace(note, X, check_trace=False)
    assert seen == [False, True]
