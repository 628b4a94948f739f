"""Digests of files of code from outside the repository: the same for equal content, another as soon as it changes."""

from __future__ import annotations

import ast
import hashlib
import sys
import sysconfig
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

OURS = ("fl_sim", "strategies", "clients", "experiments")  # a commit is in `meta.json`
INSTALLED = ("site-packages", "dist-packages", "lib-dynload")


def local_sources(path: Path) -> dict[Path, bytes]:
    """A Python file and every local file that it imports, directly or through another, with their content; the file itself is first.

    Local is what lies in a folder of `sys.path` that holds no installed packages. Only `import` statements count, in functions too: not
    `importlib`, and no data that code reads. Raises OSError if the file cannot be read.
    """
    sources, waiting = dict[Path, bytes](), [path]
    while waiting:
        file = waiting.pop()
        if file in sources:
            continue
        sources[file] = file.read_bytes()
        for module, level in _imports(sources[file]):
            waiting += [other for other in _files_of(module, level, file) if other not in sources]
    return sources


def source_digest(path: Path) -> str:
    """Sixteen hex digits of a Python file's content and of the local files that it imports. Raises OSError if it cannot be read."""
    own, *others = local_sources(path).items()
    digest = hashlib.sha256(own[1])
    for name, content in sorted((file.name, content) for file, content in others):
        digest.update(f"\n{name} {hashlib.sha256(content).hexdigest()}".encode())
    return digest.hexdigest()[:16]


@lru_cache(maxsize=256)
def _imports(source: bytes) -> tuple[tuple[str, int], ...]:
    """The dotted names that a source imports, each with the number of leading dots. `from a import b` gives a and a.b."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # it is named when it is loaded
        return ()
    names: dict[tuple[str, int], None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= dict.fromkeys((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            names |= dict.fromkeys([(base, node.level), *((f"{base}.{alias.name}".strip("."), node.level) for alias in node.names)])
    return tuple(name for name in names if name[1] or name[0].partition(".")[0] not in (*OURS, *sys.stdlib_module_names))


def _files_of(module: str, level: int, importer: Path) -> Iterator[Path]:
    """The local files that importing a dotted name executes: the packages above it and the module."""
    roots = [importer.parents[level - 1]] if level and level <= len(importer.parents) else [] if level else _local_roots(tuple(sys.path))
    for root in roots:
        place, files = root, list[Path]()
        for part in filter(None, module.split(".")):
            place = place / part
            if (package := place / "__init__.py").is_file():
                files.append(package)
            elif (file := place.with_name(f"{part}.py")).is_file():
                files.append(file)
                break
            elif not place.is_dir():
                break
        if files:
            yield from files
            return


@lru_cache(maxsize=8)
def _local_roots(search_path: tuple[str, ...]) -> list[Path]:
    """The folders of a module search path without the standard library's and those of installed packages."""
    installed = {Path(place).resolve() for place in sysconfig.get_paths().values()}
    roots = [Path(place or ".").resolve() for place in search_path]
    return [root for root in roots if root.is_dir() and root not in installed and root.name not in INSTALLED]
