"""A model that ignores its stop string: the same sentences in both hosts."""

from collections.abc import Sequence
from typing import Any

from ralmspec_plugins import Engine, Request, plain
from ralmspec_plugins.workloads import Sentences


def check_same_sentences(
    obeying: Any, ignoring: Any, retriever: Any, requests: Sequence[Request], mark: str
) -> None:
    """Compare the texts of two models, plainly, with speculation, and streamed."""
    reference, workload = (Sentences(lm, max_sentences=3) for lm in (obeying, ignoring))
    expected = [plain(reference, retriever, request).text for request in requests]

    count = sum(text.count(mark) for text in expected)
    assert len(requests) < count <= 3 * len(requests)
    assert expected == [plain(workload, retriever, request).text for request in requests]
    with Engine(workload, retriever) as engine:
        assert expected == [engine.run(request).text for request in requests]
        assert expected == ["".join(engine.stream(request)) for request in requests]
