"""What all tests share: the same examples in every run, no deadlines on a busy machine, one thread.

`HYPOTHESIS_PROFILE=thorough pytest tests/properties` tries every property on 1,000 examples.

The tensors are tiny: a second thread only waits for the first, and on busy cores that made these tests
five times slower.

The garbage collector went over the million objects of the imported libraries again and again, for a twelfth
of the time. It leaves them alone now, and runs less often.
"""

from __future__ import annotations

import gc
import os

import torch
from hypothesis import settings

settings.register_profile("tokenzoo", derandomize=True, deadline=None)
settings.register_profile("thorough", settings.get_profile("tokenzoo"), max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "tokenzoo"))
torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Exempt all that is there from garbage collection; what a test makes is still collected."""
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
