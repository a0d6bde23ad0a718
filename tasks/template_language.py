"""Django's template language, locked down for what strangers write: a few tags and filters, no loaders, no
attributes, no calls, and a count of steps that ends what would take too long or grow too large.

Contexts are plain JSON values. Steps are counted, not seconds, so that the same template always ends in the same way.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, cast

from django.template import Context, Engine, Library, Template, TemplateSyntaxError
from django.template import defaultfilters as filters
from django.template import defaulttags as tags
from django.template.base import (
    FilterExpression,
    Lexer,
    Node,
    NodeList,
    Parser,
    TextNode,
    Token,
    TokenType,
    Variable,
    VariableDoesNotExist,
    VariableNode,
    render_value_in_context,
)
from django.template.context import BaseContext
from django.utils.dateformat import format as format_date
from django.utils.dateparse import parse_date, parse_datetime
from django.utils.safestring import SafeData, mark_safe

#: What one mail may take, and all of one call together. A step is some 3 us, or 64 characters.
STEPS, STEPS_A_CALL = 100_000, 1_000_000
#: Tags and variables of a template: its parser goes deeper with each that is open.
MOST_TOKENS = 2_000
#: Characters of a tag or variable: a condition goes deeper with each `and`, and Django's expressions for what stands
#: in them take the square of its length.
LONGEST_TAG = 1_000
#: Openings in one line that no closing follows. Django's lexer runs to the end of the line for each: 40 s for 50,000.
MOST_UNCLOSED = 100
_CHARACTERS_A_STEP, _VALUES_A_STEP, _BITS_A_STEP = 64, 16, 200
_LONGEST_NUMBER = 40

register = Library()
for _name in ("if", "with", "comment", "verbatim"):
    register.tag(_name, tags.register.tags[_name])
_FILTERS = """addslashes capfirst cut default default_if_none divisibleby escape first force_escape last length
    linebreaks linebreaksbr lower pluralize slugify title truncatechars truncatewords upper urlencode yesno"""
for _name in _FILTERS.split():
    register.filter(_name, filters.register.filters[_name])
#: These look at a list and do not turn it into text.
_FOR_LISTS = {
    filters.register.filters[name]
    for name in ("default", "default_if_none", "first", "last", "length", "yesno")
}


class TemplateError(Exception):
    """What is wrong with a template, or with what it was given, and in which line."""

    def __init__(self, message: str, line: int | None) -> None:
        super().__init__(f"line {line}: {message}" if line else message)


class _SpentError(BaseException):
    """Not an Exception: Django's `if` takes every one of these for a no, and goes on."""


class Allowance:
    """What a call has for its templates: the steps that are left, where they are being taken, and what was read."""

    def __init__(self, steps: int = STEPS) -> None:
        self.left = steps
        #: So that a thousand mails of one template read it once.
        self.read: dict[Any, Any] = {}
        self.line: int | None = None

    def take(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise _SpentError


@register.filter
def floatformat(value: Any, digits: Any = -1) -> str:
    """Up to nine digits, of a number and not of a text that looks like one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or len(str(value)) > _LONGEST_NUMBER:
        return ""
    if not re.fullmatch(r"-?[0-9]g?", str(digits)):
        raise ValueError("floatformat takes -9 to 9 digits")
    return str(filters.floatformat(value, str(digits)))


@register.filter
def date(value: Any, form: str = "j F Y") -> str:
    """A text such as 2030-01-31 or 2030-01-31T09:30:00Z, in the form of Django's `date`; no setting is read."""
    if not isinstance(value, str) or len(value) > _LONGEST_NUMBER or len(form) > _LONGEST_NUMBER:
        return ""
    moment = parse_datetime(value) or parse_date(value)
    return format_date(moment, form) if moment else ""


@register.filter(needs_autoescape=True)
def join(value: Any, by: str, autoescape: bool = True) -> str:
    """Of a list of texts and numbers; what stands in between is short."""
    if not isinstance(value, list) or len(by) > _LONGEST_NUMBER:
        raise ValueError("join takes a list, and a short text to stand in between")
    texts = [str(each) for each in value if not isinstance(each, list | dict)]
    return str(filters.join(texts, by, autoescape=autoescape))


class _PlainVariable(Variable):
    """Looks into objects by key and into lists by number, and nowhere else: there is nothing to call."""

    __slots__ = ()

    def _resolve_lookup(self, context: Any) -> Any:
        current = context
        for bit in self.lookups or ():
            current = _look(current, bit)
            if bit == "items":  # pairs that were made just now
                context.allowance.take(_weight(current))
        return current


def _look(value: Any, bit: str) -> Any:
    if isinstance(value, dict) and bit == "items" and bit not in value:
        return [list(pair) for pair in value.items()]
    try:
        if isinstance(value, dict | BaseContext):
            return value[bit]
        if isinstance(value, list) and bit.isascii() and bit.isdecimal():
            return value[int(bit[:9])]
    except LookupError:
        pass
    raise VariableDoesNotExist("There is no %r.", (bit,))


class _Expression(FilterExpression):
    """A value and its filters, each of which is counted."""

    __slots__ = ("line",)

    def __init__(self, token: str, parser: "_Parser") -> None:
        super().__init__(token, parser)
        self.line = parser.line
        if isinstance(self.var, Variable):
            self.var = _locked(self.var)
        self.filters = [
            (func, [(lookup, _locked(arg) if lookup else arg) for lookup, arg in args])
            for func, args in self.filters
        ]

    def resolve(self, context: Any, ignore_failures: bool = False) -> Any:
        allowance: Allowance = context.allowance
        allowance.line = self.line
        value = self.var
        if self.is_var:
            try:
                value = self.var.resolve(context)
            except VariableDoesNotExist:
                value = None if ignore_failures else ""
        allowance.take(1 + _weight(value))
        for func, args in self.filters:
            given = [arg.resolve(context) if lookup else mark_safe(arg) for lookup, arg in args]  # noqa: S308
            if isinstance(value, list | dict) and func not in _FOR_LISTS and func is not join:
                raise TemplateError(f"{func.__name__} is not for lists and objects.", self.line)
            allowance.take(1 + sum(map(_weight, given)))
            value = _filtered(func, value, given, context)
            allowance.take(_weight(value))
        return value


def _locked(variable: Variable) -> Variable:
    variable.__class__ = _PlainVariable
    return variable


def _filtered(func: Callable[..., Any], value: Any, given: list[Any], context: Context) -> Any:
    if getattr(func, "needs_autoescape", False):
        result = func(value, *given, autoescape=context.autoescape)
    else:
        result = func(value, *given)
    is_safe = getattr(func, "is_safe", False) and isinstance(value, SafeData)
    return mark_safe(result) if is_safe else result  # noqa: S308 -- as Django does


def _weight(value: Any) -> int:
    """How many steps it is to look at all of it."""
    if isinstance(value, str):
        return len(value) // _CHARACTERS_A_STEP
    if isinstance(value, int):
        return value.bit_length() // _BITS_A_STEP
    if not isinstance(value, list | dict):
        return 0
    values, characters, numbers, level = 0, 0, 0, [value]
    while level:
        below: list[Any] = []
        for each in level:
            inside = each if isinstance(each, list) else [*each.keys(), *each.values()]
            values += len(inside)
            characters += sum(len(one) for one in inside if isinstance(one, str))
            numbers += sum(one.bit_length() for one in inside if isinstance(one, int))
            below += [one for one in inside if isinstance(one, list | dict)]
        level = below
    return values // _VALUES_A_STEP + characters // _CHARACTERS_A_STEP + numbers // _BITS_A_STEP


class _Shown(VariableNode):
    def render(self, context: Any) -> Any:
        value = self.filter_expression.resolve(context)
        if isinstance(value, list | dict):
            raise TemplateError(
                f"{self.filter_expression.token} is a list or an object.", context.allowance.line
            )
        return render_value_in_context(value, context)


class _Each(tags.ForNode):
    """A loop that pays for all its rounds before the first."""

    def render(self, context: Any) -> Any:
        sequence: Any = self.sequence
        values = sequence.resolve(context, ignore_failures=True)
        if values is not None and values != "" and not isinstance(values, list | dict):
            raise TemplateError(f"{sequence.token} is not a list.", context.allowance.line)
        rounds = len(values or ())
        context.allowance.take(rounds * (1 + self.weight))
        return super().render(context)

    @property
    def weight(self) -> int:
        if "_weight" not in self.__dict__:
            self._weight = _weight_of(cast("NodeList", self.nodelist_loop))
        return self._weight


def _weight_of(nodes: NodeList) -> int:
    inside = nodes.get_nodes_by_type(Node)
    texts = sum(len(node.s) for node in inside if isinstance(node, TextNode))
    return len(inside) + texts // _CHARACTERS_A_STEP


@register.tag("for")
def _for(parser: Parser, token: Token) -> Node:
    loop = tags.do_for(parser, token)
    loop.__class__ = _Each
    return loop


class _Parser(Parser):
    line: int | None = 1

    def next_token(self) -> Token:
        token = super().next_token()
        self.line = token.lineno
        return token

    def compile_filter(self, token: str) -> FilterExpression:
        return _Expression(token, self)

    def extend_nodelist(self, nodelist: NodeList, node: Node, token: Token) -> None:
        if type(node) is VariableNode:
            node.__class__ = _Shown
        super().extend_nodelist(nodelist, node, token)


_SAYING = {TokenType.BLOCK, TokenType.VAR}


def _refuse_unclosed(source: str) -> None:
    for number, line in enumerate(source.split("\n"), 1):
        for opening, closing in (("{{", "}}"), ("{%", "%}"), ("{#", "#}")):
            if line.count(opening, line.rfind(closing) + 1) > MOST_UNCLOSED:
                raise TemplateError(f"{opening} is left open more than {MOST_UNCLOSED} times.", number)


class _Locked(Template):
    def compile_nodelist(self) -> NodeList:
        _refuse_unclosed(self.source)
        tokens = Lexer(self.source).tokenize()
        if len(tokens) > MOST_TOKENS:
            raise TemplateError(f"It has more than {MOST_TOKENS:,} tags, variables and texts.", None)
        for token in tokens:
            if token.token_type in _SAYING and len(token.contents) > LONGEST_TAG:
                complaint = f"A tag or variable has more than {LONGEST_TAG:,} characters."
                raise TemplateError(complaint, token.lineno)
        return _Parser(tokens, {}, [register], self.origin).parse()


class _Context(Context):
    allowance: Allowance


#: Knows no folder, no library and no setting.
_ENGINE = Engine(dirs=[], loaders=[], libraries={}, autoescape=True)
_ADVICE = re.compile(r" Did you forget to register or load this tag\?|(?<=tag) on line \d+")


def compiled(source: str) -> Template:
    """TemplateError says what is wrong, and where."""
    try:
        return _Locked(source, engine=_ENGINE)
    except TemplateSyntaxError as error:
        token: Token | None = getattr(error, "token", None)
        raise TemplateError(_ADVICE.sub("", str(error)), token.lineno if token else None) from error
    except RecursionError as error:
        raise TemplateError("Its tags are nested too deeply.", None) from error


def rendered(template: Template, context: Mapping[str, Any], allowance: Allowance, *, is_html: bool) -> str:
    """The text; what `context` brings is escaped in HTML. TemplateError where a value does not fit."""
    given = _Context(dict(context), autoescape=is_html)
    given.allowance = allowance
    try:
        allowance.take(1 + len(template.source) // _CHARACTERS_A_STEP)
        return str(template.render(given))
    except _SpentError as error:
        raise TemplateError("It takes too long, or becomes too large.", allowance.line) from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise TemplateError(f"A value does not fit: {error}", allowance.line) from error
    except VariableDoesNotExist as error:
        raise TemplateError(str(error), allowance.line) from error
    except RecursionError as error:
        raise TemplateError("Its tags are nested too deeply.", allowance.line) from error
