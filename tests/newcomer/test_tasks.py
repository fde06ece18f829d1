"""The newcomer's tasks can be solved, and their checks refuse what solves nothing."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.newcomer.run import HERE, TASKS, judged

ROOT = HERE.parents[1]
ENVIRONMENT = dict(os.environ) | {"PYTHONPATH": f"{ROOT}:{ROOT / 'integrations'}"}
HOSTS = ("agent", "langchain_chain", "llama_index_engine")  # whose imports take seconds
UNSOLVED = {  # what someone would hand in who changed nothing
    "agent.py": "from given.agent import model, tool\nfrom langchain.agents import create_agent\n"
    "from langchain_ralmspec import SpeculativeTools\nmiddleware = SpeculativeTools()\n"
    "agent = create_agent(model, [tool])\n",
    "cite.txt": "Zhang et al., 2024",
    "default.txt": "5",
    "does_not_pay.py": "at_best, pays = 3.0, True\n",
    "langchain_chain.py": "from given.langchain_chain import chain as fast\n",
    "llama_index_engine.py": "from given.llama_index_engine import index, llm\n"
    "engine = index.as_query_engine(llm=llm)\n",
    "own_retriever.py": "def answer(prompt):\n    raise NotImplementedError\n",
}


def test_each_task_has_a_solution_and_is_described() -> None:
    """A check, a file that passes it, and a row of the table."""
    solved = sorted(path.stem for path in (HERE / "solutions").iterdir() if path.is_file())
    text = (HERE / "README.md").read_text(encoding="utf-8")

    assert len(TASKS) == 7
    assert list(TASKS) == solved == sorted(Path(name).stem for name in UNSOLVED)
    assert all(f"| `{task}` |" in text for task in TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_the_solution_passes(task: str, tmp_path: Path) -> None:
    """In a folder of its own."""
    fault = judged(task, HERE / "solutions", tmp_path, sys.executable, ENVIRONMENT)

    assert fault == ""
    assert (tmp_path / "answers").is_dir()


@pytest.mark.parametrize(
    "task", [pytest.param(one, marks=pytest.mark.slow) if one in HOSTS else one for one in TASKS]
)
def test_what_solves_nothing_fails(task: str, tmp_path: Path) -> None:
    """Each check is able to fail."""
    answers = tmp_path / "handed in"
    shutil.copytree(HERE / "solutions", answers)
    [name] = [name for name in UNSOLVED if Path(name).stem == task]
    (answers / name).write_text(UNSOLVED[name], encoding="utf-8")

    assert judged(task, answers, tmp_path, sys.executable, ENVIRONMENT) != ""
