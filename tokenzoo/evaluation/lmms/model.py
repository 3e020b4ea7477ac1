"""The class that lmms-eval calls; `--model tokenzoo_hf` imports it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from tokenzoo._core.needs import need
from tokenzoo.errors import BadArgumentError
from tokenzoo.evaluation.lmms.arguments import parse
from tokenzoo.evaluation.lmms.chat import Answer, ChatModel, Conversation, load
from tokenzoo.evaluation.lmms.requests import (
    UNTIL,
    batches,
    cut,
    generate_options,
    mean_counts,
    refuse_audio,
    refused,
    unused,
)


def _need(module: str) -> Any:
    """Import a module that lmms-eval has or brings."""
    return need(module, "lmms-eval")


lmms: Any = _need("lmms_eval.api.model").lmms


class TokenzooHF(lmms):
    """A vision-language model of transformers with a recipe attached.

    Args:
        **given: see `arguments.parse`.

    Raises:
        TokenzooError: see `arguments.parse` and `chat.load`.
    """

    is_simple = False  # requests are conversations

    def __init__(self, **given: Any) -> None:
        lmms.__init__(self)
        arguments = parse(given)
        self.chat: ChatModel | None = load(arguments)
        self.batch_size = arguments.batch_size
        self.device: torch.device = self.chat.model.device  # that of the counts of other processes
        self.log = _need("loguru").logger
        attached = self.chat.attached
        self.log.info("recipe=none, the bare model" if attached is None else attached.summary())

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        """Answer the requests, in their order; log the tokens that were read.

        Returns:
            Results of lmms-eval: the text, and the tokens of the prompt that the language model read and of
            the answer.
        """
        options = [one.args[2] for one in requests]
        if names := unused(options):
            self.log.warning(f"generation_kwargs that are not used: {', '.join(names)}")
        answers: dict[int, Answer] = {}
        seconds = 0.0
        with _need("tqdm").tqdm(total=len(requests), disable=self.rank != 0) as progress:
            for given, places in batches(options, self.batch_size):
                conversations = [self._conversation(requests[place].args) for place in places]
                start = time.perf_counter()
                found = self._loaded().answer(conversations, generate_options(given))
                seconds += time.perf_counter() - start
                answers |= dict(zip(places, found, strict=True))
                progress.update(len(places))
        ordered = [answers[place] for place in range(len(requests))]
        self._report(ordered, seconds)
        return [
            self._result(answer, one.get(UNTIL))
            for one, answer in zip(options, ordered, strict=True)
        ]

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """Raise a BadArgumentError: the probability of a given answer is not computed."""
        raise refused([one.task_name for one in requests], "loglikelihood")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[Any]:
        """Raise a BadArgumentError: there is one answer in a conversation."""
        raise refused([one.task_name for one in requests], "generate_until_multi_round")

    def clean(self) -> None:
        """Free the memory of the model, after the last request."""
        self.chat = None
        lmms.clean(self)

    def _loaded(self) -> ChatModel:
        if self.chat is None:
            raise BadArgumentError("clean() has freed this model: make another one")
        return self.chat

    def _conversation(self, arguments: Sequence[Any]) -> Conversation:
        _, to_messages, _, sample, task, split = arguments
        messages = to_messages(self.task_dict[task][split][sample])
        refuse_audio(messages, task)
        return _need("lmms_eval.protocol").ChatMessages(messages=messages).to_hf_messages()

    def _result(self, answer: Answer, until: Any) -> Any:
        library = _need("lmms_eval.api.instance")
        counts = library.TokenCounts(answer.prompt, answer.generated)
        return library.GenerationResult(cut(answer.text, until), counts)

    def _report(self, answers: Sequence[Answer], seconds: float) -> None:
        """Log time and tokens; they are written into the results, as `throughput`."""
        tokens = sum(answer.generated for answer in answers)
        metrics = _need("lmms_eval.models.model_utils.gen_metrics")
        metrics.log_metrics(seconds, tokens, tokens / max(seconds, 1e-9), mean_counts(answers))
