"""The rooms of the code, read from its imports: `python tests/support/rooms.py` prints what a newcomer has to find his
way through (files per folder, lines per file and function, imports upwards, circles)."""

from __future__ import annotations

import ast
import statistics
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
# From top to bottom. A room imports from its own row and from rows below it. `analysis.statistics` is pure functions of
# arrays, which a sweep plans and decides with, `analysis.amounts` the words in which it tells them; everything else of
# `analysis` stands on top.
ORDER = (
    ("finetune.interface", "finetune.commands", "finetune.cli", "finetune.__main__", "finetune.train", "analysis"),
    ("finetune.sweep",),
    ("finetune.tracking",),
    ("finetune.trial",),
    ("finetune.training", "analysis.amounts"),
    ("finetune.prefix", "finetune.saving"),
    ("finetune.freezing",),
    ("finetune.data", "finetune.models"),
    ("finetune.results", "finetune.config", "finetune.values", "finetune.files", "finetune.errors", "finetune.display",
     "finetune.lazy", "finetune.randomness", "finetune", "analysis.statistics"),
)
MOST_LINES = 400  # about 300 is what we aim at


def modules() -> dict[str, Path]:
    """Dotted name -> file, of every module that ships."""
    found = {}
    for top in ("finetune", "analysis"):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(found: dict[str, Path]) -> set[tuple[str, str]]:
    """(importer, imported) for every import of ours, also those inside functions and under TYPE_CHECKING."""
    edges = set()
    for name, path in found.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                module = _absolute(node, name, path)
                targets = [f"{module}.{alias.name}" for alias in node.names]
                targets = [target if target in found else module for target in targets]
            elif isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            else:
                continue
            edges |= {(name, target) for target in targets if target in found and target != name}
    return edges


def _absolute(node: ast.ImportFrom, name: str, path: Path) -> str:
    """The module that is imported from, also where the import is relative."""
    if not node.level:
        return node.module or ""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    return ".".join([*package[:len(package) - node.level + 1], *([node.module] if node.module else [])])


def row(module: str) -> int:
    """The row of ORDER in which a module lives: that of the longest name that it begins with."""
    fitting = [(len(room), index) for index, rooms in enumerate(ORDER) for room in rooms
               if module == room or module.startswith(f"{room}.")]
    return max(fitting)[1]


def upwards(edges: set[tuple[str, str]]) -> list[tuple[str, str]]:
    return sorted((a, b) for a, b in edges if row(b) < row(a))


def circles(edges: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """Pairs of files that import each other."""
    return sorted((a, b) for a, b in edges if a < b and (b, a) in edges)


def function_lines(found: dict[str, Path]) -> list[tuple[int, str]]:
    """(lines, module.function) of every function and method."""
    return sorted((node.end_lineno - node.lineno + 1, f"{name}.{node.name}") for name, path in found.items()
                  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                  if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def report() -> str:
    found = modules()
    edges = imports(found)
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in found.items()}
    folders = Counter(str(path.parent.relative_to(ROOT)) for path in found.values() if path.name != "__init__.py")
    functions = function_lines(found)
    return "\n".join([
        f"{len(found)} modules, {sum(lines.values()):,} lines",
        "files per folder: " + ", ".join(f"{folder} {count}" for folder, count in folders.most_common()),
        f"lines per file: median {statistics.median(lines.values()):.0f}, longest "
        + ", ".join(f"{name} {count}" for name, count in Counter(lines).most_common(3)),
        f"lines per function: median {statistics.median(count for count, _ in functions):.0f}, longest "
        f"{functions[-1][1]} {functions[-1][0]}",
        f"imports upwards: {len(upwards(edges))}", f"pairs of files that import each other: {len(circles(edges))}",
    ])


if __name__ == "__main__":
    print(report())
