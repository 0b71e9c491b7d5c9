"""Chat templates in tokenizer_config.json and in files of their own, and the messages that they render."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from fuzz.cases import Seen, copied, edit_json, load
from fuzz.values import odd

FILES = True
SOUND = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
EXPRESSIONS = [
    *(
        "messages",
        "messages[0].content",
        "messages[0]['content'] | trim",
        "bos_token",
        "tools",
        "undefined_name",
        "x.y.z",
    ),
    *(
        "'a' * 2**33",
        "'a' * 10",
        "[1] * 10**9",
        "range(10**9) | list",
        "range(5) | list",
        "10 ** 10 ** 8",
        "'%*d' % (10**9, 1)",
    ),
    *(
        "'a'.center(10**9)",
        "'a'.zfill(10**10)",
        "messages | tojson(indent=10**9)",
        "messages | tojson",
        "1 / 0",
        "1 // 0",
    ),
    *(
        "'a' | indent(10**9)",
        "'{:>999999999}'.format(1)",
        "strftime_now('%Y' * 10**6)",
        "raise_exception('no')",
        "none.x",
    ),
    *("messages.__class__.__mro__", "''.__class__", "cycler.__init__.__globals__", "namespace(a=1).a", "lipsum(10**6)"),
    *(
        "messages[99]",
        "messages[0].missing | length",
        "'abc' | replace('', 'x' * 999)",
        "dict(a=1) | dictsort",
        "'a' ~ 1",
    ),
    *(
        "'a,b' | join(',')",
        "5 | length",
        "'x' | int(base=99)",
        "[3, 'a'] | sort",
        "loop.index",
        "messages | map('nope') | list",
    ),
    *(
        "'a' | batch(0) | list",
        "'abc' | slice(0) | list",
        "'a' | wordwrap(0)",
        "messages | groupby('role') | list",
        "self",
    ),
    *("super()", "caller()", "'' | first", "range(0, 10, 0)", "'a' in 5", "-'a'", "{[]: 1}", "'a' | format(1, 2, 3)"),
    *(
        "1 if",
        "(((((",
        "'unclosed",
        "a b",
        "'a' | nosuch",
        "1 is nosuch",
        "joiner() | string",
        "'\\ud800'",
        "messages | xmlattr",
    ),
]
STATEMENTS = [
    *(
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% for i in range(9) %}{% for j in range(9) %}x{% endfor %}{% endfor %}",
    ),
    *(
        "{% set x = messages %}",
        "{% set ns = namespace(n=0) %}{% set ns.n = ns.n + 1 %}",
        "{% if messages %}a{% endif %}",
    ),
    *(
        "{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}",
        "{% macro m() %}a{% endmacro %}{{ m() }}",
        "{% include 'x' %}",
    ),
    *(
        "{% import 'x' as y %}",
        "{% extends 'x' %}",
        "{% block a %}b{% endblock %}",
        "{% generation %}a{% endgeneration %}",
    ),
    *(
        "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
        "{% break %}",
        "{% for m in messages %}{% break %}{% endfor %}",
    ),
    *(
        "{% raw %}{{ x }}{% endraw %}",
        "{# a note #}",
        "{% if %}",
        "{% endfor %}",
        "{% for",
        "{{",
        "}}",
        "{%- -%}",
        "{% call x() %}{% endcall %}",
    ),
    *(
        "{% filter upper %}a{% endfilter %}",
        "{% set x %}a{% endset %}",
        "{% autoescape true %}{% endautoescape %}",
        "text",
        "\u0000",
    ),
    *(
        "{% trans %}a{% endtrans %}",
        "{% do messages.append(1) %}",
        "{% with a = 1 %}{{ a }}{% endwith %}",
        "{{ 'x' }}" * 500,
    ),
]
CONTENTS: list[Any] = [
    "hello",
    "",
    None,
    5,
    ["a"],
    [{"type": "text", "text": "a"}],
    [{"type": "image"}],
    {"a": 1},
    "\ud800",
]
ROLES: list[Any] = ["user", "assistant", "system", "tool", "odd", "", None, 5]


def cases() -> st.SearchStrategy[Any]:
    piece = st.one_of(st.sampled_from(EXPRESSIONS).map(lambda text: f"{{{{ {text} }}}}"), st.sampled_from(STATEMENTS))
    template = st.one_of(
        st.lists(piece, max_size=3).map(lambda pieces: SOUND + "".join(pieces)),
        st.lists(piece, max_size=2).map("".join),
        st.just(SOUND),
        odd(),
        st.lists(st.fixed_dictionaries({"name": odd(deep=False), "template": piece}), max_size=2),
    )
    message = st.fixed_dictionaries(
        {"role": st.sampled_from([*ROLES[:1] * 6, *ROLES]), "content": st.sampled_from([*CONTENTS[:1] * 8, *CONTENTS])}
    )
    options = st.dictionaries(
        st.sampled_from(["enable_thinking", "tools", "odd", "add_generation_prompt"]), odd(), max_size=1
    )
    return st.tuples(
        st.sampled_from(["generates", "generates", "hybrid", "sees"]),
        st.sampled_from(
            ["tokenizer_config.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json"]
        ),
        template,
        st.lists(message, min_size=1, max_size=3),
        options,
    )


def run(case: Any, bases: Path, place: Path, seen: Seen) -> None:
    base, file, template, messages, options = case
    folder = copied(bases, base, place)
    path = folder / file
    if file.endswith(".jinja"):
        path.write_bytes(str(template).encode("utf-8", "surrogatepass"))
    else:
        stored = json.loads(path.read_text()) if path.exists() else {}
        edit_json(path, {**stored, "chat_template": template})
    model = load(folder, seen)
    model.generate(messages, max_tokens=2, **options)
    seen.reached = True
