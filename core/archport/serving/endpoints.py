"""Every address that the server answers, in one table: what is not here is a 404 and in no document."""

from __future__ import annotations

from archport.serving import live as live_page
from archport.serving.dialects import chat, cohere, completions, ollama, ollama_chat, openai, ranking, responses, tei
from archport.serving.http import Endpoint
from archport.serving.operations import live, metrics, ready

ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint("GET", "/health/live", live, None, openai.shape, "Whether the process answers.", "operations"),
    Endpoint("GET", "/health/ready", ready, None, openai.shape, "Whether requests are taken.", "operations"),
    # Text Embeddings Inference's and Docker's.
    Endpoint("GET", "/health", ready, None, tei.shape, "Whether requests are taken.", "operations"),
    Endpoint(
        "GET", "/metrics", metrics, None, openai.shape, "Prometheus' text format.", "operations", media="text/plain"
    ),
    Endpoint("GET", "/", live_page.page, None, openai.shape, "A page to look at.", "operations", media="text/html"),
    Endpoint("GET", "/page.json", live_page.numbers, None, openai.shape, "What the page shows.", "operations"),
    Endpoint(
        "GET",
        "/plans.json",
        live_page.plans,
        None,
        openai.shape,
        "What the page shows of what fits where: planned points of one model on one device.",
        "operations",
        query=live_page.PLANS_QUERY,
        waits=True,
    ),
    Endpoint("GET", "/v1/models", openai.models, None, openai.shape, "The models.", "openai"),
    Endpoint("GET", "/v1/models/{id:path}", openai.model, None, openai.shape, "One model.", "openai"),
    Endpoint(
        "POST", "/v1/embeddings", openai.embeddings, openai.EmbeddingsBody, openai.shape, "Vectors of inputs.", "openai"
    ),
    Endpoint(
        "POST",
        "/v1/chat/completions",
        chat.completions,
        chat.ChatBody,
        openai.shape,
        "Answers to a chat.",
        "openai",
        streams=True,
    ),
    Endpoint(
        "POST",
        "/v1/completions",
        completions.completions,
        completions.CompletionBody,
        openai.shape,
        "What follows prompts.",
        "openai",
        streams=True,
    ),
    Endpoint(
        "POST",
        "/v1/responses",
        responses.responses,
        responses.ResponsesBody,
        openai.shape,
        "An answer.",
        "openai",
        streams=True,
    ),
    Endpoint("POST", "/v2/embed", cohere.embed, cohere.EmbedBody, cohere.shape, "Vectors of inputs.", "cohere"),
    Endpoint("POST", "/rerank", ranking.rerank, ranking.RerankBody, openai.shape, "Documents by relevance.", "rerank"),
    Endpoint(
        "POST", "/v1/rerank", ranking.rerank, ranking.RerankBody, openai.shape, "Documents by relevance.", "rerank"
    ),
    Endpoint(
        "POST", "/v2/rerank", ranking.rerank, ranking.RerankBody, cohere.shape, "Documents by relevance.", "rerank"
    ),
    Endpoint("POST", "/score", ranking.score, ranking.ScoreBody, openai.shape, "Scores of pairs.", "vllm"),
    Endpoint("POST", "/classify", ranking.classify, ranking.ClassifyBody, openai.shape, "Labels of texts.", "vllm"),
    Endpoint("POST", "/embed", tei.embed, tei.EmbedBody, tei.shape, "Vectors of texts.", "tei"),
    Endpoint("POST", "/embed_all", tei.embed_all, tei.EmbedBody, tei.shape, "A vector of every token.", "tei"),
    Endpoint("POST", "/embed_sparse", tei.embed_sparse, tei.SparseBody, tei.shape, "Weights of words of texts.", "tei"),
    Endpoint("POST", "/predict", tei.predict, tei.PredictBody, tei.shape, "Labels of texts and pairs.", "tei"),
    Endpoint("POST", "/tokenize", tei.tokenize, tei.TokenizeBody, tei.shape, "Tokens of texts.", "tei"),
    Endpoint("GET", "/info", tei.info, None, tei.shape, "The server and its model.", "tei"),
    Endpoint("POST", "/api/embed", ollama.embed, ollama.EmbedBody, ollama.shape, "Vectors of texts.", "ollama"),
    Endpoint(
        "POST",
        "/api/chat",
        ollama_chat.chat,
        ollama_chat.ChatBody,
        ollama.shape,
        "An answer to a chat.",
        "ollama",
        streams=True,
    ),
    Endpoint(
        "POST",
        "/api/generate",
        ollama_chat.generate,
        ollama_chat.GenerateBody,
        ollama.shape,
        "What follows a prompt.",
        "ollama",
        streams=True,
    ),
    Endpoint("GET", "/api/tags", ollama.tags, None, ollama.shape, "The models.", "ollama"),
    Endpoint("GET", "/api/version", ollama.version, None, ollama.shape, "The version.", "ollama"),
)
