"""Scorers: one number per token (high: keep) or per pair of tokens (high: merge)."""

from collections.abc import Callable, Mapping
from typing import Any

from tokenzoo.hookspecs import hookimpl

from .cls_attention import CLSAttention as CLSAttention
from .diversity import Diversity as Diversity
from .feature_norm import FeatureNorm as FeatureNorm
from .last_token_attention import LastTokenAttention as LastTokenAttention
from .random import Random as Random
from .received_attention import ReceivedAttention as ReceivedAttention
from .similarity import Similarity as Similarity
from .text_relevance import TextRelevance as TextRelevance


@hookimpl
def tokenzoo_scorers() -> Mapping[str, Callable[..., Any]]:
    """The built-in scorers."""
    return {
        "received_attention": ReceivedAttention,
        "cls_attention": CLSAttention,
        "last_token_attention": LastTokenAttention,
        "feature_norm": FeatureNorm,
        "diversity": Diversity,
        "random": Random,
        "text_relevance": TextRelevance,
        "similarity": Similarity,
    }
