"""The changes: a small choice of cosmic-ray's, and one of our own, a call that is left out."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any, NamedTuple

import parso
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator

CHOSEN = (
    "AddNot",
    "NumberReplacer",
    "ReplaceAndWithOr",
    "ReplaceOrWithAnd",
    "ReplaceBinaryOperator_Add_Sub",
    "ReplaceBinaryOperator_Sub_Add",
    "ReplaceBinaryOperator_Mul_Add",
    "ReplaceBinaryOperator_FloorDiv_Mul",
    "ReplaceBinaryOperator_LShift_RShift",
    "ReplaceComparisonOperator_Eq_NotEq",
    "ReplaceComparisonOperator_Gt_GtE",
    "ReplaceComparisonOperator_GtE_Gt",
    "ReplaceComparisonOperator_Lt_LtE",
    "ReplaceComparisonOperator_LtE_Lt",
    "ReplaceFalseWithTrue",
    "ReplaceTrueWithFalse",
    "ZeroIterationForLoop",
)
"""Every other replacement of an operator is noticed wherever these are."""


class LeaveOutCall(Operator):
    """A statement that is a call becomes ``pass``."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
        """Where the statement stands."""
        if _is_call_statement(node):
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        """The statement without its effect."""
        del index
        (left,) = parso.parse("pass").children[:1]
        left.prefix = node.get_first_leaf().prefix
        return left

    @classmethod
    def examples(cls) -> tuple[()]:
        """None: cosmic-ray's own tests do not run these."""
        return ()


def _is_call_statement(node: Any) -> bool:
    if node.type != "atom_expr" or node.parent is None or node.parent.type != "simple_stmt":
        return False
    last = node.children[-1]
    return last.type == "trailer" and last.children[0].value == "("


class Change(NamedTuple):
    """One mutant of a module: where, by what, and the whole changed source."""

    line: int
    operator: str
    occurrence: int


def changes_of(source: str) -> list[Change]:
    """Every change of the chosen operators that is no part of an annotation or a docstring."""
    tree, ignored = get_ast(source), _annotation_lines(source)
    found: list[Change] = []
    for name, operator in _operators():
        positions = (
            start for node in ast_nodes(tree) for start, _ in operator.mutation_positions(node)
        )
        for occurrence, start in enumerate(positions):
            if not any(first <= start < last for first, last in ignored):
                found.append(Change(start[0], name, occurrence))
    return found


def changed(source: str, change: Change) -> str | None:
    """The source with the change made; None where it comes out the same."""
    operator = dict(_operators())[change.operator]
    made: str | None = mutate_code(source, operator, change.occurrence)
    return None if made == source else made


def _operators() -> list[tuple[str, Operator]]:
    chosen = [(name, get_operator(f"core/{name}")()) for name in CHOSEN]
    return [*chosen, ("LeaveOutCall", LeaveOutCall())]


Span = tuple[tuple[int, int], tuple[int, int]]


def _annotation_lines(source: str) -> list[Span]:
    """Annotations are never evaluated here, so a change in one cannot be noticed."""
    spans: list[Span] = []
    for node in ast.walk(ast.parse(source)):
        for name in ("annotation", "returns"):
            part = getattr(node, name, None)
            if part is not None:
                end = (part.end_lineno, part.end_col_offset)
                spans.append(((part.lineno, part.col_offset), end))
    return spans
