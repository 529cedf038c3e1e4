"""From text to syntax tree, with Lark. Imported at the first parse only, since it is the slow part to import.

Lark finds what is wrong; this module says it in words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any, Final

from lark import Lark, Token, Transformer, UnexpectedCharacters, UnexpectedToken

from orchestrator_core.errors import ExpressionError, did_you_mean
from orchestrator_core.expressions.functions import FUNCTIONS
from orchestrator_core.expressions.nodes import (
    ArithmeticNode,
    ArrayNode,
    CallNode,
    CompareNode,
    ConditionalNode,
    ExpressionSyntaxError,
    IndexNode,
    Literal,
    LogicalNode,
    NegateNode,
    Node,
    NotNode,
    ReferenceNode,
)
from orchestrator_core.expressions.values import in_range, kind

__all__ = ["read"]

_ESCAPE: Final = re.compile(r"\\(u[0-9a-fA-F]{4}|.|\Z)", re.DOTALL)
_ESCAPED: Final = {
    "'": "'",
    '"': '"',
    "\\": "\\",
    "/": "/",
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
}

_OPENING: Final = {"_LPAR": "_RPAR", "LSQB": "_RSQB", "_THEN": "_ELSE"}
_CLOSING: Final = frozenset({"_RPAR", "_RSQB"})
_WANTS_OPERAND: Final = frozenset(
    {"COMPARE", "IN", "PLUS", "MINUS", "MULTIPLY", "NOT", "_COALESCE", "_OR", "_AND", "_THEN", "_ELSE", "_COMMA"}
) | frozenset(_OPENING)
_STARTS_OPERAND: Final = frozenset(
    {"NULL", "TRUE", "FALSE", "NUMBER", "STRING", "ROOT", "NAME", "NOT", "LSQB", "_LPAR"}
)
_WORD_OPERATORS: Final = {"and": "&&", "or": "||", "not": "!", "AND": "&&", "OR": "||", "NOT": "!", "is": "=="}
_WORD_LITERALS: Final = {"None": "null", "nil": "null", "NULL": "null", "True": "true", "False": "false"}
_READ_ELSEWHERE: Final = "is read in config.yaml, database.yaml and integrations only"
_FOREIGN: Final = {
    "=": ("'=' is not an operator", "compare with '=='"),
    "&": ("'&' is not an operator", "write '&&'"),
    "|": ("'|' is not an operator", "write '||'"),
    "'": ("unclosed string", "close it with ', and write ' inside it as \\'"),
    '"': ("unclosed string", 'close it with ", and write " inside it as \\"'),
    "{": ("an expression cannot contain '{'", "write objects in YAML, with an expression for each value"),
    "$": ("expected a name after '$'", "write '$$' for a text that starts with '$'"),
    ".": ("expected a field name after '.'", "write .name, ['odd key'] or [0]"),
}


def read(text: str, base: int) -> Node:
    """Parse the text, which starts at offset ``base`` of what the user wrote.

    Raises :class:`ExpressionSyntaxError`. How deep the tree is nested is left to the caller to check.
    """
    language = _language()
    tokens: list[Token] = []
    try:
        tokens.extend(language.lex(text))
    except UnexpectedCharacters as error:
        position: int = error.pos_in_stream  # type: ignore[assignment]  # Lark declares it None and sets it
        raise _foreign_character(text, position, base) from None
    if not tokens:
        raise ExpressionSyntaxError("expected an expression, found nothing", base)
    parser = language.parse_interactive()
    position = 0
    try:
        for position, token in enumerate(tokens):  # noqa: B007  # read where the error is caught
            token.start_pos = base + (token.start_pos or 0)
            parser.feed_token(token)
        position = len(tokens)
        tree: Node = parser.feed_eof(tokens[-1])  # type: ignore[no-untyped-call]
    except UnexpectedToken:
        raise _unexpected(tokens, position, base + len(text)) from None
    return tree


@cache
def _language() -> Lark:
    grammar = resources.files(__package__).joinpath("grammar.lark").read_text("utf-8")
    return Lark(grammar, parser="lalr", lexer="basic", transformer=_TreeBuilder())


def _offset(token: Token) -> int:
    return token.start_pos or 0


class _TreeBuilder(Transformer[Token, Node]):
    """One method per rule of the grammar; ``parts`` are the nodes and the named tokens of the rule."""

    def null(self, parts: list[Token]) -> Node:
        return Literal(None, _offset(parts[0]))

    def true(self, parts: list[Token]) -> Node:
        return Literal(True, _offset(parts[0]))

    def false(self, parts: list[Token]) -> Node:
        return Literal(False, _offset(parts[0]))

    def number(self, parts: list[Token]) -> Node:
        (token,) = parts
        if token[0] == "0" and token[1:2].isdigit():
            raise _error(token, f"a number cannot start with 0: '{_short(token)}'")
        if token.isdigit() and len(token) > 20:
            raise _error(token, f"'{_short(token)}' does not fit in a 64-bit integer")
        try:
            value = in_range(int(token) if token.isdigit() else float(token), "")
        except ExpressionError:
            reason = "does not fit in a 64-bit integer" if token.isdigit() else "is too large for a number"
            raise _error(token, f"'{_short(token)}' {reason}") from None
        return Literal(value, _offset(token))

    def string(self, parts: list[Token]) -> Node:
        return Literal(_unescape(parts[0]), _offset(parts[0]))

    def root(self, parts: list[Token]) -> Node:
        return ReferenceNode(parts[0][1:], (), _offset(parts[0]))

    def field(self, parts: list[Any]) -> Node:
        target, token = parts
        return _index(target, Literal(token[1:].lstrip(), _offset(token)), token)

    def index(self, parts: list[Any]) -> Node:
        target, bracket, key = parts
        return _index(target, key, bracket)

    def array(self, parts: list[Any]) -> Node:
        bracket, *items = parts
        if all(isinstance(item, Literal) for item in items):
            return Literal([item.value for item in items], _offset(bracket))
        return ArrayNode(tuple(items), _offset(bracket))

    def call(self, parts: list[Any]) -> Node:
        name, *arguments = parts
        function = FUNCTIONS.get(name)
        if function is None:
            raise _error(name, f"unknown function '{_short(name)}'", _functions_like(name))
        count = len(arguments)
        if count < function.minimum or (function.maximum is not None and count > function.maximum):
            raise _error(name, f"{name} takes {function.arity()}, got {count}")
        return CallNode(str(name), tuple(arguments), _offset(name))

    def minus(self, parts: list[Any]) -> Node:
        token, operand = parts
        value = operand.value if isinstance(operand, Literal) else None
        if not isinstance(value, int | float) or isinstance(value, bool):
            return NegateNode(operand, _offset(token))
        try:
            return Literal(in_range(-value, ""), _offset(token))
        except ExpressionError:
            raise _error(token, f"'-{value}' does not fit in a 64-bit integer") from None

    def negation(self, parts: list[Any]) -> Node:
        return NotNode(parts[1], _offset(parts[0]))

    def multiplicative(self, parts: list[Any]) -> Node:
        return ArithmeticNode("".join(parts[1::2]), tuple(parts[::2]), parts[0].offset)

    additive = multiplicative

    def comparison(self, parts: list[Any]) -> Node:
        left, operator, right = parts
        return CompareNode(str(operator), left, right, left.offset)

    def coalesce(self, parts: list[Node]) -> Node:
        return LogicalNode("??", tuple(parts), parts[0].offset)

    def either(self, parts: list[Node]) -> Node:
        return LogicalNode("||", tuple(parts), parts[0].offset)

    def both(self, parts: list[Node]) -> Node:
        return LogicalNode("&&", tuple(parts), parts[0].offset)

    def conditional(self, parts: list[Node]) -> Node:
        condition, then, otherwise = parts
        return ConditionalNode(condition, then, otherwise, condition.offset)


def _index(target: Node, key: Node, token: Token) -> Node:
    """``target[key]``, as part of the reference where the target is one and the key is constant."""
    if not isinstance(key, Literal):
        return IndexNode(target, key, target.offset)
    if type(key.value) is not str and type(key.value) is not int:
        raise _error(token, f"what stands in [ ] must be a string or an integer, not {_kind_of_key(key.value)}")
    if isinstance(target, ReferenceNode):
        return ReferenceNode(target.root, (*target.path, key.value), target.offset)
    return IndexNode(target, key, target.offset)


def _kind_of_key(value: object) -> str:
    return "a number with a fraction" if type(value) is float else kind(value)


def _unescape(token: Token) -> str:
    def replace(found: re.Match[str]) -> str:
        escape = found[1]
        if len(escape) == 5:
            return chr(int(escape[1:], 16))
        if escape not in _ESCAPED:
            where = _offset(token) + 1 + found.start()
            raise ExpressionSyntaxError(f"unknown escape '\\{escape}'", where, 2, "write a backslash as \\\\")
        return _ESCAPED[escape]

    text = _ESCAPE.sub(replace, token[1:-1])
    try:
        # Two escapes can be the halves of one character, as in JSON.
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise _error(token, "half of a surrogate pair is not a character") from None


def _error(token: Token, message: str, hint: str = "") -> ExpressionSyntaxError:
    return ExpressionSyntaxError(message, _offset(token), len(token), hint)


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."


def _functions_like(name: str) -> str:
    return did_you_mean(name, FUNCTIONS) or f"the functions are {', '.join(FUNCTIONS)}"


def _foreign_character(text: str, position: int, base: int) -> ExpressionSyntaxError:
    char = text[position]
    message, hint = _FOREIGN.get(char, (f"unexpected character {char!r}", ""))
    if text.startswith("${", position):
        hint = f"'${{...}}' {_READ_ELSEWHERE}"
    return ExpressionSyntaxError(message, base + position, 1, hint)


def _unexpected(tokens: Sequence[Token], position: int, end: int) -> ExpressionSyntaxError:
    """Say what is wrong where the grammar has no use for ``tokens[position]``, or for the end of the text."""
    token = tokens[position] if position < len(tokens) else None
    before = tokens[position - 1] if position else None
    found = f", not '{_short(token)}'" if token else ""
    where, width = (_offset(token), len(token)) if token else (end, 1)
    opened = _opened(tokens[:position])
    unclosed = opened[-1] if opened else None

    if before is not None and before.type == "NAME":
        return _unknown_word(tokens, position - 1)
    if token is not None and token.type in _CLOSING:
        if unclosed is None:
            return _error(token, f"'{token}' closes nothing")
        if unclosed.type == "_THEN" and before is not unclosed:
            return _error(unclosed, "'?' without ':'", "write condition ? value : otherwise")
        if _OPENING[unclosed.type] != token.type:
            return _error(token, f"'{unclosed}' is closed by '{token}'")
        if before is unclosed:
            return _error(token, f"expected an expression between '{before}' and '{token}'")
    if before is None:
        return ExpressionSyntaxError(f"expected an expression{found}", where, width)
    if before.type in _WANTS_OPERAND and not (token is None and before is unclosed and before.type != "_THEN"):
        return ExpressionSyntaxError(f"expected an operand after '{before}'{found}", where, width)
    if token is None:
        assert unclosed is not None  # a complete operand and nothing open would have been an expression
        if unclosed.type == "_THEN":
            return _error(unclosed, "'?' without ':'", "write condition ? value : otherwise")
        return _error(unclosed, f"unclosed '{unclosed}'")
    if token.type in ("COMPARE", "IN"):
        return _error(token, f"'{token}' after another comparison", "comparisons do not chain: join two with '&&'")
    if token.type == "_ELSE" and unclosed is not None and any(one.type == "_THEN" for one in opened):
        return _error(unclosed, f"unclosed '{unclosed}'")
    if token.type == "_ELSE":
        return _error(token, "':' without '?'", "write condition ? value : otherwise")
    if token.type == "NAME":
        return _unknown_word(tokens, position)
    if token.type in _STARTS_OPERAND:
        return _error(token, f"expected an operator between '{_short(before)}' and '{_short(token)}'")
    return _error(token, f"unexpected '{_short(token)}'")


def _opened(tokens: Sequence[Token]) -> list[Token]:
    """The brackets and ``?`` that nothing has closed yet, outermost first."""
    opened: list[Token] = []
    for token in tokens:
        if token.type in _OPENING:
            opened.append(token)
        elif opened and token.type == _OPENING[opened[-1].type]:
            opened.pop()
    return opened


def _unknown_word(tokens: Sequence[Token], position: int) -> ExpressionSyntaxError:
    word = tokens[position]
    if word in FUNCTIONS:
        return _error(word, f"'{word}' is a function", f"write {word}(...), or ${word} for a step of that name")
    if word in _WORD_OPERATORS:
        return _error(word, f"'{word}' is not an operator", f"write '{_WORD_OPERATORS[word]}'")
    if word in _WORD_LITERALS:
        return _error(word, f"unknown word '{word}'", f"write {_WORD_LITERALS[word]}")
    hint = f"write '{_short(word)}' for a text, or ${_short(word)} for a step"
    if position >= 2 and tokens[position - 1].type == "MINUS" and tokens[position - 2].type in ("FIELD", "ROOT"):
        hint = "a field with a dash in its name is written ['odd-key']"
    if position >= 2 and tokens[position - 2] == "$ENV":
        hint = f"'$ENV[...]' {_READ_ELSEWHERE}"
    return _error(word, f"unknown word '{_short(word)}'", hint)
