"""Writes the pages of the API from the source, by griffe, without importing it.

A page documents what a package's `__all__` names, under the name that a user imports it by:
signature, docstring, fields with type and default, and public methods.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import griffe

PAGES: Final = {
    "ralmspec_plugins": "Engines, settings and records",
    "ralmspec_plugins.errors": "Errors",
    "ralmspec_plugins.protocols": "Protocols of your own parts",
    "ralmspec_plugins.effects": "Events",
    "ralmspec_plugins.workloads": "Workloads",
    "ralmspec_plugins.retrieval": "Retrievers and knowledge bases",
    "ralmspec_plugins.speculators": "Speculators",
    "ralmspec_plugins.lm": "Local models",
    "ralmspec_plugins.decoding": "Speculation on tokens",
    "ralmspec_plugins.knn": "KNN-LM",
    "ralmspec_plugins.diagnosis": "Diagnosis",
    "ralmspec_plugins.timeline": "Timelines",
    "ralmspec_plugins.testing": "Fakes for tests",
    "ralmspec_plugins.testing.contracts": "Contracts for tests",
    "langchain_ralmspec": "LangChain",
    "langchain_ralmspec.agents": "LangChain agents",
    "llama_index_ralmspec": "LlamaIndex",
}
EVENTS: Final = ("Guessed", "Judged", "RolledBack", "Confirmed", "Commit", "Settled", "Failed")
_NAME: Final = re.compile(r"(?<![`\w{}])`([A-Za-z_][\w.]*)(?:\(\))?`(?!`)")


class ApiPages:
    """The pages, each as Markdown with directives of Sphinx's Python domain."""

    def __init__(self, root: Path) -> None:
        """Load the packages below the root of the repository."""
        self._loader = griffe.GriffeLoader(
            search_paths=[str(root), str(root / "integrations")],
            docstring_parser=griffe.Parser.google,
            docstring_options={"warnings": False},
        )
        for package in ("ralmspec_plugins", "langchain_ralmspec", "llama_index_ralmspec"):
            self._loader.load(package, try_relative_path=False)
        self._loader.resolve_aliases(implicit=True, external=False)
        self._public = {
            self._object(module, name).path: f"{module}.{name}"
            for module in reversed(PAGES)
            for name in self._names(module)
        }
        self._short = {public.rsplit(".", 1)[1]: public for public in self._public.values()}

    def write(self, folder: Path) -> None:
        """Write all pages; a file that would not change is left alone."""
        folder.mkdir(exist_ok=True)
        for module, title in PAGES.items():
            path = folder / f"{module}.md"
            text = "\n".join(self._page(module, title)) + "\n"
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                path.write_text(text, encoding="utf-8")

    def _module(self, module: str) -> Any:
        return self._loader.modules_collection[module]

    def _object(self, module: str, name: str) -> Any:
        member = self._module(module).members[name]
        return member.final_target if member.is_alias else member

    def _names(self, module: str) -> list[str]:
        if module == "ralmspec_plugins.effects":
            return list(EVENTS)
        exports = self._module(module).exports
        if exports is not None:
            return [str(name) for name in exports]
        return [
            name
            for name, member in self._module(module).members.items()
            if not name.startswith("_")
            and not member.is_alias
            and (member.is_class or member.is_function)
        ]

    def _page(self, module: str, title: str) -> Iterator[str]:
        names = self._names(module)
        short = module.removeprefix("ralmspec_plugins.").replace(".", "-")
        yield f"(api-{short})=\n# {title}"  # links to #api-... lead nowhere else than on the site
        yield f"\n```{{py:module}} {module}\n```\n"
        if module == "ralmspec_plugins.effects":
            yield "The events of `Engine.events`, `AsyncEngine.events` and the hosts' reports.\n"
        else:
            yield from self._sections(self._module(module).docstring)
        for name in sorted(names, key=lambda name: self._object(module, name).is_attribute):
            public = f"{module}.{name}"
            one = self._object(module, name)
            if self._public[one.path] != public:
                yield f"\n`{name}` is documented as {self._link(self._public[one.path])}.\n"
            else:
                yield from self._described(one, name, 6)

    def _described(self, one: Any, name: str, fence: int) -> Iterator[str]:
        """Describe a class, a function or a constant."""
        marks = ":" * fence
        if one.is_class:
            yield f"\n{marks}{{py:class}} {name}{_signature(one.parameters)}"
        elif one.is_function:
            returns = f" -> {one.returns}" if one.returns is not None else ""
            yield f"\n{marks}{{py:function}} {name}{_signature(one.parameters)}{returns}"
        else:
            yield f"\n{marks}{{py:data}} {name}"
        yield ""
        yield from self._sections(one.docstring)
        if one.is_attribute and one.docstring is None:
            yield _comment(one)
        if one.is_class:
            yield from self._members(one, fence - 1)
        yield f"{marks}\n"

    def _members(self, one: Any, fence: int) -> Iterator[str]:
        """Describe fields, properties and methods, also those of bases without a page."""
        bases = [base for base in one.mro() if base.path in self._public]
        if bases:
            links = (self._link(self._public[base.path]) for base in bases)
            yield f"Bases: {', '.join(links)}\n"
        inherited = {name for base in bases for name in base.members} - set(one.members)
        meanings = _meanings(one)
        for name, member in one.all_members.items():
            if name.startswith("_") or name in inherited:
                continue
            found = member.final_target if member.is_alias else member
            if found.is_function and found.docstring is not None:
                lines = "\n".join(self._method(found, name, ":" * fence))
                yield self._specialised(lines, one, found.parent)
            elif found.is_attribute:
                documented = found.docstring.value if found.docstring else ""
                text = meanings.get(name) or documented or _comment(found)
                if text or one.has_labels("dataclass"):
                    yield from self._field(found, name, text, ":" * fence)

    def _specialised(self, text: str, one: Any, base: Any) -> str:
        """Return the text with a class's arguments for the type variables of its generic base."""
        given = [expr for expr in one.bases if str(expr).startswith(f"{base.name}[")]
        variables = [expr for expr in base.bases if str(expr).startswith("Generic[")]
        if base is one or not given or not variables:
            return text
        pairs = zip(_arguments(variables[0]), _arguments(given[0]), strict=True)
        for variable, argument in pairs:
            text = re.sub(rf"\b{variable}\b", argument, text)
        return text

    def _method(self, one: Any, name: str, marks: str) -> Iterator[str]:
        returns = f" -> {one.returns}" if one.returns is not None else ""
        parameters = list(one.parameters)
        if "staticmethod" not in one.labels:
            parameters = parameters[1:]
        yield f"{marks}{{py:method}} {name}{_signature(parameters)}{returns}"
        for label in ("async", "classmethod", "staticmethod"):
            if label in one.labels:
                yield f":{label}:"
        yield ""
        yield from self._sections(one.docstring)
        yield f"{marks}\n"

    def _field(self, one: Any, name: str, text: str, marks: str) -> Iterator[str]:
        kind = "py:property" if one.has_labels("property") else "py:attribute"
        yield f"{marks}{{{kind}}} {name}"
        if one.annotation is not None:
            yield f":type: {_one_line(one.annotation)}"
        if kind == "py:attribute" and (default := _default(one.value)):
            yield f":value: {default}"
        yield ""
        yield self._linked(text)
        yield f"{marks}\n"

    def _sections(self, docstring: Any) -> Iterator[str]:
        """Return a docstring as Markdown; its attributes are described with the class."""
        if docstring is None:
            return
        for section in docstring.parsed:
            match section.kind.value:
                case "text" | "admonition":
                    yield self._linked(_text(section)) + "\n"
                case "examples":
                    for kind, text in section.value:
                        fenced = kind.value == "examples"
                        yield f"```pycon\n{text}\n```\n" if fenced else self._linked(text) + "\n"
                case "parameters" | "raises" | "returns" | "yields":
                    yield f"**{section.kind.value.capitalize()}**\n"
                    for item in section.value:
                        name = getattr(item, "name", "") or _one_line(item.annotation or "")
                        meaning = " ".join(item.description.split())
                        yield f"- `{name}`: {self._linked(meaning)}" if name else f"- {meaning}"
                    yield ""

    def _linked(self, text: str) -> str:
        """Return the text with links from the names of public objects, outside of code."""
        fence = "```"
        parts = _doctests(text).split(fence)
        parts[::2] = [_NAME.sub(lambda found: self._role(found), part) for part in parts[::2]]
        return fence.join(parts)

    def _role(self, found: re.Match[str]) -> str:
        name = found[1]
        head, _, rest = name.partition(".")
        public = self._short.get(head)
        if public is None:
            return found[0]
        return f"{{py:obj}}`{name} <{public}{'.' + rest if rest else ''}>`"

    def _link(self, public: str) -> str:
        return f"{{py:obj}}`{public.rsplit('.', 1)[1]} <{public}>`"


def _signature(parameters: Iterable[Any]) -> str:
    """Return parameters in parentheses, as the source has them."""
    written, keyword_only = [], False
    for one in parameters:
        kind = one.kind.value
        if kind == "keyword-only" and not keyword_only:
            written.append("*")
            keyword_only = True
        keyword_only |= kind == "variadic positional"
        stars = {"variadic positional": "*", "variadic keyword": "**"}.get(kind, "")
        if one.name == "self":
            continue
        text = f"{stars}{one.name}"
        if one.annotation is not None:
            text += f": {_one_line(one.annotation)}"
        if one.default is not None and not stars:
            text += f" = {_value(one.default)}"
        written.append(text)
    return f"({', '.join(written)})"


def _meanings(one: Any) -> dict[str, str]:
    """Return what the docstring's section `Attributes` says about each field."""
    if one.docstring is None:
        return {}
    return {
        item.name: " ".join(item.description.split())
        for section in one.docstring.parsed
        if section.kind.value == "attributes"
        for item in section.value
    }


def _arguments(subscript: Any) -> list[str]:
    return [one.strip() for one in str(subscript).partition("[")[2].rstrip("]").split(",")]


def _comment(one: Any) -> str:
    """Return the comment on the line of a field, as a sentence."""
    line = one.lines_collection[one.filepath][one.endlineno - 1]
    _, mark, comment = line.partition("  # ")
    return comment.strip().rstrip(".") + "." if mark else ""


def _text(section: Any) -> str:
    if section.kind.value == "text":
        return str(section.value)
    return f"**{section.title}**\n\n{section.value.description}"


def _doctests(text: str) -> str:
    """Return the text with each doctest, and each indented block, in a fence."""
    lines, inside = [], False
    for line in text.splitlines():
        if not inside and line.startswith(">>> "):
            lines.append("```pycon")
            inside = True
        elif inside and not line.strip():
            lines.append("```")
            inside = False
        lines.append(line)
    if inside:
        lines.append("```")
    return "\n".join(lines)


def _default(value: Any) -> str:
    """Return the default of a field; that of `field(default_factory=X)` is `X()`."""
    if value is None:
        return ""
    if not isinstance(value, griffe.ExprCall) or str(value.function).lower() != "field":
        return _value(value)
    given = {
        one.name: _value(one.value)
        for one in value.arguments
        if isinstance(one, griffe.ExprKeyword)
    }
    if "default_factory" in given:
        return f"{given['default_factory']}()"
    return given.get("default", "")


def _value(expression: Any) -> str:
    """Return a default as the source has it; in place of a constant's name its literal value."""
    if isinstance(expression, griffe.ExprName):
        try:
            named = expression.parent.modules_collection[expression.canonical_path]
        except KeyError:
            return _one_line(expression)  # of another package
        if named.is_attribute and isinstance(named.value, str):
            return named.value
    return _one_line(expression)


def _one_line(expression: Any) -> str:
    return " ".join(str(expression).split())
