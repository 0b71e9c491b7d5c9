"""How text is drawn, in the fields that OpenAI, vLLM and Ollama say it with."""

from __future__ import annotations

from typing import Any

from pydantic import Field, StrictInt, StrictStr

from archport.serving.errors import refused
from archport.serving.http import Body, Ids, Texts
from archport.serving.settings import Limits


class SamplingBody(Body):
    """OpenAI's fields, and vLLM's beyond them."""

    temperature: float | None = Field(None, description="a number from 0 to 2")
    top_p: float | None = None
    top_k: StrictInt | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: StrictInt | None = None
    stop: StrictStr | Texts | None = Field(None, description="a string or an array of strings")
    stop_token_ids: Ids | None = None
    min_tokens: StrictInt | None = None


def check_answers(n: int, limits: Limits) -> None:
    """Refuse a number of answers before anything is made for each of them."""
    if not 1 <= n <= limits.answers:
        raise refused(f"n is {n}; expected 1 to {limits.answers}.", "invalid_value", "n")


def options_of(body: SamplingBody, most: int | None, name: str = "max_tokens") -> dict[str, Any]:
    """Options by the names of `Model.generate`; None where the body says nothing.

    Args:
        most: tokens to generate.
        name: of the field that says so.
    """
    bias: dict[int, float] | None = None
    if body.logit_bias is not None:
        try:
            bias = {int(token): value for token, value in body.logit_bias.items()}
        except ValueError:
            raise refused("logit_bias holds a key that is no token id.", "invalid_value", "logit_bias") from None
    if most is not None and most < 1:
        raise refused(f"{name} is {most}; expected a number above 0.", "invalid_value", name)
    stop = [body.stop] if isinstance(body.stop, str) else body.stop
    # OpenAI's clients send an empty list or string for none; a negative seed is one of its numbers too.
    stop = [each for each in stop or () if each] or None
    return {
        "max_tokens": most,
        "temperature": body.temperature,
        "top_p": body.top_p,
        # vLLM's -1 is none.
        "top_k": None if body.top_k == -1 else body.top_k,
        "min_p": body.min_p,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "repetition_penalty": body.repetition_penalty,
        "logit_bias": bias,
        "seed": None if body.seed is None else body.seed % 2**64,
        "stop": stop,
        "stop_token_ids": body.stop_token_ids,
        "min_tokens": body.min_tokens,
    }
