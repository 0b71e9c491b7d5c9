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
