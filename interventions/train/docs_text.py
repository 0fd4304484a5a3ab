"""The second part of the corpus: documentation of packages that are installed anyway.

Source files are parsed, never imported. One document is one module: its docstring, then the
signature and docstring of what it defines, in file order. What was used is named with its
version and licence in the report; with other versions installed the text differs a little.
"""

import ast
import hashlib
import importlib.metadata
import importlib.util
import inspect
import platform
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interventions.errors import TrainingError
from interventions.train.config import DocsConfig
from interventions.train.files import StepFolder
from interventions.train.generated_text import write_documents
from interventions.train.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STDLIB = "stdlib"
_SKIP = {"tests", "test", "testing", "_vendor", "site-packages", "__pycache__", "idlelib"}
_MIN_CHARACTERS = 400
_MAX_TOKENS = 1200  # a module; long ones would crowd out the others


@dataclass(frozen=True)
class Package:
    """An installed source of documentation: where it lies, its version and licence."""

    name: str
    root: Path
    version: str
    licence: str


def find_package(name: str) -> Package:
    """Return where the documentation of `name` lies; `stdlib` is Python's own library.

    Raises:
        TrainingError: the package is not installed.
    """
    if name == STDLIB:
        root = Path(sysconfig.get_paths()["stdlib"])
        return Package(name, root, platform.python_version(), "PSF-2.0")
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise TrainingError(
            f"docs.packages names '{name}', which is not an installed package; install it or take"
            f" it out of the config"
        )
    distributions = importlib.metadata.packages_distributions().get(name)
    if not distributions:
        raise TrainingError(
            f"'{name}' belongs to no installed distribution, so its version and licence are not"
            f" known; name another package, or `{STDLIB}` for Python's own modules"
        )
    meta: Any = importlib.metadata.metadata(distributions[0])
    licence = meta.get("License-Expression") or _classified(meta) or meta.get("License") or "?"
    root = Path(next(iter(spec.submodule_search_locations)))
    return Package(name, root, meta["Version"], licence.splitlines()[0][:80])


def _classified(meta: Any) -> str:
    found = [line for line in meta.get_all("Classifier") or [] if line.startswith("License ::")]
    return "; ".join(line.rsplit(" :: ", 1)[-1] for line in found)


def module_documents(package: Package) -> Iterator[tuple[str, str]]:
    """Yield `(module name, text)` in an order that depends on the names alone."""
    paths = [
        path.relative_to(package.root)
        for path in package.root.rglob("*.py")
        if not _SKIP.intersection(path.relative_to(package.root).parts)
    ]
    names = {".".join(path.with_suffix("").parts): path for path in paths}
    for name in sorted(names, key=lambda n: hashlib.sha256(n.encode()).digest()):
        text = module_text(package.root / names[name], name)
        if len(text) >= _MIN_CHARACTERS:
            yield name, text


def module_text(path: Path, name: str) -> str:
    """Return the documentation in one source file; empty if there is none or it does not parse."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return ""
    if name.endswith("pydoc_data.topics"):
        return _literal_text(tree)
    parts = [f"{name}\n\n{inspect.cleandoc(doc)}" if (doc := ast.get_docstring(tree)) else ""]
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            doc = ast.get_docstring(node)
            if doc and not node.name.startswith("_"):
                parts.append(f"{_signature(node)}\n\n{doc}")
    return "\n\n\n".join(part for part in parts if part)


def _signature(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    if isinstance(node, ast.ClassDef):
        return f"class {node.name}"
    return f"{node.name}({ast.unparse(node.args)})"


def _literal_text(tree: ast.Module) -> str:
    """Return the strings of a module that is one dictionary of prose."""
    found = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)]
    return "\n\n".join(text for text in found if isinstance(text, str) and len(text) > 200)


def write_docs(
    folder: StepFolder, config: DocsConfig, tokenizer: "PreTrainedTokenizerBase"
) -> dict[str, Any]:
    """Return counts and sources after writing one file of documents a package.

    Every package gives an equal share of the tokens; what a small one lacks is asked of the
    next ones.

    Raises:
        TrainingError: a package is missing, or all together hold less than half of the tokens.
    """
    total, sources = 0, []
    with Progress("docs", config.tokens, "tok") as bar:
        for index, name in enumerate(config.packages):
            package = find_package(name)
            share = (config.tokens - total) // (len(config.packages) - index)
            rows, count = _take(package, share, tokenizer)
            write_documents(folder.path / f"docs_{index:05d}.safetensors", rows)
            total += count
            bar.to(min(total, config.tokens))
            sources.append(
                {
                    "package": name,
                    "version": package.version,
                    "licence": package.licence,
                    "documents": len(rows),
                    "tokens": count,
                }
            )
    if total < config.tokens // 2:
        raise TrainingError(
            f"the packages {', '.join(config.packages)} hold {total} tokens of documentation,"
            f" docs.tokens asks for {config.tokens}; name more packages"
        )
    return {"tokens": total, "sources": sources}


def _take(
    package: Package, share: int, tokenizer: "PreTrainedTokenizerBase"
) -> tuple[list[list[int]], int]:
    rows: list[list[int]] = []
    seen: set[str] = set()
    count = 0
    for _, text in module_documents(package):
        if count >= share:
            break
        digest = hashlib.sha256(text.encode()).hexdigest()
        if digest in seen:
            continue
        seen.add(digest)
        clipped = text[: _MAX_TOKENS * 8]
        ids = tokenizer(clipped, add_special_tokens=False)["input_ids"][:_MAX_TOKENS]
        ids = ids[: share - count]
        rows.append(ids)
        count += len(ids)
    return rows, count
