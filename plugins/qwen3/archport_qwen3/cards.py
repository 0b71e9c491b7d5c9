"""What model cards of Qwen2 and Qwen3 checkpoints say where no file of the repository could: prompts, pairs, answers.

A stored pipeline always wins. A name decides nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from archport.contract import (
    ArchSpec,
    CheckpointError,
    CheckpointView,
    EmbeddingHead,
    Head,
    PairText,
    TextInputs,
    YesNoHead,
)

# The Qwen3 card's default task, of embedding and of reranking.
TASK = "Given a web search query, retrieve relevant passages that answer the query"
# There is no space after "Query:" in the published format.
QUERY_PROMPT = f"Instruct: {TASK}\nQuery:"
END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True, slots=True)
class RerankerCard:
    """How a reranker without a pipeline is asked, and which words answer.

    Args:
        mark: what is part of its label.
        yes, no: the two answers, each a token of the vocabulary.
    """

    name: str
    mark: str
    pair: PairText
    yes: str
    no: str


QWEN3_RERANKER = RerankerCard(
    "Qwen3-Reranker",
    "reranker",
    PairText(
        prefix="<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the "
        'Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n',
        body="<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}",
        suffix="<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        instruction=TASK,
        max_tokens=8192,
    ),
    "yes",
    "no",
)
# The query, the document and what follows are tokenised apart in the published code.
MXBAI_RERANK_V2 = RerankerCard(
    "mxbai-rerank-v2",
    "mxbai-rerank",
    PairText(
        prefix="<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n",
        body="query: {query}",
        instructed="instruction: {instruction}\nquery: {query}",
        document="\ndocument: {document}",
        suffix="\nYou are a search relevance expert who evaluates how well documents match search queries. For each "
        "query-document pair, carefully analyze the semantic relationship between them, then provide your binary "
        "relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:<|im_end|>\n<|im_start|>assistant\n",
        max_tokens=8192,
    ),
    "1",
    "0",
)


def _reranker(spec: ArchSpec, checkpoint: CheckpointView) -> RerankerCard | None:
    """The card of a reranker: nothing in published files without a pipeline tells one from a generator but its name."""
    if checkpoint.modules is not None or "generate" not in spec.tasks:
        return None
    cards = (MXBAI_RERANK_V2, QWEN3_RERANKER) if spec.arch == "qwen2" else (QWEN3_RERANKER,)
    return next((card for card in cards if card.mark in checkpoint.label), None)


def _is_embedding(checkpoint: CheckpointView) -> bool:
    # Embedding repositories carry a sentence-transformers pipeline; conversions often drop it but keep the name.
    return checkpoint.modules is None and "qwen3-embed" in checkpoint.label


def head(spec: ArchSpec, checkpoint: CheckpointView) -> Head | None:
    card = _reranker(spec, checkpoint)
    if card is not None:
        yes, no = _answer(checkpoint, card, card.yes), _answer(checkpoint, card, card.no)
        return YesNoHead(yes, no, f"the {card.name} model card")
    if not _is_embedding(checkpoint):
        return None
    return EmbeddingHead(pooling=("last",), normalize=True, source="the Qwen3-Embedding model card")


def _answer(checkpoint: CheckpointView, card: RerankerCard, word: str) -> int:
    known = checkpoint.token_id(word)
    if known is None:
        raise CheckpointError(
            f"{checkpoint.name}: the tokenizer has no token {word!r}, which a {card.name} is scored by; the "
            "tokenizer files belong to another model, or this checkpoint is no reranker despite its name"
        )
    return known


def inputs(spec: ArchSpec, checkpoint: CheckpointView) -> TextInputs | None:
    card = _reranker(spec, checkpoint)
    if card is not None:
        return TextInputs(pair=card.pair, source=f"the {card.name} model card")
    if not _is_embedding(checkpoint):
        return None
    # Conversions that drop the pipeline may keep its prompts.
    kept = (checkpoint.json("config_sentence_transformers.json") or {}).get("prompts") or {}
    return replace(
        checkpoint.stored_inputs(),
        prompts={"query": QUERY_PROMPT, "document": "", **kept},
        query_prompt="query",
        document_prompt="document",
        source="the Qwen3-Embedding model card",
        # Pooling reads the final token, which the model was trained to find there; it is also the padding token.
        final_token=checkpoint.token_id(END_OF_TEXT),
    )
