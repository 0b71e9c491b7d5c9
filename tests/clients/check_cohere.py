"""The cohere package against a running server."""

import cohere
from server import EMBED, RANK, TEXTS, URL, run

client = cohere.ClientV2(api_key="none", base_url=URL)


def vectors_of_every_type():
    made = client.embed(
        model=EMBED, texts=TEXTS, input_type="search_document", embedding_types=["float", "int8", "ubinary"]
    )
    assert len(made.embeddings.float_) == len(made.embeddings.int8) == 3


def documents_are_ranked():
    made = client.rerank(model=RANK, query="which", documents=TEXTS, top_n=2)
    assert len(made.results) == 2
    assert made.results[0].relevance_score >= made.results[1].relevance_score


def errors_are_the_client_s_own():
    try:
        client.embed(model="no", texts=TEXTS, input_type="search_query", embedding_types=["float"])
    except cohere.NotFoundError:
        return
    raise AssertionError("no NotFoundError")


if __name__ == "__main__":
    run(vectors_of_every_type, documents_are_ranked, errors_are_the_client_s_own)
