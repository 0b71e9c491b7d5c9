"""huggingface_hub's InferenceClient against a running server: Text Embeddings Inference's and OpenAI's routes."""

from huggingface_hub import InferenceClient
from server import CHAT, MESSAGES, URL, run


def vectors_come_of_text_embeddings_inference():
    made = InferenceClient(base_url=f"{URL}/embed").feature_extraction("one")
    assert made.ndim in (1, 2)


def a_chat_is_answered_and_streamed():
    client = InferenceClient(base_url=URL)
    whole = client.chat_completion(MESSAGES, model=CHAT, max_tokens=6, temperature=0.0)
    parts = client.chat_completion(MESSAGES, model=CHAT, max_tokens=6, temperature=0.0, stream=True)
    text = "".join(each.choices[0].delta.content or "" for each in parts if each.choices)
    assert text == whole.choices[0].message.content


if __name__ == "__main__":
    run(vectors_come_of_text_embeddings_inference, a_chat_is_answered_and_streamed)
