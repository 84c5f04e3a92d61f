"""Build the API reference: one page for each public module, from its docstrings and `__all__`.

usage: python docs/build.py DIRECTORY

Every warning is an error, and so is an exported function, class or public method without a docstring.
docs/decisions/0034-api-reference.md says why pdoc.
"""

import inspect
import re
import sys
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pdoc
import pdoc.doc
import pdoc.doc_ast
import pdoc.render

PLUGINS = ("dataset", "checkpoint", "weights", "eplb", "dualpipe", "deepep", "deepgemm", "flashmla")
MODULES = (
    "luciola.client",
    "luciola.errors",
    "luciola.config",
    *(f"luciola.plugins.{name}" for name in PLUGINS),
)
FIELD = re.compile(r"\n(?=[A-Z]\w+: )")
"""Before a line such as `Shapes: …` or `Raises: …`, which Markdown would join to the line above."""
ROW = re.compile(r" *([\w.]+(?:, [\w.]+)*) {2,}(\S.*)")
"""A line of an aligned table, as `name    what it is`, which Markdown would join to the lines around it."""
SETTING = re.compile(r"((?:^    # .*\n)*)^    (\w+): [^#\n]*?(?:# (.*))?$", re.MULTILINE)
"""A field of a configuration class, with the comment above it or behind it."""


def main() -> None:
    warnings.simplefilter("error")
    sys.modules["_typeshed"] = typeshed()
    missing = [name for module in MODULES for name in undocumented(resolved(module))]
    if missing:
        sys.exit("missing docstrings: " + ", ".join(missing))
    pdoc.render.configure(show_source=False, footer_text="Luciola")
    markdown = pdoc.render.env.filters["to_html"]
    pdoc.render.env.filters["to_html"] = lambda text: markdown(FIELD.sub("\n\n", tables_as_lists(text)))
    pdoc.pdoc(*MODULES, output_directory=Path(sys.argv[1]))


def tables_as_lists(text: str) -> str:
    """Return a docstring with the rows of aligned tables as list items; blocks of code stay."""
    return "\n\n".join(
        paragraph if paragraph.startswith("    ") else _table_as_list(paragraph)
        for paragraph in text.split("\n\n")
    )


def _table_as_list(paragraph: str) -> str:
    lines: list[str] = []
    was_row = False
    for line in paragraph.splitlines():
        row = ROW.fullmatch(line)
        if (row is not None) != was_row:
            lines.append("")
        was_row = row is not None
        lines.append(f"- `{row[1]}`: {row[2]}" if row else line)
    if was_row:
        lines += ["", "<!-- -->"]  # what is indented behind it is code, not part of the list
    return "\n".join(lines)


def typeshed() -> ModuleType:
    """Return a stand-in for the module that annotations name and that exists for type checkers alone."""
    module = ModuleType("_typeshed")
    for name in ("ReadableBuffer", "StrOrBytesPath", "StrPath", "WriteableBuffer"):
        setattr(module, name, type(name, (), {"__module__": "_typeshed"}))
    return module


def resolved(name: str) -> ModuleType:
    """Import a module and bind its lazily imported names, which pdoc looks up without `__getattr__`."""
    module = import_module(name)
    for exported in getattr(module, "__all__", ()):
        value = getattr(module, exported)
        setattr(module, exported, value)
        if name == "luciola.config" and inspect.isclass(value):
            pdoc.doc_ast.walk_tree(value).var_docstrings.update(reasons_of(value))
        if hasattr(value, "_fields"):  # a NamedTuple's constructor has annotations of its class's module
            value.__new__.__module__ = value.__module__
    return module


def reasons_of(config: type) -> dict[str, str]:
    """Return what the comments of a configuration class say of its fields."""
    return {
        name: behind or " ".join(line.strip("# ") for line in above.splitlines())
        for above, name, behind in SETTING.findall(inspect.getsource(config))
    }


def undocumented(module: ModuleType) -> Iterator[str]:
    """Yield the names of exported functions and classes, and of their own public methods, without a docstring."""
    for member in pdoc.doc.Module(module).members.values():
        methods = member.own_members if isinstance(member, pdoc.doc.Class) else ()
        for each in (member, *methods):
            callable_ = isinstance(each, pdoc.doc.Function | pdoc.doc.Class)
            if callable_ and not each.name.startswith("_") and not each.docstring:
                yield each.fullname


if __name__ == "__main__":
    main()
