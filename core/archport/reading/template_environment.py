"""The environment that chat templates run in: what transformers 5.23 gives them, inside jinja2's sandbox, on a meter.

The syntax tree of a template is changed before it is compiled, so that blocks, joined texts, comparisons and slices pay
as filters, methods and operators do. Knows nothing of messages, and not what a template may spend.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import BuiltinMethodType, FunctionType, MethodType
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEscapeFormatter, SandboxedFormatter
from jinja2.utils import Namespace, generate_lorem_ipsum
from jinja2.visitor import NodeTransformer
from markupsafe import Markup

from archport.reading.template_bounds import METHODS, SCALARS, STEP, Meter, joined, modulo, plus, power, times, widths
from archport.reading.template_filters import CHECKS, DEEP_TESTS, SHALLOW

# Where a rendering's meter is among its variables: no name of a template can have a space.
METER = "the meter"
# Letters of a source, which take a second to compile; published ones have 30,000 at most.
LONGEST_SOURCE = 1 << 16
_BINARY: Mapping[str, Callable[[Meter, Any, Any], Any]] = {"+": plus, "*": times, "**": power, "%": modulo}
# Filters that the tree is changed to call.
_STEP, _JOIN, _PAID, _WHOLE = "a step", "a join", "a copy", "a whole value"
_BODIES = ("body", "else_")
_CALLER = ("_loop_vars", "_block_vars")


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """Compiles chat templates; every rendering hands a `Meter` in under the name METER."""

    intercepted_binops = frozenset(_BINARY)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], finalize=_finalised
        )
        self.filters = {name: _metered(name, function) for name, function in self.filters.items()}
        self.filters |= {"tojson": _to_json, _STEP: _step, _JOIN: _join, _PAID: _paid, _WHOLE: _whole}
        self.tests |= {name: _metered_test(self.tests[name]) for name in DEEP_TESTS}
        self.globals |= {
            "raise_exception": _refuse,
            "strftime_now": _now,
            "lipsum": _lipsum,
            "dict": _Dict(),
            "namespace": _Namespace,
        }

    def _generate(self, source: nodes.Template, *rest: Any, **options: Any) -> str:
        for other in source.find_all((nodes.Include, nodes.Extends, nodes.Import, nodes.FromImport)):
            raise TemplateSyntaxError("a chat template can't use another file", other.lineno)
        tree = _Paying().visit(source)
        tree.set_environment(self)
        return super()._generate(tree, *rest, **options)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        return _BINARY[operator](context.parent[METER], left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """As jinja2's, paid; of a text's, a number's or a container's methods only those that are known."""
        meter: Meter = __context.parent[METER]
        meter.pay(STEP)
        kind = type(__obj)
        # jinja2 says where a call is from; `Context.call` takes that out again.
        own = {key: value for key, value in kwargs.items() if key not in _CALLER} if kwargs else kwargs
        if kind is BuiltinMethodType or kind is MethodType:
            owner, name = __obj.__self__, __obj.__name__
            if kind is BuiltinMethodType or isinstance(owner, str):
                if name == "join" and args:
                    args = (joined(meter, owner, args[0]), *args[1:])
                elif name in METHODS:
                    METHODS[name](meter, owner, *args, **own)
                else:
                    raise SecurityError(f"it calls {type(owner).__name__}.{name}, which chat templates may not")
                if name in ("index", "count") and not isinstance(owner, str | bytes):
                    meter.whole(owner)
            for value in (*args, *own.values()):
                meter.whole(value)
        elif kind is FunctionType and isinstance(getattr(__obj, "__wrapped__", None), BuiltinMethodType):
            return meter.made(_formatted(__self, meter, __obj.__wrapped__, args, own))
        return meter.made(super().call(__context, __obj, *args, **kwargs))


def _formatted(
    environment: ChatEnvironment, meter: Meter, method: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> str:
    """`str.format` and `str.format_map`, which jinja2's sandbox has wrapped."""
    pattern = method.__self__
    if len(pattern) > 10_000:
        raise SecurityError(f"it formats with a pattern of {len(pattern):,} letters")
    if method.__name__ == "format_map":
        args, kwargs = (), args[0]
    if isinstance(pattern, Markup):
        return Markup(_EscapeFormatter(environment, escape=pattern.escape, meter=meter).vformat(pattern, args, kwargs))
    return _Formatter(environment, meter=meter).vformat(pattern, args, kwargs)


class _Formatter(SandboxedFormatter):
    def __init__(self, environment: Any, *, meter: Meter, **options: Any) -> None:
        super().__init__(environment, **options)
        self._meter = meter

    def convert_field(self, value: Any, conversion: Any) -> Any:
        self._meter.whole(value, 6)
        return self._meter.made(super().convert_field(value, conversion))

    def format_field(self, value: Any, format_spec: str) -> Any:
        widths(self._meter, format_spec)
        self._meter.whole(value, 6)
        return self._meter.made(super().format_field(value, format_spec))


class _EscapeFormatter(_Formatter, SandboxedEscapeFormatter):
    pass


class _Paying(NodeTransformer):
    """Has a template's tree pay for what no hook of the sandbox sees."""

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        super().generic_visit(node, *args, **kwargs)
        if not isinstance(node, nodes.Template):
            for name in _BODIES:
                body = getattr(node, name, None)
                # A loop without a body takes its time, too.
                if isinstance(body, list) and (body or (name == "body" and isinstance(node, nodes.For))):
                    setattr(node, name, [nodes.ExprStmt(_call(_STEP, nodes.Const(_cost(body)), node)), *body])
        if isinstance(node, nodes.For) and node.test is not None:
            node.test = nodes.And(_call(_STEP, nodes.Const(STEP), node), node.test, lineno=node.lineno)
        elif isinstance(node, nodes.Concat):
            return _call(_JOIN, nodes.List(node.nodes, lineno=node.lineno), node)
        elif isinstance(node, nodes.Getitem) and node.ctx == "load":
            if isinstance(node.arg, nodes.Slice):
                return _call(_PAID, node, node)
            node.arg = _deep(node.arg)
        elif isinstance(node, nodes.Compare) and not any(map(_plain, (node.expr, *(op.expr for op in node.ops)))):
            node.expr = _deep(node.expr)
            for operand in node.ops:
                operand.expr = _deep(operand.expr)
        elif isinstance(node, nodes.Pair):
            node.key = _deep(node.key)
        return node


def _call(name: str, value: nodes.Expr, at: nodes.Node) -> nodes.Expr:
    return nodes.Filter(value, name, [], [], None, None, lineno=at.lineno)


def _deep(value: Any) -> Any:
    return value if _plain(value) else _call(_WHOLE, value, value)


def _plain(value: nodes.Expr) -> bool:
    """Whether nothing in it can be deep: to compare with it takes as long as it is."""
    return isinstance(value, nodes.Const) or (
        isinstance(value, nodes.List | nodes.Tuple) and all(isinstance(item, nodes.Const) for item in value.items)
    )


def _cost(body: Sequence[nodes.Node]) -> int:
    """What one run of these statements makes by itself: the template's own text, lists and mappings."""
    total, waiting = STEP, list(body)
    while waiting:
        node = waiting.pop()
        total += 16 + (4 * len(node.data) if isinstance(node, nodes.TemplateData) else 0)
        # What stands in a body of its own pays when it runs.
        waiting += node.iter_child_nodes(exclude=_BODIES)
    return total


class _Generation(Extension):
    """`{% generation %}`: marks what an assistant said, for training. It renders as it is, in a scope of its own."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

    def _said(self, caller: Callable[[], str]) -> str:
        return caller()


@pass_context
def _finalised(context: Any, value: Any) -> Any:
    """What an expression writes."""
    return context.parent[METER].text(value) if type(value) is not str else context.parent[METER].made(value)


@pass_context
def _step(context: Any, cost: int) -> bool:
    context.parent[METER].pay(abs(cost))
    return True


@pass_context
def _join(context: Any, values: Sequence[Any]) -> str:
    meter: Meter = context.parent[METER]
    return meter.made("".join([value if type(value) is str else meter.text(value) for value in values]))


@pass_context
def _paid(context: Any, value: Any) -> Any:
    return context.parent[METER].made(value)


@pass_context
def _whole(context: Any, value: Any) -> Any:
    if type(value) not in SCALARS:
        context.parent[METER].whole(value)
    return value


@pass_context
def _to_json(
    context: Any,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers has it: no HTML escapes, and letters as they are."""
    meter: Meter = context.parent[METER]
    depth = meter.whole(value, 6)
    wide = len(indent) if isinstance(indent, str) else max(0, indent or 0)
    wide = wide * depth + sum(len(each) for each in separators or () if isinstance(each, str))
    if wide > 64:
        meter.whole(value, wide)
    return meter.made(
        json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    )


def _metered(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter of jinja2 that pays."""
    passed = getattr(getattr(function, "jinja_pass_arg", None), "name", None)
    check = CHECKS.get(name)

    @pass_context
    def metered(context: Any, value: Any = None, *args: Any, **kwargs: Any) -> Any:
        meter: Meter = context.parent[METER]
        meter.pay(STEP)
        if name not in SHALLOW:
            meter.whole(value, 6)
        for each in (*args, *kwargs.values()):
            meter.whole(each)
        if check is not None:
            value = check(meter, value, *args, **kwargs)
        if passed is None:
            return meter.made(function(value, *args, **kwargs))
        first = {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}[passed]
        return meter.made(function(first, value, *args, **kwargs))

    return metered


def _metered_test(function: Callable[..., Any]) -> Callable[..., Any]:
    @pass_context
    def metered(context: Any, value: Any = None, *args: Any) -> bool:
        for each in (value, *args):
            context.parent[METER].whole(each)
        return function(value, *args)

    return metered


def _refuse(message: Any = "") -> None:
    raise TemplateError(message if isinstance(message, str) else f"({type(message).__name__})")


def _now(format: str) -> str:
    if len(format) > 1000:
        raise SecurityError(f"it writes the time with a pattern of {len(format):,} letters")
    return datetime.now().strftime(format)


def _lipsum(n: int = 5, html: bool = True, min: int = 20, max: int = 100) -> str:
    if n > 100 or max > 1000:
        raise SecurityError(f"it writes {n:,} paragraphs of {max:,} words")
    return generate_lorem_ipsum(n, html, min, max)


class _Dict:
    """`dict` in templates, which is no type there."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """`namespace` in templates, without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"it sets {name[:60]!r} in a namespace; names there can't begin with an underscore")
