"""The hot loops, each as plain torch: the reference that any faster form has to equal."""

from .neighbour_density import neighbour_density as neighbour_density
from .received_attention import attention_rows as attention_rows
from .received_attention import received_attention as received_attention
