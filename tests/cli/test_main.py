"""The console script as a process: exit codes, Ctrl-C, a missing extra, a real terminal."""

import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import ralmspec_plugins
from ralmspec_plugins.cli.app import app
from tests.cli.conftest import Run, names

PATIENCE_S = 60.0
# Saving waits where a disk would be slow, so that there is a middle to be interrupted in.
SLOW_SAVE = """
import os, time
from ralmspec_plugins.__main__ import main
os.fsync = lambda descriptor: time.sleep(60)
main()
"""
WITHOUT = """
import sys
sys.modules[{package!r}] = None
from ralmspec_plugins.__main__ import main
main()
"""


def _start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *(str(argument) for argument in arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_hear_ctrl_c,
    )


def _hear_ctrl_c() -> None:
    """Undo what a shell does to what it runs in the background: ignoring Ctrl-C is inherited."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _wait_for(fact: Callable[[], bool]) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not fact():
        assert time.monotonic() < until_s, "it never happened"
        time.sleep(0.02)


def _interrupted(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    return process.returncode, stdout, stderr


def test_help_loads_no_library_that_a_command_may_need() -> None:
    """Each comes with the command that is asked for; `--help` is there at once."""
    code = (
        "import sys, ralmspec_plugins.cli.app\n"
        "sys.exit(str({'torch', 'transformers', 'faiss'} & set(sys.modules) or '') or 0)"
    )
    stdout, stderr = _start("-c", code).communicate(timeout=PATIENCE_S)

    assert ("", "") == (stdout, stderr)


def test_version(run: Run) -> None:
    """It is the package's."""
    result = run("--version")

    assert (0, f"ralmspec {ralmspec_plugins.__version__}\n") == (result.exit_code, result.stdout)


def test_help_names_the_commands(run: Run) -> None:
    """Also when nothing at all is given, which is a usage error."""
    for arguments, code in ((["--help"], 0), ([], 2)):
        result = run(*arguments)

        assert code == result.exit_code
        assert all(name in result.output for name in ("index", "ask", "demo", "diagnose"))


CHOICE = re.compile(r"(--[\w-]+) .*\[(\w[\w-]*(?:\|[\w-]+)+)\]")


def test_a_misspelt_name_is_answered_with_the_right_one(run: Run) -> None:
    """In every option of every command that takes one of some names; all are listed."""
    tried = set()
    for name, command in commands(typer.main.get_command(app)):
        context = typer.Context(command)  # type: ignore[arg-type]
        records = [parameter.get_help_record(context) for parameter in command.params]
        shown = "\n".join(record[0] for record in records if record)
        for option, names_of in CHOICE.findall(shown):
            known = names_of.split("|")
            result = run(*name, option, f"{known[0]}x")
            said = " ".join(result.stderr.replace("│", " ").split())
            tried.add(option)

            assert result.exit_code == 2
            assert (
                f"Invalid value for '{option}': '{known[0]}x' is not one of {', '.join(known)}; "
                f"did you mean '{known[0]}'?"
            ) in said
            assert "did you mean" not in run(*name, option, "zzzz").stderr

    assert {"--schedule", "--workload", "--drafter", "--hops", "--search", "--eviction"} <= tried


def commands(group: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield all commands with their names, those of a group too."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from (((name, *path), one) for path, one in commands(command))
        else:
            yield (name,), command


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_a_missing_extra_names_the_command(package: str) -> None:
    """One line on stderr, exit code 1, no traceback."""
    process = _start("-c", WITHOUT.format(package=package))
    stdout, stderr = process.communicate(timeout=PATIENCE_S)

    assert (1, "") == (process.returncode, stdout)
    assert f"{package} is not installed" in stderr
    assert "pip install 'ralmspec-plugins[cli]'" in stderr
    assert "Traceback" not in stderr


def test_ctrl_c_while_an_index_is_saved(tmp_path: Path, text_file: Path, run: Run) -> None:
    """Exit code 130; the old knowledge base is whole, and nothing else is left."""
    target = tmp_path / "kb"
    assert run("index", text_file, target).exit_code == 0
    before = {file.name: file.read_bytes() for file in target.iterdir()}
    process = _start("-c", SLOW_SAVE, "index", text_file, target, "--k", 3)
    _wait_for(lambda: len(names(tmp_path)) > 1)
    code, stdout, stderr = _interrupted(process)

    assert (130, "") == (code, stdout)
    assert "Traceback" not in stderr
    assert ["kb"] == names(tmp_path)
    assert before == {file.name: file.read_bytes() for file in target.iterdir()}


def test_ctrl_c_while_answers_are_written(tmp_path: Path, kb: Path, model: Path) -> None:
    """Exit code 130 within moments; every line that is out is whole."""
    (tmp_path / "q.txt").write_text("The storm\n" * 500, encoding="utf-8")
    process = _start(
        *("-m", "ralmspec_plugins", "ask", "--file", tmp_path / "q.txt", "--kb", kb),
        *("--model", model, "--threads", 1, "--timeline", tmp_path / "t.html"),
        *("--latency", "100ms", "--max-tokens", 16),
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    began_s = time.monotonic()
    code, rest, stderr = _interrupted(process)

    assert code == 130
    assert time.monotonic() - began_s < 10
    assert "Traceback" not in stderr
    assert all(line.startswith("{") and line.endswith("}\n") for line in [first, *_lines(rest)])
    assert not [name for name in names(tmp_path) if name.startswith(".")]


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def test_whoever_stops_reading_is_no_error(tmp_path: Path, text_file: Path) -> None:
    """As in `ralmspec ... | true`: no traceback."""
    process = _start("-m", "ralmspec_plugins", "index", text_file, tmp_path / "kb")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    stderr = process.stderr.read()
    process.stderr.close()
    process.wait(PATIENCE_S)

    assert "Traceback" not in stderr
    assert "BrokenPipe" not in stderr


def test_on_a_terminal_there_is_text(tmp_path: Path, text_file: Path) -> None:
    """A progress bar and a sentence, not JSON."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "ralmspec_plugins", "index", text_file, tmp_path / "kb"]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=theirs) as process:
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 65536):
                shown += part
        except OSError:  # Linux says so when the other side has closed
            pass
        finally:
            os.close(ours)

    assert process.returncode == 0
    assert b"40 passages" in shown
    assert b"40/40" in shown
    assert b"{" not in shown
