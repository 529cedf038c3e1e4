"""From syntax tree to Python source.

Every piece of source that is put together here is an operand that needs no further parentheses. A piece has at most
three levels of parentheses more than its parts, which keeps the deepest expression below the limit of Python's parser.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from attrs import evolve, frozen

from orchestrator_core.expressions.nodes import (
    ArithmeticNode,
    ArrayNode,
    CallNode,
    CompareNode,
    ConditionalNode,
    IndexNode,
    Literal,
    LogicalNode,
    NegateNode,
    Node,
    NotNode,
    ObjectNode,
    ReferenceNode,
    TemplateNode,
    children,
    reference_text,
)
from orchestrator_core.expressions.printer import unparse
from orchestrator_core.expressions.runtime import TEMPORARY, namespace
from orchestrator_core.expressions.values import JSON

__all__ = ["compile_expression", "emit", "emit_condition"]

_ARITHMETIC: Final = {"+": "_add", "-": "_subtract", "*": "_multiply", "/": "_divide", "%": "_modulo"}
_COMPARE: Final = {
    "==": "_equal",
    "!=": "_not_equal",
    "<": "_less",
    "<=": "_less_or_equal",
    ">": "_greater",
    ">=": "_greater_or_equal",
    "in": "_contains",
}
_REQUEST_MAPPINGS: Final = ("path_params", "query_params", "headers")
_TEXT_LENGTH: Final = 80
_LONG_CHAIN: Final = 16  # conditionals after one another are nested ones to Python's compiler


def emit(node: Node, variables: Mapping[str, str], *, exact: bool) -> str:
    """The Python source of the expression.

    ``variables`` has, for each root, the Python expression that holds it: cheap and without side effects, since it
    can occur twice. For ``request`` that is an object as :class:`~.runtime.Request` describes it, for ``execution``
    one with ``id``, ``degraded``, ``models`` and ``started_at``, a Unix time; for a step its result, or ``MISSING`` if
    it was skipped. The source needs the names of :func:`~.runtime.namespace` among its globals and assigns to the local
    variable ``_v``.

    The exact source raises :class:`MissingReference` and :class:`ExpressionError` only. The optimistic one gives the
    same value or the same error, but raises ``KeyError``, ``TypeError`` or ``IndexError`` where a reference finds
    nothing: then evaluate the exact source to get the right error. It takes for granted that the root of a reference
    without a path is not ``MISSING``, unless the reference is guarded.

    Raises ``KeyError`` for a root that ``variables`` does not have.
    """
    return _emit(node, _Form(variables, exact, checked=exact))


def emit_condition(node: Node, variables: Mapping[str, str], *, exact: bool) -> str:
    """Like :func:`emit`, for use after ``if``: true unless the expression is null or false."""
    return f"({_truth(node, _Form(variables, exact, checked=exact))})"


def compile_expression(node: Node, roots: Sequence[str]) -> Callable[..., JSON]:
    """Compile the expression to a function that takes the values of the roots, in this order.

    >>> compile_expression(parse("$a.x + $b"), ["a", "b"])({"x": 1}, 2)
    3

    The function raises :class:`MissingReference` and :class:`ExpressionError`.
    """
    variables = {root: f"r{position}" for position, root in enumerate(roots)}
    source = f"lambda {', '.join(variables.values())}: {emit(node, variables, exact=True)}"
    compiled: Callable[..., JSON] = eval(compile(source, f"<expression {_text(node)}>", "eval"), namespace())
    return compiled


@frozen
class _Form:
    """``checked``: a root that is MISSING must not pass, because the form is exact or a guard asks."""

    variables: Mapping[str, str]
    exact: bool
    checked: bool


def _emit(node: Node, form: _Form) -> str:
    match node:
        case Literal(value=value):
            return repr(value)
        case ReferenceNode():
            return _reference(node, form)
        case IndexNode():
            return _index(node, form)
        case ArrayNode(items=items):
            return f"[{_list(items, form)}]"
        case ObjectNode(fields=fields):
            return "{" + ", ".join(f"{name!r}: {_emit(value, form)}" for name, value in fields) + "}"
        case TemplateNode(parts=parts):
            texts = [_template_part(part, form) for part in parts]
            return f'"".join(({", ".join(texts)},))'
        case CallNode(function="now") if "execution" in form.variables:
            return f"_now({form.variables['execution']}.started_at)"
        case CallNode(function=function, arguments=arguments):
            return f"_{function}({_list(arguments, form)})"
        case NegateNode(operand=operand):
            return f"_negate({_emit(operand, form)})"
        case NotNode(operand=operand) if _is_boolean(operand):
            return f"(not {_emit(operand, form)})"
        case NotNode(operand=operand):
            return f"(({TEMPORARY} := {_emit(operand, form)}) is None or {TEMPORARY} is False)"
        case ArithmeticNode(operators=operators, operands=(left, right)):
            return f"{_ARITHMETIC[operators]}({_emit(left, form)}, {_emit(right, form)})"
        case ArithmeticNode(operators=operators, operands=operands):
            return f"_chain({operators!r}, {_list(operands, form)})"
        case CompareNode():
            return _compare(node, form)
        case LogicalNode():
            return _logical(node, form)
        case ConditionalNode(condition=condition, then=then, otherwise=otherwise):
            return f"({_emit(then, form)} if {_truth(condition, form)} else {_emit(otherwise, form)})"


def _list(nodes: Sequence[Node], form: _Form) -> str:
    return ", ".join(_emit(node, form) for node in nodes)


def _text(node: Node) -> str:
    """The expression as messages show it."""
    text = unparse(node)
    return text if len(text) <= _TEXT_LENGTH else f"{text[: _TEXT_LENGTH - 3]}..."


def _template_part(part: Node, form: _Form) -> str:
    if isinstance(part, Literal) and isinstance(part.value, str):
        return repr(part.value)
    return f"_str({_emit(part, form)})"


# --- references -------------------------------------------------------------------------------------------------


def _reference(node: ReferenceNode, form: _Form) -> str:
    variable = form.variables[node.root]
    match node:
        case ReferenceNode(root="execution", path=(name,)):
            return f"{variable}.{name}"
        case ReferenceNode(root="execution", path=(name, *rest) as path) if form.exact:
            return f"_resolve({{{name!r}: {variable}.{name}}}, 'execution', {path!r})"
        case ReferenceNode(root="execution", path=(name, *rest)):
            return _subscripts(f"{variable}.{name}", rest)
        case ReferenceNode(root="request", path=()):
            return f"_request_object({variable})"
        case ReferenceNode(root="request", path=("headers",)):
            return f"_lower_case({variable}.headers)"
        case ReferenceNode(root="request", path=("path_params" | "query_params" as part,)):
            return f"_plain({variable}.{part})"
        case ReferenceNode(root="request", path=("body",)):
            # A request can come without a body whatever was checked at load, so this is checked in both forms.
            return f"_present({variable}.body, '$request.body')"
        case ReferenceNode(root="request", path=path) if form.exact:
            return f"_request_resolve({variable}, {path!r})"
        case ReferenceNode(root=root, path=path) if form.exact and path:
            return f"_resolve({variable}, {root!r}, {path!r})"
        case ReferenceNode(root=root, path=()) if form.checked and root not in ("item", "index"):
            return f"_present({variable}, {reference_text(root, ())!r})"
        case ReferenceNode(root="request", path=(part, *rest)) if part == "body" or part in _REQUEST_MAPPINGS:
            return _subscripts(f"{variable}.{part}", rest)
        case ReferenceNode(root="request", path=(name, *rest)):
            return _subscripts(f"_request_value({variable}, {name!r})", rest)
        case ReferenceNode(path=path):
            return _subscripts(variable, path)


def _subscripts(source: str, path: Sequence[str | int]) -> str:
    for key in path:
        source = f"_at({source}, {key})" if isinstance(key, int) else f"{source}[{key!r}]"
    return source


def _index(node: IndexNode, form: _Form) -> str:
    target = _emit(node.target, form)
    # Python warns when it compiles the subscript of a display or of a constant.
    is_display = isinstance(node.target, Literal | ArrayNode | ObjectNode | TemplateNode)
    if isinstance(node.key, Literal) and not form.exact and not is_display:
        return _subscripts(target, [node.key.value])  # type: ignore[list-item]  # the parser lets str and int pass
    helper = "_member" if isinstance(node.key, Literal) else "_item"
    return f"{helper}({target}, {_emit(node.key, form)}, {_text(node)!r}, {_text(node.target)!r})"


# --- operators --------------------------------------------------------------------------------------------------


def _compare(node: CompareNode, form: _Form) -> str:
    left, right = _emit(node.left, form), _emit(node.right, form)
    constants = isinstance(node.left, Literal), isinstance(node.right, Literal)
    if node.operator in ("==", "!=") and constants == (False, True):
        native = _native_equality(node.right)
        if native is not None:
            return f"({left} {native[node.operator == '!=']} {right})"
    if node.operator == "in" and constants == (False, True):
        assert isinstance(node.right, Literal)
        members = node.right.value
        if isinstance(members, list) and members and all(_native_equality(Literal(m)) == ("==", "!=") for m in members):
            return f"({left} in {tuple(members)!r})"
    return f"{_COMPARE[node.operator]}({left}, {right})"


def _native_equality(node: Node) -> tuple[str, str] | None:
    """Python's operators for "equals" and "differs" that mean the same as JSON's with this constant."""
    match node:
        case Literal(value=None | True | False):
            return "is", "is not"
        case Literal(value=str()):
            return "==", "!="
        case Literal(value=int() | float() as number) if number not in (0, 1):  # those equal False and True
            return "==", "!="
        case _:
            return None


def _logical(node: LogicalNode, form: _Form) -> str:
    *first, last = node.operands
    if len(first) >= _LONG_CHAIN:
        caught = form if node.operator == "&&" else evolve(form, checked=True)
        operands = [*(_emit(operand, caught) for operand in first), _emit(last, form)]
        return f"_choose({node.operator!r}, {', '.join(f'lambda: {operand}' for operand in operands)})"
    booleans = all(map(_is_boolean, first))
    if node.operator == "&&":
        if booleans:
            return f"({' and '.join(_emit(operand, form) for operand in node.operands)})"
        tests = [
            f"{TEMPORARY} if ({TEMPORARY} := {_emit(operand, form)}) is None or {TEMPORARY} is False"
            for operand in first
        ]
    elif node.operator == "||" and booleans and not any(map(_can_miss, first)):
        return f"({' or '.join(_emit(operand, form) for operand in node.operands)})"
    else:
        tests = [_catch(operand, form, false_too=node.operator == "||") for operand in first]
    return f"({' else '.join([*tests, _emit(last, form)])})"


def _catch(node: Node, form: _Form, *, false_too: bool) -> str:
    """``value if usable``: the beginning of a conditional that goes on with what replaces the operand."""
    value, test = TEMPORARY, ""
    match node:
        case ReferenceNode(root=root, path=path) if (root, path) == ("request", ("body",)) or (
            not path and root not in ("request", "execution")
        ):
            value = f"{form.variables[root]}.body" if path else form.variables[root]
            test = f"{value} is not None and {value} is not _MISSING"
        case ReferenceNode():
            test = f"({TEMPORARY} := {_maybe(node, form)}) is not None"
        case _ if _can_miss(node):
            attempt = "_attempt_exact" if form.exact else "_attempt"
            test = f"({TEMPORARY} := {attempt}(lambda: {_emit(node, evolve(form, checked=True))})) is not None"
        case _:
            test = f"({TEMPORARY} := {_emit(node, form)}) is not None"
    return f"{value} if {test}{f' and {value} is not False' if false_too else ''}"


def _maybe(node: ReferenceNode, form: _Form) -> str:
    """The value of the reference, or None if it is missing: exact, and as cheap as a lookup."""
    variable = form.variables[node.root]
    match node:
        case ReferenceNode(root="execution", path=("models", *rest)) if rest:
            return _maybe_path(f"{variable}.models", rest)
        case ReferenceNode(root="execution") | ReferenceNode(root="request", path=()):
            return _reference(node, form)
        case ReferenceNode(root="request", path=(part,)) if part in _REQUEST_MAPPINGS:
            return _reference(node, form)
        case ReferenceNode(root="request", path=(part, str() as name, *rest)) if part in _REQUEST_MAPPINGS:
            return _maybe_path(f"{variable}.{part}.get({name!r})", rest)
        case ReferenceNode(root="request", path=(part, *_)) if part in _REQUEST_MAPPINGS:
            return "None"
        case ReferenceNode(root="request", path=("body", *rest)):
            return _maybe_path(f"{variable}.body", rest)
        case ReferenceNode(root="request", path=(name, *rest)):
            return _maybe_path(f"_request_maybe({variable}, {name!r})", rest)
        case ReferenceNode(path=path):
            return _maybe_path(variable, path)


def _maybe_path(source: str, path: Sequence[str | int]) -> str:
    if not path:
        return source
    return f"_maybe{'_path' if len(path) > 1 else ''}({source}, {', '.join(map(repr, path))})"


def _truth(node: Node, form: _Form) -> str:
    """A Python condition: the expression is neither null nor false."""
    source = _emit(node, form)
    return source if _is_boolean(node) else f"({TEMPORARY} := {source}) is not None and {TEMPORARY} is not False"


def _is_boolean(node: Node) -> bool:
    """Whether the value, if there is one, is always true or false."""
    match node:
        case CompareNode() | NotNode() | CallNode(function="bool") | Literal(value=True | False):
            return True
        case LogicalNode(operator="&&" | "||", operands=operands):
            return all(map(_is_boolean, operands))
        case _:
            return False


def _can_miss(node: Node) -> bool:
    """Whether evaluating the node can find a reference missing that nothing below the node catches."""
    match node:
        case ReferenceNode() | IndexNode():
            return True
        case LogicalNode(operator="??" | "||", operands=operands):
            return _can_miss(operands[-1])
        case _:
            return any(map(_can_miss, children(node)))
