"""Functions of a module's text -> functions that run, among stubs for all that they need.

The text is parsed, never imported: what was not asked for, decorators and annotations stay behind.
A name that a cut function needs and that has no stub raises NameError, which is no outcome: where
a new version of a peer needs more, its tests fail and say what.
"""

import __future__

import ast
import builtins
import importlib
from collections.abc import Mapping, Sequence
from types import CodeType, SimpleNamespace
from typing import Any

_KEPT_DECORATORS = {"staticmethod", "classmethod"}
_STANDARD = {"glob", "importlib", "json", "os", "re", "sys"}  # imported for real


def cut(source: str, names: Sequence[str]) -> CodeType:
    """Return the parts of a module with these names, in its order, compiled.

    `f` is a function, a class with all its body, or a constant; `C.f` is a method of a class,
    which comes with its bases and constants. Raises LookupError for a name that is not there.
    """
    wanted: dict[str, set[str]] = {}
    for name in names:
        owner, _, method = name.partition(".")
        wanted.setdefault(owner, set()).update({method} if method else ())
    found: dict[str, ast.stmt] = {}
    for node in ast.parse(source).body:
        for name in _named(node):
            if name in wanted:
                found[name] = _part(node, wanted[name])
    if missing := wanted.keys() - found.keys():
        raise LookupError(f"expected {sorted(missing)}, found no such names")
    tree = ast.Module(body=list(dict.fromkeys(found.values())), type_ignores=[])
    return _compiled(tree)


def cut_piece(
    source: str, method: str, *, name: str, parameters: Sequence[str], begins: str, ends: str
) -> CodeType:
    """Return statements of a method `C.f` as a function of another name, compiled.

    They begin with the first that assigns `begins` and end with the last that assigns `ends`, which
    the function returns. Raises LookupError if there are none.
    """
    owner, _, function = method.partition(".")
    bodies = [
        one.body
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and node.name == owner
        for one in node.body
        if isinstance(one, ast.FunctionDef) and one.name == function
    ]
    body = bodies[0] if bodies else []
    first = [at for at, one in enumerate(body) if begins in _assigned(one)][:1]
    last = [at for at, one in enumerate(body) if ends in _assigned(one)][-1:]
    if not first or not last:
        raise LookupError(f"{method}: expected statements that assign {begins} and {ends}")
    tree = ast.parse(f"def {name}({', '.join(parameters)}):\n    return {ends}")
    wrapped = tree.body[0]
    assert isinstance(wrapped, ast.FunctionDef)
    wrapped.body[:0] = body[first[0] : last[0] + 1]
    return _compiled(tree)


def run(parts: Sequence[CodeType], stubs: Mapping[str, Any], imports: Mapping[str, Any]) -> Any:
    """Return a namespace in which the parts have run, with attributes for all their names.

    `imports` maps a module to what stands for it where a function imports it.
    """
    names: dict[str, Any] = {**stubs, "__name__": "peer"}
    names["__builtins__"] = {**vars(builtins), "__import__": _importer(imports)}
    for part in parts:
        exec(part, names)
    return SimpleNamespace(**{name: names[name] for name in names if not name.startswith("__")})


def _compiled(tree: ast.Module) -> CodeType:
    """Return the code of a tree whose annotations are never evaluated."""
    flags = __future__.annotations.compiler_flag
    code: CodeType = compile(
        ast.fix_missing_locations(tree), "peer", "exec", flags, dont_inherit=True
    )
    return code


def _named(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
        return [node.target.id]
    return []


def _assigned(node: ast.stmt) -> set[str]:
    """Return the names that a statement assigns, at any depth."""
    return {
        one.id
        for one in ast.walk(node)
        if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)
    }


def _part(node: ast.stmt, methods: set[str]) -> ast.stmt:
    if isinstance(node, ast.ClassDef):
        if methods:
            node = _with_methods(node, methods)
        node.decorator_list = []
    for one in ast.walk(node):
        if isinstance(one, ast.FunctionDef):
            one.decorator_list = [
                decorator
                for decorator in one.decorator_list
                if isinstance(decorator, ast.Name) and decorator.id in _KEPT_DECORATORS
            ]
    return node


def _with_methods(node: ast.ClassDef, methods: set[str]) -> ast.ClassDef:
    found = {one.name for one in node.body if isinstance(one, ast.FunctionDef)}
    if missing := methods - found:
        raise LookupError(f"{node.name}: expected {sorted(missing)}, found no such methods")
    kept: list[ast.stmt] = [
        one
        for one in node.body
        if (isinstance(one, ast.FunctionDef) and one.name in methods)
        or (isinstance(one, (ast.Assign, ast.AnnAssign)) and one.value is not None)
    ]
    node.body = kept
    return node


def _importer(imports: Mapping[str, Any]) -> Any:
    def importer(name: str, *rest: Any) -> Any:
        if name in imports:
            return imports[name]
        if name.partition(".")[0] not in _STANDARD:
            raise NameError(f"a peer's function imports {name}, for which there is no stub")
        return importlib.import_module(name)

    return importer
