"""What can go wrong, and what the user does next.

Every error that tokenzoo raises on purpose derives from `TokenzooError`. A message names the value that
was found, what is allowed, and what to do; the docstrings here say what the class as a whole means.
"""

from __future__ import annotations

LONGEST = 2000
"""Characters of a message: more is left out of its middle, whatever value it quotes."""


def shortened(text: str, longest: int) -> str:
    """The text, or its beginning and its end with dots between."""
    if len(text) <= longest:
        return text
    end = longest // 4
    return f"{text[: longest - end - 3]}...{text[-end:]}"


class TokenzooError(Exception):
    """The base of all our errors: catch this one to catch them all."""

    def __str__(self) -> str:
        return shortened(super().__str__(), LONGEST)


class BadArgumentError(TokenzooError, ValueError):
    """An argument has a value that cannot work. The message says which values can: pass one of those."""


class BudgetError(BadArgumentError):
    """A token count that the recipe cannot reach. The message names the fewest tokens that it can: ask
    for at least that many, or take a schedule with more sites, or a matcher that takes more at one site.
    """


class MissingEvidenceError(TokenzooError):
    """A part needs something (CLS attention, text, a grid, ...) that was not given or that the model
    cannot show. Pass it to `reduce`, or choose a part whose needs are met; the message names both.
    """


class UnknownNameError(TokenzooError, KeyError):
    """No part, recipe or option has this name. The message lists the nearest ones."""

    def __str__(self) -> str:
        # KeyError shows the repr of its argument, which would bury a sentence in quotes and escapes.
        return shortened(str(self.args[0]), LONGEST) if self.args else ""


class UnsupportedModelError(TokenzooError, TypeError):
    """No adapter can follow the tokens of this model. The message says why, and what would work."""


class AttachError(TokenzooError, RuntimeError):
    """The model and the recipe do not go together, or an attached model was used in a way that would
    give wrong results. Nothing is left half-attached; the message says what to change.
    """


class ExportError(TokenzooError, RuntimeError):
    """A model with a recipe on it does not become a file that computes the same. The message says what
    could not be converted, or by how much the outputs differ; no file is left.
    """


class PluginError(TokenzooError):
    """A plugin does not import, misspells a hook or takes a name that is taken. The message names the
    plugin and its distribution: mend or uninstall it, or leave it out with TOKENZOO_PLUGINS.
    """


class UntrainedWarning(UserWarning):
    """A recipe with learned parts is used with weights that were not trained. It runs, and what it keeps
    is as good as random: train it, or load one that is trained.
    """


class MissingDependencyError(TokenzooError, ImportError):
    """An optional library is not installed. The message names the extra to install."""
