"""What holds for every refusal: an error of ours, of one class, short, that names what was wrong."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import pytest
from torch import Tensor
from torch.overrides import _get_current_function_mode_stack
from typer.testing import CliRunner

from tokenzoo.cli import app
from tokenzoo.errors import LONGEST, BadArgumentError, TokenzooError, UnknownNameError

# With an older click the runner mixes stdout and stderr unless it is told not to.
SEPARATE = {"mix_stderr": False} if "mix_stderr" in signature(CliRunner).parameters else {}


def refused(
    call: Callable[[], object], *words: str, kind: type[TokenzooError] = BadArgumentError
) -> None:
    """Call it: an error of this class alone, whose message has these words."""
    with pytest.raises(TokenzooError) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is kind, repr(caught.value)
    assert all(word in message for word in words), message
    assert len(message) <= LONGEST
    if kind is UnknownNameError:
        assert not message.startswith(("'", '"'))  # a sentence, and not KeyError's repr of it
    assert _get_current_function_mode_stack() == []


def named(argument: str, value: Any) -> tuple[str, ...]:
    """How a message names a bad value: a tensor by its shape, anything else by how its repr begins."""
    if isinstance(value, Tensor):
        return argument, str(tuple(value.shape))
    return (f"{argument}={value!r}"[:30],)


def typed(*arguments: str) -> Callable[[], object]:
    """Call the command line, which says an error of ours without a traceback; raise that error."""

    def call() -> None:
        told = CliRunner(**SEPARATE).invoke(app, list(arguments))
        assert told.exit_code == 2
        assert "Traceback" not in told.output
        error: BaseException | None = told.exc_info[1] if told.exc_info else None
        while error is not None and not isinstance(error, TokenzooError):
            error = error.__cause__ or error.__context__
        assert error is not None
        assert told.stderr.strip() == f"tokenzoo: {error}"
        raise error

    return call
