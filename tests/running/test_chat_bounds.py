"""Whatever a chat template does, it ends soon, holds little memory, and fails with an error that names its file."""

from __future__ import annotations

import gc
import resource
import sys
import time
from typing import Any

import pytest

from archport.contract import CheckpointError, InputError
from archport.reading.chat import ChatTemplate

MESSAGES = [{"role": "user", "content": "hi there, [x] <b>"}, {"role": "assistant", "content": "yes"}]
FILE = "chat_template.jinja"
# Of this thread: others may have the processor. The issue allows two seconds beyond an intact load.
SECONDS, BYTES = 2.0, 500 << 20


def rendered(source: str, messages: Any = MESSAGES) -> str:
    return ChatTemplate({"default": source}, {}, "hostile", {"default": FILE})(messages)


def peak() -> int:
    """The most bytes that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def again(body: str, end: str = "") -> str:
    """A template that runs a body 100 times, for what doubles."""
    return "{% set ns = namespace(x=[1], s='a') %}{% for a in range(100) %}" + body + "{% endfor %}" + end


NESTED = "{% set ns.x = [ns.x, ns.x] %}"
TUPLES = "{% set ns.s = (ns.s, ns.s) %}"
ENDLESS = "{% for a in range(100000) %}{% for b in range(100000) %}", "{% endfor %}{% endfor %}"

BOMBS = {
    "a text times": "{{ 'a' * 2**33 }}",
    "times a text": "{{ 2**33 * 'a' }}",
    "a list times": "{{ [1] * 2**33 }}",
    "a power": "{{ 2**(2**40) }}",
    "a negative power": "{{ (2**60000)**(-(10**9)) }}",
    "squares": again("{% set ns.s = (ns.s|int + 3) ** 2 %}", "{{ ns.s % 7 }}"),
    "center": "{{ 'a'|center(10**10) }}",
    "center method": "{{ 'a'.center(10**10) }}",
    "ljust": "{{ 'a'.ljust(10**10) }}",
    "rjust": "{{ 'a'.rjust(10**10, 'x') }}",
    "zfill": "{{ 'a'.zfill(10**10) }}",
    "percent star": "{{ '%*d' % (10**10, 1) }}",
    "percent width": "{{ '%10000000000d' % 1 }}",
    "percent precision": "{{ '%.*f' % (10**9, 1.0) }}",
    "percent mapping": "{{ '%(a)999999999s' % {'a': 1} }}",
    "format filter": "{{ '%999999999d'|format(1) }}",
    "format": "{{ '{:>9999999999}'.format(1) }}",
    "format inner": "{{ '{:{w}}'.format(1, w=10**9) }}",
    "format_map": "{{ '{a:999999999}'.format_map({'a': 1}) }}",
    "tojson indent": "{{ messages|tojson(indent=10**9) }}",
    "tojson indent text": "{{ messages|tojson(indent='x'*10**7) }}",
    "tojson separators": "{{ range(100000)|list|tojson(separators=('x'*100000, ':')) }}",
    "plus": again("{% set ns.s = ns.s + ns.s %}"),
    "concat": again("{% set ns.s = ns.s ~ ns.s %}"),
    "join": again("{% set ns.s = [ns.s, ns.s]|join %}"),
    "join method": again("{% set ns.s = ns.s.join([ns.s, ns.s]) %}"),
    "join separator": "{{ range(100000)|join('x'*10000)|length }}",
    "split": "{% set ns = namespace(l=[]) %}{% for i in range(9) %}"
    "{% set ns.l = [ns.l, ('ab '*10**7).split()] %}{% endfor %}",
    "split at": "{{ ('ab,'*10**7).split(',')|length }}",
    "lines": "{{ ('ab\x0b'*10**7).splitlines()|length }}",
    "join attribute": "{{ ([{'a': 'x'*10**6}]*1000)|join(attribute='a')|length }}",
    "replace": again("{% set ns.s = ns.s|replace('a', 'aa') %}"),
    "replace method": again("{% set ns.s = ns.s.replace('a', 'aa') %}"),
    "format doubles": again("{% set ns.s = '{}{}'.format(ns.s, ns.s) %}"),
    "percent doubles": again("{% set ns.s = '%s%s' % (ns.s, ns.s) %}"),
    "set block": again("{% set t %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = t %}"),
    "macro": "{% macro d(x) %}{{ x }}{{ x }}{% endmacro %}" + again("{% set ns.s = d(ns.s) %}"),
    "macro of text": "{% macro d() %}" + "x" * 1000 + "{% endmacro %}{% set ns = namespace(l=[]) %}"
    "{% for i in range(100000) %}{% set ns.l = [ns.l, d()] %}{% endfor %}",
    "lists": again("{% set ns.x = ns.x + ns.x %}"),
    "slices": "{% set ns = namespace(l=[]) %}{% set s = 'a'*10**6 %}"
    "{% for i in range(100000) %}{% set ns.l = [ns.l, s[1:]] %}{% endfor %}",
    "output": "{% for a in range(100000) %}" + "x" * 50_000 + "{% endfor %}",
    "escapes": "{% autoescape true %}{% set x = '<'*10**6 %}{% set y %}"
    "{% for i in range(99) %}{{ x }}{% endfor %}{% endset %}{% endautoescape %}",
    "nested written": again(NESTED, "{{ ns.x }}"),
    "nested joined": again(NESTED, "{{ ns.x ~ '' }}"),
    "nested json": again(NESTED, "{{ ns.x|tojson }}"),
    "nested string": again(NESTED, "{{ ns.x|string|length }}"),
    "nested pprint": again(NESTED, "{{ ns.x|pprint }}"),
    "nested percent": again(NESTED, "{{ '%s' % (ns.x,) }}"),
    "nested format": again(NESTED, "{{ '{!r}'.format(ns.x) }}"),
    "nested compared": again(NESTED, "{% set o = ns.x %}{% set ns.x = [1] %}" + again(NESTED) + "{{ ns.x == o }}"),
    "nested in": again(NESTED, "{% set q = [ns.x] %}{{ ns.x in q }}"),
    "nested test": again(NESTED, "{{ [ns.x]|select('eq', [ns.x, 1])|list|length }}"),
    "nested index": again(NESTED, "{{ [ns.x].index([1]) }}"),
    "nested sort": again(NESTED, "{{ [ns.x, [ns.x, 1]]|sort|length }}"),
    "nested changed": again(NESTED, "{% for i in range(3) %}{{ loop.changed([ns.x, i]) }}{% endfor %}"),
    "nested key": again(TUPLES, "{{ {ns.s: 1}|length }}"),
    "nested item": again(TUPLES, "{{ messages[0][ns.s] }}"),
    "nested get": again(TUPLES, "{{ messages[0].get(ns.s) }}"),
    "nested unique": again(TUPLES, "{{ [ns.s]|unique|list|length }}"),
    "nested namespaces": again("{% set ns.x = namespace(a=ns.x, b=ns.x) %}", "{{ ns.x }}"),
    "deep": "{% set ns = namespace(x=[1]) %}{% for a in range(100000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
    "wide": "{{ [['a'*1000]*1000]*1000 }}",
    "indent": "{{ messages[0].content|indent(10**9) }}",
    "indent text": "{{ 'a\nb'|indent('x'*(10**9))|length }}",
    "batch": "{{ [1]|batch(10**9, 'x')|list|length }}",
    "slice": "{{ [1]|slice(10**9)|list|length }}",
    "range": "{{ range(10**9) }}",
    "ranges": "{% for a in range(10000) %}{% set x = range(100000)|list %}{% endfor %}",
    "lipsum": "{{ lipsum(n=10**9) }}",
    "round": "{{ 1.5|round(10**9, 'ceil') }}",
    "to_bytes": "{{ (5).to_bytes(10**10, 'big') }}",
    "wordwrap": "{{ ('a'*100000)|wordwrap(1, wrapstring='x'*10000) }}",
    "expandtabs": "{{ '\t'.expandtabs(10**10) }}",
    "translate": "{{ ('a'*10000).translate({97: 'b'*100000})|length }}",
    "loops": "".join(ENDLESS),
    "loops that write": ENDLESS[0] + "x" + ENDLESS[1],
    "loop filter": "{% for a in range(100000) %}{% for b in range(100000) if false %}{% endfor %}{% endfor %}",
    "maps": "{% for a in range(100000) %}{{ range(100000)|map('string')|list|length }}{% endfor %}",
    "sums": "{% for a in range(100000) %}{{ range(100000)|sum }}{% endfor %}",
    "sum of lists": "{{ range(100000)|batch(1)|sum(start=[])|length }}",
    "sorts": "{% set x = range(100000)|list %}{% for a in range(100000) %}{% set y = x|sort %}{% endfor %}",
    "searches": "{% set s = 'a'*10**7 %}{% for a in range(100000) %}{% if 'b' in s %}{% endif %}{% endfor %}",
    "search from the right": "{{ ('a'*10**7).rfind('b' + 'a'*10**6) }}",
    "counts": "{% set s = 'a'*10**7 %}{% for a in range(100000) %}{{ s.count('b') }}{% endfor %}",
    "copies": "{% set s = 'a'*10**7 %}{% for a in range(100000) %}{% set t = s[::-1] %}{% endfor %}",
    "urlize": "{{ ('www.a.com '*10**5)|urlize|length }}",
    "recursive loop": "{% for a in [[1]] recursive %}{{ loop([a, a]) }}{% endfor %}",
    "recursive macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "doubling macro": "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "recursive block": "{% block a %}{{ self.a() }}{% endblock %}",
    "codec": "{{ ('a'*10**6).encode('idna')|length }}",
    "time": "{{ strftime_now('%1000000000Y'*10**5)|length }}",
    "its own meter": "{% set x = [-(10**12)]|map('a step')|list %}" + "".join(ENDLESS),
    "a long source": "{{ a }}" * 20_000,
    "a deep source": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "a long chain": "{{ " + "1 or " * 5000 + "1 }}",
    "many blocks": "{% if true %}" * 150 + "{% endif %}" * 150,
}  # fmt: skip
FAULTS = {
    CheckpointError: [
        *("{{ 1/0 }}", "{% break %}", "{{ 2.0**100000 }}", "{% include 'x' %}", "{% import 'x' as y %}"),
        *("{% extends 'x' %}", "{{ 1|nofilter }}", "{{ 1 is notest }}", "{% if %}", "{% for a in b %}"),
        *("{{ " + "9" * 5000 + " }}", "{{ cycler() }}", "{{ (-1).to_bytes(1, 'big') }}", "{% generation %}"),
        *("{% set None = 1 %}", "{{ 1e400 }}", "{% for loop in [1] %}{% endfor %}", "{{ range(10**6) }}"),
        "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}",
    ],
    InputError: [
        *("{{ x.y.z }}", "{{ messages.a.b }}", "{{ none() }}", "{{ 10**5000 }}", "{{ 'a'.encode('ascii')('b') }}"),
        *("{{ '%(a)s' % {} }}", "{{ '{5}'.format(1) }}", "{{ '%q' % 1 }}", "{{ '{:q}'.format(1) }}"),
        *("{{ nothing|tojson }}", "{% set x.y = 1 %}", "{% for a, b in [1] %}{% endfor %}", "{{ ['a', 1]|sort }}"),
        *("{{ {[1]: 2} }}", "{{ [1].index(2) }}", "{{ raise_exception('no') }}", "{{ raise_exception() }}"),
        *("{{ strftime_now(5) }}", "{{ dict(1) }}", "{{ super() }}", "{{ self.x() }}", "{{ range(1, 2, 0) }}"),
        "{% filter random %}ab{% endfilter %}{% filter first %}{% endfilter %}",
        *("{{ messages|attr(5) }}", "{{ 1 + 'a' }}", "{{ 'a'.center() }}", "{{ 'a'.replace(1) }}"),
    ],
}
ESCAPES = [
    "{{ lipsum.__globals__ }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ ''['__class__'] }}",
    "{{ ''|attr('__class__') }}",
    "{{ (1).__class__ }}",
    "{{ {}.__class__.__bases__[0].__subclasses__() }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ joiner.__init__ }}",
    "{{ namespace.__init__.__globals__.os }}",
    "{% set ns = namespace(__class__=1) %}",
    "{% set ns = namespace() %}{% set ns.__init__ = 1 %}",
    "{{ dict.mro() }}",
    "{{ dict.__base__ }}",
    "{{ range.__self__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__globals__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ self['_TemplateReference__context'] }}",
    "{% macro m() %}{% endmacro %}{{ m.__globals__ }}",
    "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "{% for i in [1] %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "{{ caller.__globals__ }}",
    "{{ messages.append(1) }}",
    "{{ messages.clear() }}",
    "{{ messages[0].update({'a': 1}) }}",
    "{{ messages[0].pop('role') }}",
    "{{ messages[0].setdefault('a', 1) }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "{{ (''|attr('format'))('{0.__class__}', 1) }}",
    "{{ ('{0.__class__}'|attr('format'))(1) }}",
    "{% set f = '{0.__class__.__base__}'.format %}{{ f(1) }}",
    "{{ ('{0.__class__}'|escape).format(1) }}",
    "{{ ('a'|escape).__class__ }}",
    "{{ [1]|map(attribute='__class__')|list }}",
    "{{ messages|map('attr', '__class__')|list }}",
    "{{ [1]|groupby('__class__')|list }}",
    "{{ [1]|sort(attribute='__class__') }}",
    "{{ [1]|sum(attribute='__class__') }}",
    "{% set g = [1]|select %}{{ g.gi_frame.f_globals }}",
    "{{ 'x'.join.__self__.__class__ }}",
]
# What of the interpreter a template must not write.
SECRETS = ("<class", "<built-in", "<module", "globals", "subclasses", "uid=", "<frame", "Context")


def checked(source: str) -> tuple[str, Exception | None]:
    """(text, error) of a template, within the bounds; of a bare exception the test fails."""
    began, text, failed = time.thread_time(), "", None
    try:
        text = rendered(source)
    except (InputError, CheckpointError) as error:
        failed = error
    assert time.thread_time() - began < SECONDS
    assert failed is None or (FILE in str(failed) and len(str(failed)) < 1000)
    return text, failed


@pytest.fixture(scope="module", autouse=True)
def within_memory():
    """Nothing that runs here makes the process larger than the issue allows."""
    rendered("x")
    gc.collect()
    before = peak()
    yield
    assert peak() - before < BYTES


@pytest.mark.parametrize("name", list(BOMBS))
def test_a_template_that_takes_too_much_is_refused_in_time(name: str):
    _, failed = checked(BOMBS[name])
    assert isinstance(failed, CheckpointError)


@pytest.mark.parametrize(("kind", "source"), [(kind, source) for kind, sources in FAULTS.items() for source in sources])
def test_every_error_of_a_template_says_whose_fault_it_is(kind: type[Exception], source: str):
    _, failed = checked(source)
    assert type(failed) is kind


@pytest.mark.parametrize("source", ESCAPES)
def test_no_template_gets_out_of_the_sandbox(source: str):
    text, failed = checked(source)
    assert failed is not None or not any(secret in text for secret in SECRETS)


def test_messages_are_the_same_after_a_template_ran():
    messages = [{"role": "user", "content": ["a"], "extra": {"b": [1]}}]
    rendered("{% set x = messages[0].extra.b %}{{ x + [2] }}", messages)
    assert messages == [{"role": "user", "content": ["a"], "extra": {"b": [1]}}]


def test_what_is_no_plain_data_is_only_a_name_to_a_template():
    class Secret:
        token = "abc"

        def write(self) -> str:
            return "written"

    messages = [{"role": "user", "content": "x", "thing": Secret()}]
    assert rendered("{{ messages[0].thing }}{{ messages[0].thing.token }}", messages) == "<Secret>"


def test_words_of_long_messages_are_split():
    messages = [{"role": "user", "content": "word " * 200_000}]
    assert rendered("{{ messages[0].content.split()|length }}", messages) == "200000"


def test_a_megabyte_of_messages_is_no_reason_to_refuse():
    text = "wörd <b> 🙂 " * 1000
    messages = [{"role": role, "content": text} for role in ("user", "assistant") * 50]
    source = (
        "{% set ns = namespace(all=[]) %}{% for m in messages %}{% set ns.all = ns.all + [m.role + m.content] %}"
        "{{ m.content.split('<b>')|join('<i>')|trim ~ m.role }}{% endfor %}{{ ns.all|join|length }}"
    )
    assert len(rendered(source, messages)) > 1_000_000
