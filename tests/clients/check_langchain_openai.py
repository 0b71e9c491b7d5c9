"""langchain-openai against a running server."""

from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from server import CHAT, EMBED, TEXTS, URL, run

OPTIONS = {"base_url": f"{URL}/v1", "api_key": "none"}


def documents_and_queries_are_embedded():
    # Its own tokenizer's ids would be refused.
    client = OpenAIEmbeddings(model=EMBED, check_embedding_ctx_length=False, **OPTIONS)
    assert len(client.embed_documents(TEXTS)) == 3
    assert client.embed_query("one") == client.embed_documents(["one"])[0]


def a_chat_is_answered_and_streamed():
    client = ChatOpenAI(model=CHAT, max_tokens=6, temperature=0, **OPTIONS)
    assert "".join(each.text for each in client.stream("hello")) == client.invoke("hello").text


if __name__ == "__main__":
    run(documents_and_queries_are_embedded, a_chat_is_answered_and_streamed)
