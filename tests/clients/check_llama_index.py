"""llama-index's OpenAI-like classes against a running server."""

from llama_index.core.llms import ChatMessage
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from server import CHAT, EMBED, TEXTS, URL, run

OPTIONS = {"api_base": f"{URL}/v1", "api_key": "none"}


def texts_are_embedded():
    client = OpenAILikeEmbedding(model_name=EMBED, **OPTIONS)
    assert len(client.get_text_embedding_batch(TEXTS)) == 3


def a_chat_is_answered_and_streamed():
    client = OpenAILike(model=CHAT, max_tokens=6, temperature=0.0, is_chat_model=True, **OPTIONS)
    message = [ChatMessage(role="user", content="hello")]
    assert "".join(each.delta or "" for each in client.stream_chat(message)) == client.chat(message).message.content


if __name__ == "__main__":
    run(texts_are_embedded, a_chat_is_answered_and_streamed)
