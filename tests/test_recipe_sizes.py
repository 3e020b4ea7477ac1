"""Recipes are short, and none is a copy of another: the parts are where the code is.

A line of code is one that is neither blank, nor a comment, nor part of a docstring; imports count. A block
is six such lines, one after another, compared without their indentation; there imports and decorators do
not count, which name what is used.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from statistics import median

from tokenzoo import plugins

BLOCK, MEDIAN = 6, 40


def code_lines(text: str, *, statements: bool = False) -> list[str]:
    """The lines of code of a file, without indentation; of statements alone, or with the imports."""
    left_out: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if docstring or (statements and isinstance(node, ast.Import | ast.ImportFrom)):
            left_out |= {*range(node.lineno, node.end_lineno + 1)}
    lines = [line.strip() for i, line in enumerate(text.splitlines(), 1) if i not in left_out]
    return [
        line for line in lines if line and not line.startswith(("#", "@") if statements else "#")
    ]


def shared(files: dict[str, list[str]], size: int = BLOCK) -> list[tuple[str, str, str]]:
    """Blocks of so many lines that two files have, with the names of the files."""
    seen: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for name, lines in files.items():
        for i in range(len(lines) - size + 1):
            seen[tuple(lines[i : i + size])].add(name)
    return [
        (one, other, "\n".join(block))
        for block, names in seen.items()
        for one, other in pairwise(sorted(names))
    ]


def test_recipes_are_short_and_share_no_block() -> None:
    factories = plugins.collect("recipes").values()
    own = [factory for factory in factories if factory.__module__.startswith("tokenzoo.")]
    files = {path: path.read_text() for path in {Path(f.__code__.co_filename) for f in own}}
    sizes = {path.name: len(code_lines(text)) for path, text in files.items()}
    assert len(sizes) >= 9
    assert median(sizes.values()) < MEDIAN, sorted(sizes.items(), key=lambda item: item[1])
    assert not shared({p.name: code_lines(text, statements=True) for p, text in files.items()})


def test_what_is_counted_and_what_is_shared() -> None:
    text = '''"""A."""

import a
from b import (
    c,
)

# d
@a
def f():
    """E

    f.
    """
    return 1  # g
'''
    function = ["def f():", "return 1  # g"]
    assert code_lines(text) == ["import a", "from b import (", "c,", ")", "@a", *function]
    assert code_lines(text, statements=True) == function
    one, other = list("abcdefg"), list("xbcdefgy")
    found = shared({"one": one, "other": other, "third": list("bcdefz")})
    assert found == [("one", "other", "\n".join("bcdefg"))]
