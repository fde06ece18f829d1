"""Nothing of LangChain is replaced: not at import, nor by queries, streams, errors and aborts."""

import json
import subprocess
import sys
from pathlib import Path


def test_every_class_and_module_of_the_host_stays_as_it_was() -> None:
    """All values of `langchain_core`, by identity; a planted change is seen."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.langchain.unchanged"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    told = json.loads(done.stdout.splitlines()[-1])

    assert [] == told["changed"]
    assert told["compared"] > 20_000
    assert told["events"] > 200
    assert ["langchain_core.retrievers.BaseRetriever.planted"] == told["planted"]
