"""The server that the other tests talk to does what its model does, through OpenAI's client."""

from collections.abc import Iterator

import pytest
from langchain_openai import ChatOpenAI, OpenAI

from ralmspec_plugins.demo import MODEL
from ralmspec_plugins.lm.huggingface import HuggingFaceLM
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.types import Request
from tests.langchain.openai_server import Served, serving

PROMPT = "Osk is a town.\n\nTell the story of Osk.\n"


@pytest.fixture(scope="module")
def lm() -> HuggingFaceLM:
    return HuggingFaceLM.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def served(lm: HuggingFaceLM) -> Iterator[Served]:
    with serving(lm) as served:
        yield served


def text_model(served: Served) -> OpenAI:
    return OpenAI(base_url=served.url, api_key="none", model="demo", temperature=0)


def chat_model(served: Served) -> ChatOpenAI:
    return ChatOpenAI(base_url=served.url, api_key="none", model="demo", temperature=0)


def written(lm: HuggingFaceLM, prompt: str, tokens: int, stop: tuple[str, ...] = ()) -> str:
    draft = lm.begin(Request(prompt=prompt, max_tokens=tokens, stop=stop))
    return lm.write(draft, [], tokens, Progress()).text


def test_a_text_model_writes_what_the_demo_model_writes(lm: HuggingFaceLM, served: Served) -> None:
    """Plain, stopped and streamed completions are the model's own text; each is one request."""
    before = served.count
    llm = text_model(served)
    expected = written(lm, PROMPT, 24)

    assert expected == llm.invoke(PROMPT, max_tokens=24)
    assert expected == "".join(llm.stream(PROMPT, max_tokens=24))
    assert written(lm, PROMPT, 24, (" and",)) == llm.invoke(PROMPT, max_tokens=24, stop=[" and"])
    assert served.count - before == 3


def test_why_a_text_ended_is_said(served: Served) -> None:
    """A bound is `length`, a stop string is `stop`."""
    llm = text_model(served)
    cut = llm.generate([PROMPT], max_tokens=4).generations[0][0]
    stopped = llm.generate([PROMPT], max_tokens=24, stop=["."]).generations[0][0]

    assert [
        "length",
        "stop",
    ] == [(one.generation_info or {})["finish_reason"] for one in (cut, stopped)]


def test_a_chat_model_continues_its_own_message(lm: HuggingFaceLM, served: Served) -> None:
    """With `continue_final_message` the text goes on where its message ends."""
    llm = chat_model(served)
    more = {"continue_final_message": True, "add_generation_prompt": False}
    begun = llm.invoke([("user", PROMPT)], max_tokens=8)
    rest = llm.invoke(
        [("user", PROMPT), ("assistant", begun.content)], max_tokens=8, extra_body=more
    )
    pieces = list(llm.stream([("user", PROMPT)], max_tokens=16))

    assert written(lm, f"{PROMPT}{begun.content}", 8) == rest.content
    assert written(lm, PROMPT, 16) == "".join(str(piece.content) for piece in pieces)
    assert begun.usage_metadata is not None
    assert begun.usage_metadata["output_tokens"] == 8


def test_continuing_what_is_no_assistant_message_is_an_error(served: Served) -> None:
    """As with vLLM: the client raises its own error."""
    with pytest.raises(Exception, match="not the assistant"):
        chat_model(served).invoke(
            [("user", PROMPT)],
            extra_body={"continue_final_message": True, "add_generation_prompt": False},
        )
