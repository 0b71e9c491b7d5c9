"""How a checkpoint's text becomes token ids, and what a plugin may read of a checkpoint. Protocols and pure data.

Where files come from and how texts are tokenised is the engine's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from archport.contract.errors import SpecError
from archport.contract.heads import Activation, Head
from archport.contract.media import Reader

if TYPE_CHECKING:
    import numpy as np

# From a row's token ids (L,) int32 to the stretches (start, stop) of them that see each other.
SpanRule = Callable[["np.ndarray"], Sequence[tuple[int, int]]]


@dataclass(frozen=True, slots=True)
class PairText:
    """The text around a query and a document. The parts are tokenised apart, without special tokens.

    Args:
        prefix, suffix: never cut.
        body: with `{instruction}`, `{query}` and `{document}`, which are filled in as they are.
        instruction: the default one.
        max_tokens: tokens of all parts by default, at most the model's positions.
        document: a part of its own after the body, with the `{document}` that the body then lacks; None for none.
        instructed: the body where there is an instruction; None where it is the same.
    """

    prefix: str
    body: str
    suffix: str
    instruction: str = ""
    max_tokens: int | None = None
    document: str | None = None
    instructed: str | None = None

    def __post_init__(self) -> None:
        rest = self.document or ""
        for body in (self.body, self.instructed or self.body):
            for name, place in (("{query}", body), ("{document}", rest or body)):
                if place.count(name) != 1 or (body + rest).count(name) != 1:
                    raise SpecError(f"pair text: {place!r} must hold {name} once")

    def fill(self, instruction: str, query: str, document: str) -> tuple[str, str]:
        """(what comes before a document's own part and is the same for all, the part that holds the document).

        Without a part of its own the second is the whole body. Braces inside the values mean nothing.
        """
        values = {"{instruction}": instruction, "{query}": query, "{document}": document}
        body = self.instructed if self.instructed and instruction else self.body
        first, second = ("", body) if self.document is None else (body, self.document)

        def filled(part: str) -> str:
            return re.sub("|".join(map(re.escape, values)), lambda name: values[name.group()], part)

        return filled(first), filled(second)


@dataclass(frozen=True, slots=True)
class Messages:
    """How a text becomes chat messages, which the checkpoint's template then renders.

    A text is what the user says; of a pair, roles `query` and `document` say one each; a prompt is the system's.

    Args:
        form: whether a message's content is the text itself, or a list with one part of type text.
        options: whatever else the template is given.
        restore_suffix: whether a row that was cut gets back what the template puts after every content.
    """

    form: Literal["flat", "structured"]
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    restore_suffix: bool = True


@dataclass(frozen=True, slots=True)
class TextInputs:
    """How text becomes token ids.

    Args:
        max_tokens: tokens per text that the model takes by default, special tokens included; None: its positions.
        query_tokens, document_tokens: the same of a text in that role; None: as any text.
        prompts: name -> text put in front of an input.
        query_prompt, document_prompt: names in `prompts` that `encode_query` and `encode_document`
            use; None: no prompt.
        default_prompt: name used by a plain `embed`, None for no prompt.
        final_token: the id every sequence must end with; appended where the tokenizer does not; None: no rule.
        empty_token: the id that stands for a text without any token; None: such a text is refused.
        dropped: ids that are left out of every row, after it was cut.
        lowercase: lower-case the text before tokenising (an old sentence-transformers setting).
        reader: reads every input itself, pictures included; None for text only.
        pair: the text around query and document, for rerankers that read both as one prompt.
        messages: how texts become messages for the checkpoint's chat template; None where they stay texts.
        source: where this was read from, for `archport info`.
        images_only: whether the model reads no text at all, so that its checkpoint needs no tokenizer.
        spans: which tokens of a row see each other whichever comes first, by their ids (L,): pairs (start, stop), in
            order and apart from each other; for specs with layers that declare `spans`. It is asked about every row
            that is embedded, scored or read as a prompt, and never about what is generated.
    """

    max_tokens: int | None = None
    prompts: Mapping[str, str] = field(default_factory=dict[str, str])
    query_prompt: str | None = None
    document_prompt: str | None = None
    default_prompt: str | None = None
    final_token: int | None = None
    lowercase: bool = False
    reader: Reader | None = None
    pair: PairText | None = None
    images_only: bool = False
    query_tokens: int | None = None
    document_tokens: int | None = None
    spans: SpanRule | None = None
    messages: Messages | None = None
    empty_token: int | None = None
    dropped: tuple[int, ...] = ()
    source: str = "default"


class CheckpointView(Protocol):
    """What the head and inputs hooks may read of a checkpoint: its name, its normalised config and its small files."""

    @property
    def name(self) -> str:
        """The hub id or folder it was loaded as."""
        ...

    @property
    def config(self) -> Mapping[str, Any]:
        """`config.json`, normalised across dialects."""
        ...

    @property
    def folder(self) -> Path:
        """Where its files are."""
        ...

    def json(self, path: str) -> dict[str, Any] | None:
        """A JSON file of the checkpoint, None when absent. Raises CheckpointError when it is not a JSON object."""
        ...

    @property
    def label(self) -> str:
        """The last part of its hub id or folder, in small letters: all of a name that may decide anything, and only
        where no file speaks."""
        ...

    @property
    def modules(self) -> tuple[str, ...] | None:
        """The kinds of its pipeline's modules in order ("Transformer", "Pooling", ...); None without a pipeline."""
        ...

    def stored_head(self) -> Head:
        """What the checkpoint's pipeline files say of the head, or the documented default without them."""
        ...

    def score_activation(self, labels: int) -> Activation:
        """What the raw scores of pairs go through, by the checkpoint's files; sigmoid or identity where none speaks.

        Args:
            labels: scores per pair.
        """
        ...

    def stored_inputs(self) -> TextInputs:
        """What the checkpoint's pipeline files say of prompts and limits."""
        ...

    def tensor_shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of a stored tensor as the file has it (packed ones are narrower), None when absent.

        HEAD.weight may also be the tensor `weight` of HEAD.safetensors, next to the main weights.
        """
        ...

    def tells_pairs_apart(self) -> bool:
        """Whether the tokenizer numbers the texts of a pair (token_type_ids), by its files or its class."""
        ...

    def token_id(self, token: str) -> int | None:
        """The vocabulary id of a token, None when the tokenizer does not hold it."""
        ...


@dataclass(frozen=True, slots=True)
class Example:
    """A tiny config of this architecture for the conformance kit, and how to fill its random weights.

    Args:
        name: what is special about it ("gqa 4:1", "no pooler").
        config: a `config.json` as the published checkpoints have it, two to four layers.
        seed: of the random weights.
        scale: standard deviation of the random matrices; vectors (norms, biases) are perturbed around their default.
        publish: the module's tensors (name -> mx.array) as published checkpoints name and shape them, the inverse of
            `sanitize`; None where the two are the same.
    """

    name: str
    config: Mapping[str, Any]
    seed: int = 0
    scale: float = 0.05
    publish: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
