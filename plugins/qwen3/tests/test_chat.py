"""Conversations: messages to a prompt by the checkpoint's own template, in a sandbox, and what it may be told."""

import shutil
from pathlib import Path

import pytest

from archport import engine
from archport.contract import CheckpointError, InputError

GOLDENS = Path(__file__).parents[3] / "tests" / "goldens"
TEMPLATE = """{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}{% endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}{% endif %}"""


@pytest.fixture(scope="module")
def chatty(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat") / "tiny"
    shutil.copytree(GOLDENS / "qwen3-windowed", folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return engine.load(folder)


def test_messages_become_the_prompt_that_transformers_makes_of_them(chatty):
    from transformers import PreTrainedTokenizerFast

    reference = PreTrainedTokenizerFast(tokenizer_file=str(GOLDENS / "qwen3-windowed" / "tokenizer.json"))
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": 'a "word" & <b>\n'}]
    tools = [{"type": "function", "function": {"name": "größe", "description": "a < b & 'c'"}}]
    for options in ({}, {"tools": tools}, {"enable_thinking": False}):
        want = reference.apply_chat_template(
            messages, chat_template=TEMPLATE, tokenize=False, add_generation_prompt=True, **options
        )
        template = chatty._runtime.chat
        assert (
            template(messages, tools=options.get("tools"), options={**options, "tools": options.get("tools")}) == want
        )


def test_a_chat_generates_from_its_rendered_prompt(chatty):
    messages = [{"role": "user", "content": "the hack"}]
    rendered = chatty._runtime.chat(messages, options={"enable_thinking": False})
    want = chatty.generate(rendered, max_tokens=6)
    assert chatty.generate(messages, max_tokens=6, enable_thinking=False).text == want.text
    two = chatty.generate([messages, messages], max_tokens=6, enable_thinking=False)
    assert [each.text for each in two] == [want.text] * 2


def test_a_switch_that_the_template_does_not_read_is_refused_with_those_it_does(chatty):
    messages = [{"role": "user", "content": "the hack"}]
    with pytest.raises(InputError, match=r"reads no enable_thoughts.* it reads enable_thinking, tools"):
        chatty.generate(messages, max_tokens=2, enable_thoughts=False)
    assert chatty.generate(messages, max_tokens=2, stop=None).tokens


@pytest.mark.parametrize(
    ("source", "error", "match"),
    [
        (
            "{{ ''.__class__.__mro__ }}",
            CheckpointError,
            r"chat_template\.jinja\) asks for what no chat template may have",
        ),
        ("{{ messages.append(1) }}", CheckpointError, r"asks for what no chat template may have.*'append'"),
        ("{{ raise_exception('not today') }}", InputError, "refuses these messages: not today"),
    ],
)
def test_a_template_has_no_access_to_what_is_behind_its_values(source, error, match, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(GOLDENS / "qwen3-windowed", folder)
    (folder / "chat_template.jinja").write_text(source)
    with pytest.raises(error, match=match):
        engine.load(folder).generate([{"role": "user", "content": "a"}])


def test_a_last_message_is_continued_where_it_ends(chatty):
    messages = [{"role": "user", "content": "the hack"}, {"role": "assistant", "content": "It is"}]
    rendered = chatty._runtime.chat(messages, continue_final_message=True)
    assert rendered.endswith("<|im_start|>assistant\nIt is")
    want = chatty.generate(rendered, max_tokens=6)
    assert chatty.generate(messages, max_tokens=6, continue_final_message=True).tokens == want.tokens
    assert messages[-1]["content"] == "It is"


@pytest.mark.parametrize(
    ("messages", "told", "match"),
    [
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": None}], {}, "no 'content' to continue"),
        ([{"role": "assistant", "content": "a"}], {"add_generation_prompt": True}, "exclude each other"),
        ([{"role": "assistant", "content": [{"type": "tool_use"}]}], {}, "no text part to continue"),
        ("as it is", {}, "prompt 0 is taken as it is, so continue_final_message would change nothing"),
    ],
)
def test_what_can_t_be_continued_is_refused_in_words(messages, told, match, chatty):
    with pytest.raises(InputError, match=match):
        chatty.generate(messages, max_tokens=1, continue_final_message=True, **told)


@pytest.mark.parametrize(
    ("message", "match"),
    [
        ({"content": "a"}, "message 1 has role None; expected a name such as"),
        ({"role": 5, "content": "a"}, "message 1 has role 5"),
        ({"role": "user"}, r"message 1 \(user\) has a content of type NoneType"),
        ({"role": "user", "content": 5}, r"message 1 \(user\) has a content of type int"),
        ("a", "message 1 is a str"),
        ({"role": "user", "content": "a", "deep": [None]}, "message 1 holds lists and mappings more than 100 deep"),
    ],
)
def test_what_is_no_message_is_refused_with_its_number(message, match, chatty):
    if isinstance(message, dict) and "deep" in message:
        for _ in range(200):
            message = {**message, "deep": [message["deep"]]}
    with pytest.raises(InputError, match=match):
        chatty.generate([{"role": "user", "content": "a"}, message], max_tokens=1)


def test_messages_of_any_role_and_results_of_tools_reach_the_template(chatty):
    messages = [
        {"role": "user", "content": "a"},
        {"role": "tool", "content": None},
        {"role": "judge", "content": {"score": 1}},
        {"role": "tool", "content": [{"type": "text", "text": "b"}]},
    ]
    text = chatty._runtime.chat(messages)
    assert "<|im_start|>tool\n<|im_end|>\n<|im_start|>judge\n{'score': 1}<|im_end|>" in text
    assert chatty.generate(messages, max_tokens=2).usage.prompt_tokens > 0


@pytest.mark.parametrize("tools", ["a", ["a"], [None], {"name": "f"}])
def test_tools_that_are_no_descriptions_are_refused(tools, chatty):
    with pytest.raises(InputError, match=r"^tools.*; expected a"):
        chatty.generate([{"role": "user", "content": "a"}], max_tokens=1, tools=tools)
