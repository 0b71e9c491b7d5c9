"""litellm against a running server, its map of costs from its own package."""

import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm
from server import CHAT, EMBED, MESSAGES, RANK, TEXTS, URL, run

OPTIONS = {"api_base": f"{URL}/v1", "api_key": "none"}


def texts_are_embedded():
    assert len(litellm.embedding(model=f"openai/{EMBED}", input=TEXTS, **OPTIONS).data) == 3


def a_chat_is_answered_and_streamed():
    asked = {"model": f"openai/{CHAT}", "messages": MESSAGES, "max_tokens": 6, "temperature": 0, **OPTIONS}
    parts = litellm.completion(stream=True, **asked)
    text = "".join(each.choices[0].delta.content or "" for each in parts)
    assert text == litellm.completion(**asked).choices[0].message.content


def documents_are_ranked():
    made = litellm.rerank(
        model=f"jina_ai/{RANK}", query="which", documents=TEXTS, top_n=2, api_base=f"{URL}/v1/rerank", api_key="none"
    )
    assert len(made.results) == 2


def a_chat_that_is_too_long_is_known_as_that():
    try:
        litellm.completion(model=f"openai/{CHAT}", messages=[{"role": "user", "content": "x " * 900}], **OPTIONS)
    except litellm.ContextWindowExceededError:
        return
    raise AssertionError("no ContextWindowExceededError")


if __name__ == "__main__":
    run(
        texts_are_embedded,
        a_chat_is_answered_and_streamed,
        documents_are_ranked,
        a_chat_that_is_too_long_is_known_as_that,
    )
