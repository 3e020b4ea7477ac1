"""Kernels: each in plain torch, which is the reference and runs on any device, and in Triton."""

from .best_match import best_match as best_match
from .neighbour_density import neighbour_density as neighbour_density
from .received_attention import attend_and_receive as attend_and_receive
from .received_attention import attention_rows as attention_rows
from .received_attention import received_attention as received_attention
from .received_attention_packed import received_in_segments as received_in_segments
