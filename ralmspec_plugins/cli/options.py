"""Groups of options that several commands share, and the parsing of their values."""

import functools
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, get_args, get_origin

import typer

from ralmspec_plugins.errors import ConfigError, InputError
from ralmspec_plugins.retrieval.ingest import json_line
from ralmspec_plugins.scheduling.schedules import Continuous, FixedStride, OptimalStride, Schedule
from ralmspec_plugins.timeline import check_path
from ralmspec_plugins.types import Request
from ralmspec_plugins.workloads import WORKLOADS
from ralmspec_plugins.workloads.flare import QueryBy

PLAIN, SPECULATIVE = "plain", "speculative"  # ways to run a request
_ENTRY: Final = re.compile(r"^    (\w+): (.+(?:\n     .+)*)", re.MULTILINE)  # of a section


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Return a function as a command: the section `Options` of its docstring has the help texts.

    Positional parameters are arguments, others are options; a dataclass is a group
    whose fields are options, in a panel of their own where it has a `PANEL`. An annotation may
    have settings of `typer.Option` in a dictionary.
    """
    signature = inspect.signature(function, eval_str=True)
    text, helps = _described(function)
    groups: dict[str, list[str]] = {}
    parameters: list[inspect.Parameter] = []
    for name, one in signature.parameters.items():
        if is_dataclass(one.annotation):
            make: Any = one.annotation
            fields = inspect.signature(make).parameters
            groups[name] = list(fields)
            _, told = _described(one.annotation)
            panel = {"rich_help_panel": getattr(make, "PANEL", None)}
            parameters += [_parameter(one, told[one.name], **panel) for one in fields.values()]
        else:
            parameters.append(_parameter(one, helps[name]))

    @functools.wraps(function)
    def run(**given: Any) -> None:
        for name, fields in groups.items():
            group = signature.parameters[name].annotation
            given[name] = group(**{field: given.pop(field) for field in fields})
        function(**given)

    run.__doc__ = text
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return run


def _described(thing: Any) -> tuple[str, dict[str, str]]:
    """Return the text of a docstring, and the help text of each option."""
    text, _, listed = inspect.cleandoc(thing.__doc__).partition("\nOptions:\n")
    return text, {name: " ".join(told.split()) for name, told in _ENTRY.findall(listed)}


def _parameter(one: inspect.Parameter, told: str, **settings: Any) -> inspect.Parameter:
    kind = one.annotation
    if get_origin(kind) is Annotated:
        kind, own = get_args(kind)
        settings |= own
    for choice in (kind, *get_args(kind)):
        if get_origin(choice) is Literal:
            settings |= one_of(*get_args(choice))
    keyword = inspect.Parameter.KEYWORD_ONLY
    if one.kind is keyword:  # with one name, so that a bool has no --no-...
        name = {"name": option(one.name)} if kind is bool else {}
        info: Any = _option(help=told, **name, **settings)
    else:
        info = typer.Argument(help=told, **settings)
    return one.replace(annotation=Annotated[kind, info], kind=keyword)


def _option(name: str | None = None, **settings: Any) -> Any:
    return typer.Option(*filter(None, [name]), **settings)


def duration(text: str | float) -> float:
    """Return a time with its unit in seconds; a default is a number already.

    >>> duration("50ms"), duration("1.5s"), duration("0")
    (0.05, 1.5, 0.0)
    """
    if not isinstance(text, str):
        return float(text)
    number, unit = (text[:-2], "ms") if text.endswith("ms") else (text.removesuffix("s"), "s")
    try:
        value = float(number) * (0.001 if unit == "ms" else 1.0)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise typer.BadParameter(f"{text!r} is not a time; give for example 50ms or 1.5s")
    if value and number == text:
        raise typer.BadParameter(f"{text!r} has no unit; give {text}ms or {text}s")
    return value


def chosen(names: Sequence[str], text: str) -> str:
    """Return the one of the names that was given.

    >>> chosen(["one-shot", "sentences"], "one_shot")
    'one-shot'
    """
    name = text if text in names else text.replace("_", "-")
    if name not in names:
        near = get_close_matches(name, names, 1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise typer.BadParameter(f"{text!r} is not one of {', '.join(names)}{meant}")
    return name


def one_of(*names: str) -> dict[str, Any]:
    """Return the settings of an option whose value is one of these names."""

    def parse(text: str) -> str:  # typer asks for the name of a parser
        return chosen(names, text)

    return {
        "parser": parse,
        "metavar": f"[{'|'.join(names)}]",
        "autocompletion": lambda: list(names),
    }


WORKLOAD_NAMES: Final = tuple(name.replace("_", "-") for name in sorted(WORKLOADS))
WorkloadOption = Annotated[str, one_of(*WORKLOAD_NAMES)]
DrafterName = Literal["none", "suffix", "passages", "both", "corpus", "rapid"]
Count = Annotated[int, {"min": 1}]
Probability = Annotated[float, {"min": 0.0, "max": 1.0}]
OptionalCount = Annotated[int | None, {"min": 1}]
Seconds = Annotated[float, {"parser": duration, "metavar": "TIME"}]
OptionalSeconds = Annotated[float | None, {"parser": duration, "metavar": "TIME"}]


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonOptions:
    """The options of every command that runs a model.

    Options:
        model: A causal model's folder, or its name on the hub; "demo" is the demo's own, which is
            the default over the demo's own world.
        threads: The model's threads. (default: torch's choice; 1 for the demo's model)
        device: Where models compute, the encoder's too: cpu, cuda, cuda:1. (default: cpu)
        json: JSON on stdout, which is the default if stdout is not a terminal.
    """

    PANEL: ClassVar[str] = "Model and output"

    model: Annotated[str | None, {"metavar": "PATH"}] = None
    threads: OptionalCount = None
    device: str | None = None
    json: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadOptions:
    """The settings of single workloads.

    Options:
        theta: flare: search unless each token of a sentence is more probable than this.
        beta: flare: leave tokens up to this probability out of the query.
        query_by: flare: mask the sentence, or ask a question about it.
        iterations: iter-retgen: how often the answer is written.
        hops: multi-hop: how the model asks: tags, thoughts, or follow-up questions.
        max_hops: multi-hop: searches in an answer.
        answer_only: multi-hop: give the final answer alone.
    """

    PANEL: ClassVar[str] = "Single workloads"

    theta: Probability = 0.8
    beta: Probability = 0.4
    query_by: QueryBy = "masking"
    iterations: Count = 3
    hops: Literal["search-r1", "ircot", "self-ask"] = "search-r1"
    max_hops: Count = 5
    answer_only: bool = False

    def check(self, workload: str) -> None:
        """Check that a workload has the settings that were given.

        Raises:
            ConfigError: it does not have one of them.
        """
        known = _OF_WORKLOADS.get(workload, ())
        foreign = [
            option(one.name)
            for one in fields(self)
            if one.name not in known and getattr(self, one.name) != one.default
        ]
        if foreign:
            owners = [name for name, has in _OF_WORKLOADS.items() if foreign[0] in map(option, has)]
            raise ConfigError(
                f"{', '.join(foreign)} does not belong to the workload {workload!r}; "
                f"{foreign[0]} needs --workload {owners[0]}"
            )


_OF_WORKLOADS: Final[Mapping[str, tuple[str, ...]]] = {
    "flare": ("theta", "beta", "query_by"),
    "iter-retgen": ("iterations",),
    "multi-hop": ("hops", "max_hops", "answer_only"),
}

_SCHEDULES: Final[Mapping[str, tuple[Any, tuple[str, ...]]]] = {
    "continuous": (Continuous, ("lanes", "window")),
    "fixed": (FixedStride, ("stride", "overlap")),
    "os3": (OptimalStride, ("window", "overlap", "gamma_limit")),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleOptions:
    """The schedule of speculation and of searches.

    Options:
        schedule: The schedule of speculation and of searches.
        stride: fixed: guesses for each verification.
        lanes: continuous: maximum number of searches in parallel.
        window: Maximum number of unverified steps (continuous), rounds in estimates (os3).
        overlap: fixed, os3: generate during a verification.
        gamma_limit: os3: the upper bound of its estimated acceptance rate, 0.6 by default (the
            paper's); 0.98 for a replica.
        switch_interval: Python's thread switch interval during speculative requests, such
            as 0.5ms. (default: Python's own)
    """

    PANEL: ClassVar[str] = "Speculation"

    schedule: Literal["continuous", "fixed", "os3"] = "continuous"
    stride: OptionalCount = None
    lanes: OptionalCount = None
    window: OptionalCount = None
    overlap: bool | None = None
    gamma_limit: float | None = None
    switch_interval: OptionalSeconds = None

    def settings(self) -> dict[str, Any]:
        """Return the schedule and the switch interval, by their names in `Settings`.

        Raises:
            ConfigError: the schedule does not have an option, or a value is out of range.
        """
        kind, known = _SCHEDULES[self.schedule]
        names = ("stride", "lanes", "window", "overlap", "gamma_limit")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        foreign = [option(name) for name in given if name not in known]
        if foreign:
            raise ConfigError(
                f"{', '.join(foreign)} does not belong to the schedule {self.schedule!r}, "
                f"which takes {' and '.join(map(option, known))}"
            )
        schedule: Schedule = kind(**given)
        return {"schedule": schedule, "switch_interval_s": self.switch_interval}


def option(name: str) -> str:
    """Return a setting's name as an option.

    >>> option("gamma_limit")
    '--gamma-limit'
    """
    return f"--{name.replace('_', '-')}"


def check_corpus(drafter: DrafterName, corpus: Path | None) -> None:
    """Check that a token corpus is given where drafts are taken from one, and only there.

    Raises:
        BadParameter: it is missing, or of no use.
    """
    if drafter == "corpus" and corpus is None:
        raise typer.BadParameter("--drafter corpus needs --corpus (see: ralmspec draft build)")
    if drafter != "corpus" and corpus is not None:
        raise typer.BadParameter("--corpus needs --drafter corpus")


def changed(group: Any, *, besides: str = "") -> list[str]:
    """Return the options of a group that differ from their defaults, all of which are values."""
    return [
        option(one.name)
        for one in fields(group)
        if one.name != besides and getattr(group, one.name) != one.default
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionOptions:
    """The questions, the modes of their runs, and their timelines.

    Options:
        file: Questions, one per line ('-' for stdin), or a .jsonl file with a 'question' each.
        plain: Do not speculate.
        compare: Run both modes, and check that the answers are equal.
        max_tokens: The maximum number of tokens of an answer.
        stop: End the answer before this text; may be repeated.
        seed: Random seed for sampling.
        temperature: 0 for greedy decoding; above, tokens are sampled.
        deadline: Timeout of one question, such as 30s.
        timeline: File of the timeline: .html, .json (Chrome trace events) or .svg.
    """

    PANEL: ClassVar[str] = "Questions and answers"

    file: Path | None = None
    plain: bool = False
    compare: bool = False
    max_tokens: Count = 128
    stop: list[str] | None = None
    seed: int = 0
    temperature: Annotated[float, {"min": 0.0}] = 0.0
    deadline: OptionalSeconds = None
    timeline: Path | None = None

    def modes(self) -> tuple[str, ...]:
        """Return the modes of each request.

        Raises:
            BadParameter: the options contradict each other.
        """
        if self.plain and self.compare:
            raise typer.BadParameter(
                "--compare includes a plain run; give one of --plain and --compare"
            )
        if self.compare:
            return PLAIN, SPECULATIVE
        return (PLAIN,) if self.plain else (SPECULATIVE,)

    def requests(self, question: str | None) -> list[Request]:
        """Return a request for each question, after a check of the timeline's path.

        Raises:
            BadParameter: a question and a file were given, or neither.
            InputError: the file has no questions.
            ConfigError: the timeline cannot be written there.
        """
        if (question is None) == (self.file is None):
            raise typer.BadParameter("give either a question or --file")
        questions = [readable(question)] if question is not None else _in_file(self.file)
        if self.timeline is not None:
            check_path(self.timeline)
        settings: dict[str, Any] = {"max_tokens": self.max_tokens, "seed": self.seed}
        settings |= {"stop": tuple(self.stop or ()), "deadline_s": self.deadline}
        return [Request(prompt=text, **settings) for text in questions]


def readable(question: str) -> str:
    """Return a question, if all its bytes are UTF-8, and it is not empty.

    Raises:
        InputError: they are not, or it is.
    """
    if not question.strip():
        raise InputError("the question is empty; give a question, or the start of a text")
    try:
        question.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the question {question!r} is not UTF-8 text") from error
    return question


def _in_file(file: Path | None) -> list[str]:
    assert file is not None
    if str(file) != "-" and not file.is_file():
        raise InputError(f"there is no file {file}; --file takes questions, one per line")
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8-sig")
    except ValueError as error:
        raise InputError(f"{file} is not UTF-8 text ({error}); convert it first") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1)]
    read = partial(_question, file) if file.suffix == ".jsonl" else lambda _, line: line
    questions = [read(number, line) for number, line in lines if line]
    if not questions:
        raise InputError(f"{file} has no question; write one per line")
    return questions


def _question(file: Path, number: int, line: str) -> str:
    try:
        return readable(_asked(json_line(line)))
    except InputError as error:
        raise InputError(f"{file}: line {number} {error}") from error


def _asked(record: Any) -> str:
    question = record.get("question") if isinstance(record, dict) else None
    if not isinstance(question, str):
        raise InputError('needs an object with a text, such as {"question": "..."}')
    return question
