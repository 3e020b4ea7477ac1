"""Tests for parts, ours and everybody's: `check(MyScorer())` holds a part to every law.

Importing this package needs Hypothesis (`pip install tokenzoo[dev]`); nothing else in tokenzoo does.
"""

from hypothesis import HealthCheck, Phase, given, settings

from tokenzoo.testing.laws import LAWS as LAWS
from tokenzoo.testing.laws import Law, Subject
from tokenzoo.testing.laws import LawBroken as LawBroken
from tokenzoo.testing.strategies import Example as Example
from tokenzoo.testing.strategies import examples as drawn_examples

__all__ = ["LAWS", "Example", "LawBroken", "check"]


def check(subject: Subject, *laws: str, examples: int = 25, max_tokens: int = 40) -> None:
    """Hold a part, or a recipe of one step, to laws on examples that are the same in every run.

    Args:
        subject: what is checked.
        laws: names in `LAWS`; none: all of them.
        examples: how many are tried for each law.
        max_tokens: patch tokens of the largest.

    Raises:
        LawBroken: shows the smallest example that was found.
    """
    for name in laws or tuple(LAWS):
        _hold(LAWS[name], subject, examples, max_tokens)


def _hold(law: Law, subject: Subject, examples: int, max_tokens: int) -> None:
    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        report_multiple_bugs=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large),
    )
    @given(drawn_examples(max_tokens=max_tokens))
    def on(example: Example) -> None:
        law(subject, example)

    on()
