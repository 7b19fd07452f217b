"""Every public function with three or more parameters tells what they are, in a section ``Args``."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.support.places import ROOT

LEAST = 3
"""Parameters, ``self`` and ``cls`` not counted, from which there must be a section."""

OPTIONS = ("typer.Argument(", "typer.Option(")
"""What marks a parameter as one of the command line, where its help describes it."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def classes(tree: ast.Module) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def methods_of(node: ast.ClassDef) -> dict[str, Function]:
    return {one.name: one for one in node.body if isinstance(one, Function)}


def inherited(node: ast.ClassDef, method: str, known: dict[str, ast.ClassDef]) -> bool:
    """Return whether a class above defines the method, whose docstring then speaks for it."""
    for base in node.bases:
        above = known.get(ast.unparse(base).split("[")[0].split(".")[-1])
        if above is not None and above is not node and (method in methods_of(above) or inherited(above, method, known)):
            return True
    return False


def public(tree: ast.Module, known: dict[str, ast.ClassDef]) -> Iterator[tuple[str, Function, str]]:
    """Yield name, node and docstrings of each function for callers: public, not inherited, not an overload."""
    for node in tree.body:
        if isinstance(node, Function) and not node.name.startswith("_"):
            yield node.name, node, ast.get_docstring(node) or ""
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            about = ast.get_docstring(node) or ""
            for name, one in methods_of(node).items():
                made = name == "__init__"
                if (made or not name.startswith("_")) and (made or not inherited(node, name, known)):
                    yield f"{node.name}.{name}", one, (ast.get_docstring(one) or "") + (about if made else "")


def parameters(node: Function) -> list[str]:
    given = node.args
    names = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return [name for name in names if name not in ("self", "cls")]


def option_names(tree: ast.Module) -> set[str]:
    """Return the names that a file gives to options of the command line."""
    made = (node for node in tree.body if isinstance(node, ast.Assign) and is_option(node.value, set()))
    return {target.id for node in made for target in node.targets if isinstance(target, ast.Name)}


def is_option(annotation: ast.expr | None, names: set[str]) -> bool:
    text = "" if annotation is None else ast.unparse(annotation)
    return text in names or any(option in text for option in OPTIONS)


def named_options(tree: ast.Module, options: dict[str, set[str]]) -> set[str]:
    """Return the names that stand for options in a file, its own and those that it imports from others."""
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module in options]
    taken = ((node.module, one) for node in imports for one in node.names)
    return option_names(tree) | {one.asname or one.name for module, one in taken if one.name in options[module or ""]}


def is_verb(node: Function, names: set[str]) -> bool:
    """Return whether the command line calls the function, that is, one of its parameters is an option."""
    return any(
        is_option(one.annotation, names) for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
    )


def silent(tree: ast.Module, known: dict[str, ast.ClassDef], options: dict[str, set[str]] | None = None) -> list[str]:
    """Return the functions of a file that keep quiet about their parameters.

    Args:
        tree: the file.
        known: classes of all files, by name.
        options: names of options of the command line, by the module that gives them.
    """
    names = named_options(tree, options or {})
    return [
        f"{node.lineno} {name}({', '.join(parameters(node))})"
        for name, node, text in public(tree, known)
        if len(parameters(node)) >= LEAST and "Args:" not in text and not is_verb(node, names)
    ]


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    paths = (path for package in ("analysis", "bench", "methods", "sweeps") for path in (ROOT / package).rglob("*.py"))
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(paths)}


def test_public_functions_tell_their_parameters(trees: dict[str, ast.Module]) -> None:
    known = {name: node for tree in trees.values() for name, node in classes(tree).items()}
    options = {path.removesuffix(".py").replace("/", "."): option_names(tree) for path, tree in trees.items()}
    found = [f"{path}:{one}" for path, tree in trees.items() for one in silent(tree, known, options)]
    assert len(trees) > 300 and not found, "a section Args is missing:\n" + "\n".join(found)


BASE = '''
class Above:
    def told(self, a, b, c):
        """Do.

        Args:
            a: one.
        """

class Below(Above):
    def told(self, a, b, c):
        """Do otherwise."""

    def _own(self, a, b, c):
        """Do."""

class Made:
    """A thing.

    Args:
        a: one.
    """

    def __init__(self, a, b, c):
        """Make."""

def few(a, b):
    """Do."""
'''


@pytest.mark.parametrize(
    ("more", "found"),
    [
        ("", []),
        ('def many(a, b, *, c):\n    """Do."""\n', ["many"]),
        ('class New:\n    def many(self, a, b, c):\n        """Do."""\n', ["New.many"]),
        ('class New:\n    """A thing."""\n    def __init__(self, a, b, c):\n        """Do."""\n', ["New.__init__"]),
        ('class New(Above):\n    def other(self, a, b, c):\n        """Do."""\n', ["New.other"]),
        ('def many(a, b, c):\n    """Do.\n\n    Args:\n        a: one.\n    """\n', []),
        ('def verb(a, b, c: Annotated[int, typer.Option(help="one")]):\n    """Do."""\n', []),
        ('One = Annotated[int, typer.Argument()]\ndef verb(a, b, c: One):\n    """Do."""\n', []),
        ('from options import One\ndef verb(a, b, c: One):\n    """Do."""\n', []),
        ('from options import One as Own\ndef verb(a, b, c: Own):\n    """Do."""\n', []),
        ('from elsewhere import One\ndef many(a, b, c: One):\n    """Do."""\n', ["many"]),
        ('from options import Other\ndef many(a, b, c: Other):\n    """Do."""\n', ["many"]),
    ],
)
def test_the_rule_bites(more: str, found: list[str]) -> None:
    tree = ast.parse(BASE + more)
    assert [one.split()[1].split("(")[0] for one in silent(tree, classes(tree), {"options": {"One"}})] == found
