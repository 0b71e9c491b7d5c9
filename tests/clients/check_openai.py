"""The openai package against a running server: sync, async, streams, structured output, errors."""

import asyncio
import json

import openai
from server import CHAT, EMBED, MESSAGES, TEXTS, URL, run

client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)


def vectors_come_as_base64_and_in_order():
    made = client.embeddings.create(model=EMBED, input=TEXTS)
    assert [each.index for each in made.data] == [0, 1, 2]
    floats = client.embeddings.create(model=EMBED, input=TEXTS, encoding_format="float")
    assert all(abs(a - b) < 1e-6 for a, b in zip(made.data[1].embedding, floats.data[1].embedding, strict=True))


def a_chat_is_answered():
    made = client.chat.completions.create(
        model=CHAT, messages=MESSAGES, max_tokens=8, temperature=0, logprobs=True, top_logprobs=2
    )
    assert made.usage.completion_tokens == 8
    assert len(made.choices[0].logprobs.content) == 8


def a_stream_says_the_same():
    whole = client.chat.completions.create(model=CHAT, messages=MESSAGES, max_tokens=8, temperature=0)
    stream = client.chat.completions.create(
        model=CHAT, messages=MESSAGES, max_tokens=8, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(each.choices[0].delta.content or "" for each in chunks if each.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == 8


def the_async_client_asks_many_at_once():
    async def main():
        async with openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="none") as each:
            asks = [each.chat.completions.create(model=CHAT, messages=MESSAGES, max_tokens=4, n=2) for _ in range(6)]
            return await asyncio.gather(*asks, each.embeddings.create(model=EMBED, input="a"))

    *chats, vectors = asyncio.run(main())
    assert all(len(chat.choices) == 2 for chat in chats)
    assert len(vectors.data) == 1


def structured_output_has_its_schema():
    schema = {
        "type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"], "additionalProperties": False,
    }  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "switch", "schema": schema, "strict": True}}
    made = client.chat.completions.create(model=CHAT, messages=MESSAGES, max_tokens=100, response_format=form)
    assert isinstance(json.loads(made.choices[0].message.content)["on"], bool)


def completions_and_responses_are_answered():
    assert client.completions.create(model=CHAT, prompt="a b", max_tokens=4).choices[0].finish_reason == "length"
    assert client.responses.create(model=CHAT, input="hello", max_output_tokens=4).status == "incomplete"
    kinds = [each.type for each in client.responses.create(model=CHAT, input="hello", max_output_tokens=4, stream=True)]
    assert kinds[0] == "response.created"


def tools_are_taken():
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]
    made = client.chat.completions.create(model=CHAT, messages=MESSAGES, max_tokens=4, tools=tools)
    assert made.choices[0].finish_reason in ("length", "stop", "tool_calls")


def a_demanded_call_is_made():
    count = {"type": "object", "properties": {"count": {"type": "integer", "maximum": 9}}, "required": ["count"]}
    tools = [{"type": "function", "function": {"name": name, "parameters": count}} for name in ("look", "paint")]
    for choice in ("required", {"type": "function", "function": {"name": "paint"}}):
        made = client.chat.completions.create(
            model=CHAT, messages=MESSAGES, max_tokens=300, tools=tools, tool_choice=choice, parallel_tool_calls=False
        )
        (call,) = made.choices[0].message.tool_calls
        assert call.function.name in (("look", "paint") if choice == "required" else ("paint",))
        assert isinstance(json.loads(call.function.arguments)["count"], int)


def models_are_listed():
    assert {EMBED, CHAT} <= {each.id for each in client.models.list()}
    assert client.models.retrieve(EMBED).id == EMBED


def errors_are_the_client_s_own():
    for wanted, ask in (
        (openai.BadRequestError, lambda: client.embeddings.create(model=EMBED, input=["word " * 600])),
        (openai.NotFoundError, lambda: client.embeddings.create(model="no", input="a")),
        (openai.BadRequestError, lambda: client.chat.completions.create(model=EMBED, messages=MESSAGES)),
    ):
        try:
            ask()
        except wanted:
            continue
        raise AssertionError(f"no {wanted.__name__}")


if __name__ == "__main__":
    run(
        vectors_come_as_base64_and_in_order, a_chat_is_answered, a_stream_says_the_same,
        the_async_client_asks_many_at_once, structured_output_has_its_schema, completions_and_responses_are_answered,
        tools_are_taken, a_demanded_call_is_made, models_are_listed, errors_are_the_client_s_own,
    )  # fmt: skip
