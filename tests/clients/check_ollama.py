"""The ollama package against a running server."""

import ollama
from server import CHAT, EMBED, MESSAGES, TEXTS, URL, run

client = ollama.Client(host=URL)
OPTIONS = {"num_predict": 6, "temperature": 0}


def texts_are_embedded():
    assert len(client.embed(model=EMBED, input=TEXTS).embeddings) == 3


def a_chat_is_answered_and_streamed():
    whole = client.chat(model=CHAT, messages=MESSAGES, options=OPTIONS).message.content
    parts = client.chat(model=CHAT, messages=MESSAGES, options=OPTIONS, stream=True)
    assert "".join(each.message.content or "" for each in parts) == whole


def prompts_go_on():
    assert client.generate(model=CHAT, prompt="hello", options=OPTIONS).done_reason == "length"


def models_are_listed():
    assert {EMBED, CHAT} <= {each.model for each in client.list().models}


if __name__ == "__main__":
    run(texts_are_embedded, a_chat_is_answered_and_streamed, prompts_go_on, models_are_listed)
