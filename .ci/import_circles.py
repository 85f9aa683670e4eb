"""`make check`: no modules import one another in a circle, neither at run time nor for annotations.

Two modules in a circle are one module in two files. Imports inside functions do not count: they run later.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "platform" / "sfumato"


def main(package: Path = PACKAGE) -> int:
    """Print every circle; 1 if there is one."""
    found = circles(imports(package))
    for circle in found:
        print(f"these import one another: {', '.join(circle)}", file=sys.stderr)
    print(f"import circles: {len(found) or 'none'}")
    return 1 if found else 0


def imports(package: Path) -> dict[str, set[str]]:
    """The modules of a package, each with the modules of the package that it imports."""
    files = {_name(file, package.parent): file for file in sorted(package.rglob("*.py"))}
    return {name: _imported(file, files) - {name} for name, file in files.items()}


def circles(uses: Mapping[str, set[str]]) -> list[list[str]]:
    """Sets of modules that all use one another, directly or through others."""
    reach: dict[str, set[str]] = {}
    for start in uses:
        seen, waiting = set[str](), [start]
        while waiting:
            for used in uses[waiting.pop()] - seen:
                seen.add(used)
                waiting.append(used)
        reach[start] = seen
    found = {frozenset(a for a in reach[b] if b in reach[a]) for b in reach}
    return sorted(sorted(circle) for circle in found if circle)


def _name(file: Path, root: Path) -> str:
    return ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def _imported(file: Path, modules: Mapping[str, Path]) -> set[str]:
    """What a module imports outside its functions, `if TYPE_CHECKING:` included."""
    found: set[str] = set()
    waiting: list[ast.AST] = list(ast.parse(file.read_text()).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            # A package is used by whoever takes from it what is not a module of its own.
            found |= inner if inner <= modules.keys() else inner | {node.module}
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.expr):
            waiting += ast.iter_child_nodes(node)
    return found & modules.keys()


if __name__ == "__main__":
    sys.exit(main())
