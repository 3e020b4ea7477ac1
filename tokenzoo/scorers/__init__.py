"""Scorers: one number per token (high: keep) or per pair of tokens (high: merge)."""

from collections.abc import Callable, Mapping
from typing import Any

from tokenzoo._core.deprecation import renamed
from tokenzoo.hookspecs import hookimpl

from .attention_by import attention_by as attention_by
from .clip_uniqueness import ClipUniqueness as ClipUniqueness
from .cls_attention import CLSAttention as CLSAttention
from .density_peak import DensityPeak as DensityPeak
from .diversity import Diversity as Diversity
from .feature_change import FeatureChange as FeatureChange
from .feature_norm import FeatureNorm as FeatureNorm
from .frame_uniqueness import FrameUniqueness as FrameUniqueness
from .graph_energy import GraphEnergy as GraphEnergy
from .graph_flow import GraphFlow as GraphFlow
from .keep_gate import KeepGate as KeepGate
from .last_token_attention import LastTokenAttention as LastTokenAttention
from .mean_logits import MeanLogits as MeanLogits
from .negative_squared_distance import NegativeSquaredDistance as NegativeSquaredDistance
from .random import Random as Random
from .raters import Raters as Raters
from .received_attention import ReceivedAttention as ReceivedAttention
from .similarity import Similarity as Similarity
from .temporal_change import TemporalChange as TemporalChange
from .text_attention import TextAttention as TextAttention
from .text_relevance import TextRelevance as TextRelevance
from .text_softmax import TextSoftmax as TextSoftmax
from .value_weighted import ValueWeighted as ValueWeighted


@hookimpl
def tokenzoo_scorers() -> Mapping[str, Callable[..., Any]]:
    """Return the built-in scorers, by name."""
    return {
        "received_attention": ReceivedAttention,
        "cls_attention": CLSAttention,
        "last_token_attention": LastTokenAttention,
        "feature_norm": FeatureNorm,
        "feature_change": FeatureChange,
        "diversity": Diversity,
        "random": Random,
        "keep_gate": KeepGate,
        "text_relevance": TextRelevance,
        "text_softmax": TextSoftmax,
        "text_attention": TextAttention,
        "temporal_change": TemporalChange,
        "clip_uniqueness": ClipUniqueness,
        "frame_uniqueness": FrameUniqueness,
        "raters": Raters,
        "graph_energy": GraphEnergy,
        "density_peak": DensityPeak,
        "graph_flow": GraphFlow,
        "mean_logits": MeanLogits,
        "value_weighted": ValueWeighted,
        "similarity": Similarity,
        "negative_squared_distance": NegativeSquaredDistance,
    }


__getattr__ = renamed(__name__, {"Nearness": "NegativeSquaredDistance"})
