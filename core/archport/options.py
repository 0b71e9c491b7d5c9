"""What `Model`'s calls take, for type checkers: each call says what it means and checks it when it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Never, TypedDict, get_args

from archport.answering.precision import Precision
from archport.contract import InputError
from archport.reading.texts import Overflow

if TYPE_CHECKING:
    from typing_extensions import TypedDict as OpenDict

    class GenerateOptions(OpenDict, total=False, extra_items=object):
        """Of `Model.generate`; whatever else the chat template reads may stand next to them."""

        max_tokens: int | Sequence[int | None] | None
        temperature: float | Sequence[float]
        top_p: float | Sequence[float]
        top_k: int | Sequence[int]
        min_p: float | Sequence[float]
        repetition_penalty: float | Sequence[float | None] | None
        presence_penalty: float | Sequence[float]
        frequency_penalty: float | Sequence[float]
        logit_bias: Mapping[int, float] | Sequence[Mapping[int, float] | None] | None
        seed: int | Sequence[int | None] | None
        stop: str | Iterable[str | Iterable[str] | None] | None
        stop_token_ids: Iterable[int | Iterable[int] | None] | None
        min_tokens: int | Sequence[int]
        logprobs: int | None
        progress: bool
        tools: Sequence[Mapping[str, object]] | None
        continue_final_message: bool | str
        task: str | None
        # Other libraries' words, which a call refuses: no value has their type.
        max_new_tokens: Never
        do_sample: Never
        stop_strings: Never
        num_return_sequences: Never
        max_length: Never


Output = Literal["vectors", "tokens", "sparse"]
# One prompt of `Model.generate`: a str, a mapping, a chat, or token ids.
OnePrompt = str | Mapping[str, Any] | Sequence[Mapping[str, Any]] | Sequence[int]
Query = str | Mapping[str, Any]
TextsOrPairs = str | Iterable[str | tuple[str, str]]


class EmbedOptions(TypedDict, total=False):
    """Of `Model.embed` and its kin."""

    prompt: str | None
    prompt_name: str | None
    dimensions: int | None
    normalize: bool | None
    max_tokens: int | None
    overflow: Overflow
    precision: Precision
    output: Output | Sequence[Output]
    top_k: int | None
    progress: bool | Callable[..., object]
    task: str | None


class RerankOptions(TypedDict, total=False):
    """Of `Model.rerank`."""

    instruction: str | None
    top_k: int | None
    return_documents: bool
    raw_scores: bool
    max_tokens: int | None
    overflow: Overflow
    share_prefix: bool
    progress: bool
    task: str | None


class ClassifyOptions(TypedDict, total=False):
    """Of `Model.classify`."""

    raw_scores: bool
    max_tokens: int | None
    overflow: Overflow
    task: str | None


def outputs_of(output: Any) -> tuple[str, ...]:
    """The outputs that were asked for; raises InputError for none, a name twice, or one that there is not."""
    names = (output,) if isinstance(output, str) else tuple(output)
    known = get_args(Output)
    if not names or len(set(names)) < len(names) or not set(names) <= set(known):
        raise InputError(f"{output=}; expected one of {', '.join(known)}, or several of them, each once")
    return names
