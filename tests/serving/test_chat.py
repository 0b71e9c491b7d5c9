"""Generation over HTTP says what `Model.generate` says, whole and as streams, for many callers at once."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
import time
from pathlib import Path

import pytest

from archport import engine

GOLDENS = Path(__file__).parents[1] / "goldens"
TEMPLATE = (
    "{% if tools %}{{ tools|tojson }}<tool_call>{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
MESSAGES = [{"role": "user", "content": "hello there"}]
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat") / "tiny"
    shutil.copytree(GOLDENS / "qwen3-windowed", folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return engine.load(folder, dtype="float32", prefix_cache=0)


@pytest.fixture
def serving(make, model):
    from archport.serving.models import served_model

    made = make()
    made.state.registry.add(served_model("tiny", model, {}, held=lambda: made.state.device.reserved))
    return made


def events(response):
    """The JSON of a stream's events; the last one is the end."""
    assert response.status_code == 200, response.text
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def streamed(response, index=0):
    """(text, finish_reason) of one answer of a chat's stream."""
    choices = [choice for event in events(response) for choice in event["choices"] if choice["index"] == index]
    assert choices[0]["delta"]["role"] == "assistant"
    return "".join(each["delta"].get("content") or "" for each in choices), choices[-1]["finish_reason"]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0},
        {"temperature": 0.9, "seed": 7, "top_p": 0.9},
        {"temperature": 1.2, "seed": 3, "presence_penalty": 1.0, "frequency_penalty": 0.5},
        {"temperature": 0, "logit_bias": {"5": 20}},
        {"temperature": 0, "stop": ["at", "xyz"]},
    ],
)
def test_an_answer_is_the_library_s_whole_and_as_a_stream(serving, model, options):
    own = {**options, "logit_bias": {5: 20.0} if "logit_bias" in options else None}
    expected = model.generate(MESSAGES, max_tokens=24, **own)
    body = {"messages": MESSAGES, "max_tokens": 24, **options}
    whole = serving.ask("/v1/chat/completions", body).json()["choices"][0]
    assert (whole["message"]["content"], whole["finish_reason"]) == (expected.text, expected.finish_reason)
    assert streamed(serving.ask("/v1/chat/completions", {**body, "stream": True})) == (
        expected.text,
        expected.finish_reason,
    )


def test_n_answers_are_the_library_s_and_told_apart_in_a_stream(serving, model):
    expected = [each.text for each in model.generate(MESSAGES, max_tokens=9, temperature=1.0, seed=4, n=3)]
    body = {"messages": MESSAGES, "max_tokens": 9, "seed": 4, "n": 3}
    answer = serving.ask("/v1/chat/completions", body).json()
    assert [each["message"]["content"] for each in answer["choices"]] == expected
    assert answer["usage"]["completion_tokens"] == 27
    stream = serving.ask("/v1/chat/completions", {**body, "stream": True})
    assert [streamed(stream, index)[0] for index in range(3)] == expected


def test_logprobs_are_the_library_s(serving, model):
    expected = model.generate(MESSAGES, max_tokens=5, logprobs=2)
    body = {"messages": MESSAGES, "max_tokens": 5, "temperature": 0, "logprobs": True, "top_logprobs": 2}
    for found in (
        serving.ask("/v1/chat/completions", body).json()["choices"][0]["logprobs"]["content"],
        [
            entry
            for event in events(serving.ask("/v1/chat/completions", {**body, "stream": True}))
            for choice in event["choices"]
            if choice["logprobs"]
            for entry in choice["logprobs"]["content"]
        ],
    ):
        assert [each["logprob"] for each in found] == pytest.approx(
            [each.logprob for each in expected.logprobs], abs=1e-4
        )
        assert all(len(each["top_logprobs"]) == 2 for each in found)


def test_usage_comes_last_and_only_when_it_is_asked_for(serving):
    body = {"messages": MESSAGES, "max_tokens": 3, "stream": True}
    assert all("usage" not in event for event in events(serving.ask("/v1/chat/completions", body)))
    *earlier, last = events(serving.ask("/v1/chat/completions", {**body, "stream_options": {"include_usage": True}}))
    assert all(event["usage"] is None for event in earlier)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 3


def test_completions_take_texts_and_ids(serving, model):
    texts = ["a b", "another one"]
    expected = [model.generate(text, max_tokens=6).text for text in texts]
    ids = [model._runtime.tokeniser.tokenizer.encode(text).ids for text in texts]
    for prompt in (texts, ids):
        answer = serving.ask("/v1/completions", {"prompt": prompt, "max_tokens": 6, "temperature": 0}).json()
        assert [each["text"] for each in answer["choices"]] == expected
    stream = events(
        serving.ask("/v1/completions", {"prompt": texts[0], "max_tokens": 6, "temperature": 0, "stream": True})
    )
    assert "".join(each["choices"][0]["text"] for each in stream) == expected[0]


def test_places_of_tokens_are_those_in_the_whole_text(serving):
    body = {"prompt": "a b", "max_tokens": 6, "temperature": 0, "logprobs": 1}
    (choice,) = serving.ask("/v1/completions", body).json()["choices"]
    whole = choice["logprobs"]
    assert whole["text_offset"] == [len("".join(whole["tokens"][:at])) for at in range(6)]
    told = [
        event["choices"][0]["logprobs"] for event in events(serving.ask("/v1/completions", {**body, "stream": True}))
    ]
    assert [offset for each in told for offset in each["text_offset"]] == whole["text_offset"]


def test_responses_say_the_same_whole_and_as_a_stream(serving, model):
    expected = model.generate(MESSAGES, max_tokens=6).text
    body = {"input": "hello there", "max_output_tokens": 6, "temperature": 0}
    answer = serving.ask("/v1/responses", body).json()
    assert answer["output"][0]["content"][0]["text"] == expected
    assert (answer["status"], answer["incomplete_details"]["reason"]) == ("incomplete", "max_output_tokens")
    lines = serving.ask("/v1/responses", {**body, "stream": True}).text.splitlines()
    told = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    assert "".join(each["delta"] for each in told if each["type"] == "response.output_text.delta") == expected
    assert [each["sequence_number"] for each in told] == list(range(len(told)))
    assert told[-1]["type"] == "response.incomplete"


def test_ollama_streams_lines_unless_it_is_told_not_to(serving, model):
    expected = model.generate(MESSAGES, max_tokens=6).text
    body = {"model": "tiny", "messages": MESSAGES, "options": {"num_predict": 6, "temperature": 0}}
    lines = [json.loads(line) for line in serving.ask("/api/chat", body).text.splitlines()]
    assert "".join(each["message"]["content"] for each in lines) == expected
    assert [each["done"] for each in lines] == [False] * (len(lines) - 1) + [True]
    assert (lines[-1]["eval_count"], lines[-1]["done_reason"]) == (6, "length")
    whole = serving.ask("/api/generate", {**body, "prompt": "hello there", "stream": False}).json()
    assert whole["response"] == expected


@pytest.mark.parametrize("more", [{"images": ["aGVsbG8="]}, {"system": "be brief"}])
def test_what_a_raw_prompt_has_no_place_for_is_refused(serving, more):
    response = serving.ask("/api/generate", {"prompt": "a", "raw": True, "options": {"num_predict": 2}, **more})
    assert (response.status_code, response.json()["code"]) == (400, "unsupported_operation")


def test_callers_at_once_say_what_each_says_alone(serving, model):
    asked = [
        {
            "messages": [{"role": "user", "content": "word " * (1 + 7 * at)}],
            "max_tokens": 5 + at,
            "temperature": float(at % 2),
            "seed": at,
        }
        for at in range(10)
    ]
    expected = [
        model.generate(each["messages"], **{key: each[key] for key in ("max_tokens", "temperature", "seed")}).text
        for each in asked
    ]

    async def run():
        async with serving.client() as client:
            return await asyncio.gather(*(client.post("/v1/chat/completions", json=each) for each in asked))

    assert [each.json()["choices"][0]["message"]["content"] for each in asyncio.run(run())] == expected


@pytest.mark.needs("llguidance")
@pytest.mark.parametrize(
    ("form", "valid"),
    [
        ({"type": "regex", "pattern": "[ab]{3}c?"}, lambda text: len(text) in (3, 4)),
        (
            {"type": "json_schema", "json_schema": {"schema": {
                "type": "object", "properties": {"on": {"type": "boolean"}, "kind": {"enum": ["x", "y"]}},
                "required": ["on", "kind"], "additionalProperties": False}}},
            lambda text: set(json.loads(text)) == {"on", "kind"},
        ),
    ],
)  # fmt: skip
def test_a_text_has_the_form_that_was_asked_for(serving, form, valid):
    for seed in range(5):
        body = {"messages": MESSAGES, "max_tokens": 200, "seed": seed, "response_format": form}
        choice = serving.ask("/v1/chat/completions", body).json()["choices"][0]
        assert choice["finish_reason"] == "stop"
        assert valid(choice["message"]["content"])


@pytest.mark.needs("llguidance")
@pytest.mark.parametrize(
    "form", [{"type": "yaml"}, {"type": "json_schema"}, {"type": "regex", "pattern": "("}, {"type": "regex"}]
)
def test_a_form_that_is_none_is_400(serving, form):
    response = serving.ask("/v1/chat/completions", {"messages": MESSAGES, "response_format": form})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_response_format")


def test_calls_of_tools_are_parsed_and_streamed(serving, monkeypatch):
    text = 'Look.\n<tool_call>\n{"name": "look", "arguments": {"at": "the sky", "n": 2}}\n</tool_call>'
    from archport.generating import talks

    # The tiny model says nothing useful, so its text is another one.
    monkeypatch.setattr(talks.RowText, "add", lambda self, token: "")
    monkeypatch.setattr(talks.RowText, "finish", lambda self: text)
    body = {"messages": MESSAGES, "max_tokens": 4, "tools": TOOLS, "stop_token_ids": list(range(500))}
    choice = serving.ask("/v1/chat/completions", body).json()["choices"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", "Look.")
    (call,) = choice["message"]["tool_calls"]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("look", {"at": "the sky", "n": 2})
    deltas = [
        each["choices"][0]["delta"]["tool_calls"][0]
        for each in events(serving.ask("/v1/chat/completions", {**body, "stream": True}))
        if each["choices"][0]["delta"].get("tool_calls")
    ]
    assert deltas[0]["id"].startswith("call_")
    assert {each["index"] for each in deltas} == {0}
    assert json.loads("".join(each["function"]["arguments"] for each in deltas)) == {"at": "the sky", "n": 2}
    # Without tools, or where none may be called, it is text.
    for more in ({"tools": None}, {"tool_choice": "none"}):
        told = serving.ask("/v1/chat/completions", {**body, **more}).json()["choices"][0]
        assert (told["message"]["content"], told["finish_reason"]) == (text, "stop")


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"messages": []}, "empty_input"),
        ({"messages": [{"content": "a"}]}, "invalid_type"),
        ({"messages": [{"role": "user", "content": 5}]}, "invalid_type"),
        ({"max_tokens": 0}, "invalid_value"),
        ({"n": 0}, "invalid_value"),
        ({"n": 1000}, "invalid_value"),
        ({"temperature": -1}, "invalid_input"),
        ({"temperature": "hot"}, "invalid_type"),
        ({"top_p": 0}, "invalid_input"),
        ({"logit_bias": {"x": 1}}, "invalid_value"),
        ({"logit_bias": {"100000": 1}}, "invalid_input"),
        ({"top_logprobs": 2}, "invalid_value"),
        ({"tool_choice": "always"}, "invalid_value"),
        ({"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, "invalid_value"),
        ({"chat_template_kwargs": {"no_such": 1}}, "invalid_input"),
        ({"messages": [{"role": "user", "content": "x " * 800}]}, "context_length_exceeded"),
        ({"model": "other"}, "model_not_found"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_wrong_with_a_chat_has_its_status_before_any_stream(serving, more, code, stream):
    response = serving.ask("/v1/chat/completions", {"messages": MESSAGES, "stream": stream, **more})
    assert (response.status_code, response.json()["error"]["code"]) == (404 if code == "model_not_found" else 400, code)


@pytest.mark.parametrize(
    "more",
    [{"temperature": -1}, {"top_p": 5}, {"min_p": 2}, {"logit_bias": {"100000": 1}}, {"logit_bias": {"1": 1000}}],
)
def test_a_wrong_option_is_refused_under_its_name(serving, more):
    (name,) = more
    for path in ("/v1/chat/completions", "/v1/completions"):
        error = serving.ask(path, {"messages": MESSAGES, "prompt": "a", "max_tokens": 2, **more}).json()["error"]
        assert (error["param"], error["message"][: len(name)]) == (name, name)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/chat/completions", "chat_template"),
        ("/v1/embeddings", "chat_template"),
        ("/api/generate", "template"),
        ("/api/chat", "template"),
    ],
)
def test_a_request_brings_no_template(serving, path, name):
    body = {"messages": MESSAGES, "prompt": "a", "input": "a"}
    response = serving.ask(path, {**body, name: "{{ 7 * 7 }}"})
    assert response.status_code == 400
    assert name in response.text
    # What clients send for none.
    assert name not in serving.ask(path, {**body, "max_tokens": 1, "stream": False, name: ""}).text


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("stream", [False, True])
def test_too_many_answers_are_refused_before_anything_is_made_for_each(serving, monkeypatch, path, stream):
    from archport.serving.dialects import chat
    from archport.serving.talking import Talks

    made = []
    monkeypatch.setattr(Talks, "answers", lambda *_: made.append("answers"))
    monkeypatch.setattr(chat.Answer, "__init__", lambda self: made.append("answer"))
    response = serving.ask(path, {"messages": MESSAGES, "prompt": "a", "n": 20, "stream": stream})
    assert (response.status_code, response.json()["error"]["param"], made) == (400, "n", [])


def test_a_limit_of_tokens_is_refused_by_the_name_that_the_request_has_for_it(serving):
    error = serving.ask("/v1/responses", {"input": "a", "max_output_tokens": 0}).json()["error"]
    assert (error["param"], error["message"].split()[0]) == ("max_output_tokens", "max_output_tokens")


@pytest.mark.parametrize("url", ["http://127.0.0.1/x.png", "/etc/passwd", "file:///etc/passwd"])
def test_a_picture_s_address_in_a_chat_is_422(serving, url):
    part = {"type": "image_url", "image_url": {"url": url}}
    response = serving.ask("/v1/chat/completions", {"messages": [{"role": "user", "content": [part]}]})
    assert (response.status_code, response.json()["error"]["code"]) == (422, "invalid_media")


def test_a_client_that_leaves_ends_its_generation(serving, eventually, monkeypatch):
    left = threading.Event()
    chats = serving.state.generations.of(serving.state.registry.find(None))
    step = chats.batch.step
    # After the first step, which reserves, the device waits for the client to leave.
    monkeypatch.setattr(chats.batch, "step", lambda: (serving.state.device.reserved and left.wait(60), step()))

    async def run():
        async with serving.client() as client:
            task = asyncio.ensure_future(
                client.post("/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 400})
            )
            while not serving.state.device.reserved:
                await asyncio.sleep(0.002)
            task.cancel()
            await asyncio.wait((task,))
            left.set()

    asyncio.run(run())
    eventually(lambda: serving.state.device.reserved == 0)


def test_a_deadline_ends_a_generation(serving, eventually, monkeypatch):
    from dataclasses import replace

    serving.state.generations._limits = replace(serving.state.settings.limits, seconds=0.05)
    chats = serving.state.generations.of(serving.state.registry.find(None))
    step = chats.batch.step
    monkeypatch.setattr(chats.batch, "step", lambda: (time.sleep(0.02), step()))
    response = serving.ask("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 400})
    assert (response.status_code, response.json()["error"]["code"]) == (504, "timeout")
    eventually(lambda: serving.state.device.reserved == 0)


def test_an_error_after_a_stream_began_is_its_last_event(serving, monkeypatch):
    from archport.generating import talks
    from archport.generating.talks import Row

    take = Row.take

    def broken(self, *arguments):
        if len(self.tokens) == 3:
            raise talks.NonFiniteOutput("the logits hold NaN")
        return take(self, *arguments)

    monkeypatch.setattr(Row, "take", broken)
    text = serving.ask("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 9, "stream": True}).text
    last = json.loads(text.strip().splitlines()[-1].removeprefix("data: "))
    assert last["error"]["code"] == "non_finite_output"
    assert "[DONE]" not in text


def test_a_prompt_waits_for_what_another_model_s_texts_hold(serving):
    class Other:
        ready, awaited, reserved = False, False, 1 << 50

        def close_all(self, error):
            return 0

    other, state = Other(), serving.state
    state.device.steps.append(other)

    async def run():
        async with serving.client() as client:
            body = {"messages": MESSAGES, "max_tokens": 3}
            asked = asyncio.ensure_future(client.post("/v1/chat/completions", json=body))
            await asyncio.wait((asked,), timeout=0.3)
            assert not asked.done()
            # What texts hold comes back on the device's thread.
            await asyncio.wrap_future(state.device.call(lambda: setattr(other, "reserved", 0)))
            return await asked

    assert asyncio.run(run()).status_code == 200


def test_embeddings_and_chat_share_the_device(serving, model, tiny):
    from archport.serving.models import served_model

    serving.state.registry.add(served_model("bert", tiny("bert-plain"), {}, held=lambda: serving.state.device.reserved))
    texts = ["some words " * 20] * 40
    expected = model.generate(MESSAGES, max_tokens=40).text

    async def run():
        async with serving.client() as client:
            body = {"messages": MESSAGES, "max_tokens": 40, "temperature": 0, "model": "tiny"}
            return await asyncio.gather(
                client.post("/v1/chat/completions", json=body),
                *(client.post("/v1/embeddings", json={"input": texts, "model": "bert"}) for _ in range(3)),
            )

    chat, *vectors = asyncio.run(run())
    assert chat.json()["choices"][0]["message"]["content"] == expected
    assert [each.status_code for each in vectors] == [200] * 3
