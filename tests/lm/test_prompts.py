"""How passages and prompts become tokens, and what happens when they are too many."""

import pytest
from transformers import PreTrainedModel

from ralmspec_plugins.errors import ConfigError, ContextOverflowError, InputError, ModelError
from ralmspec_plugins.lm.huggingface import HuggingFaceLM
from ralmspec_plugins.lm.prompts import PassageTemplate, prompt_tokens
from ralmspec_plugins.protocols import Progress
from ralmspec_plugins.testing.models import tiny_gpt2, tiny_llama, tiny_tokenizer
from ralmspec_plugins.types import Passage, Request
from tests.lm.reference import Tokenizer

SHIP = Passage("1", "A ship.", "Sea")
CHAT = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</{{ m['role'] }}>"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def chat_tokenizer() -> Tokenizer:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT
    return tokenizer


def _parts(lm: HuggingFaceLM, prompt: str, passages: list[Passage]) -> tuple[str, str]:
    lineage = lm._lineage(lm.begin(Request(prompt=prompt)).placed(passages))
    decode = lm.tokenizer.decode
    return decode(list(lineage.prefix.tokens)), decode(list(lineage.prompt))


def test_passages_stand_before_the_prompt(llama: PreTrainedModel, tokenizer: Tokenizer) -> None:
    """Beginning-of-sequence, each passage with its title line, then the prompt as it is."""
    lm = HuggingFaceLM(llama, tokenizer)
    untitled = Passage("2", "No {title}.")

    assert _parts(lm, "Who?", [SHIP, untitled]) == ("<s>Sea\nA ship.\n\nNo {title}.\n\n", "Who?")
    assert _parts(lm, "Who?", []) == ("<s>", "Who?")
    bare = HuggingFaceLM(llama, tiny_tokenizer(bos=False))
    assert _parts(bare, "Who?", []) == ("", "Who?")


def test_a_passage_is_cut(llama: PreTrainedModel, tokenizer: Tokenizer) -> None:
    """Each passage is tokenised by itself and keeps its first tokens."""
    lm = HuggingFaceLM(llama, tokenizer, passage_tokens=5)
    lineage = lm._lineage(lm.begin(Request(prompt="Who?")).placed([SHIP, SHIP]))
    alone = tokenizer.encode("Sea\nA ship.\n\n", add_special_tokens=False)

    assert lineage.prefix.tokens == (tokenizer.bos_token_id, *alone[:5], *alone[:5])


def test_a_passage_cannot_speak_in_special_tokens(
    llama: PreTrainedModel, tokenizer: Tokenizer
) -> None:
    """`</s>` in a document is five characters; in the user's own prompt it is the token."""
    lm = HuggingFaceLM(llama, tokenizer)
    draft = lm.begin(Request(prompt="a</s>")).placed([Passage("1", "b</s>")])
    lineage = lm._lineage(draft)

    assert tokenizer.eos_token_id not in lineage.prefix.tokens
    assert tokenizer.decode(list(lineage.prefix.tokens)) == "<s>b</s>\n\n"
    assert lineage.prompt[-1] == tokenizer.eos_token_id


def test_templates_are_applied(llama: PreTrainedModel, tokenizer: Tokenizer) -> None:
    """Format strings or a function, for title, passage and prompt."""
    template = PassageTemplate(title="[{title}] ", passage="{text}|", prompt="Q: {prompt}\nA:")
    lm = HuggingFaceLM(llama, tokenizer, template=template)
    upper = HuggingFaceLM(llama, tokenizer, template=PassageTemplate(prompt=str.upper))

    assert _parts(lm, "Who?", [SHIP]) == ("<s>[Sea] A ship.|", "Q: Who?\nA:")
    assert _parts(upper, "Who?", []) == ("<s>", "WHO?")


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (PassageTemplate(chat="front"), ("<s>Sea\nA ship.\n\n", "<user>Who?</user><assistant>")),
        (
            PassageTemplate(chat="user"),
            ("<s><user>Sea\nA ship.\n\n", "Who?</user><assistant>"),
        ),
        (
            PassageTemplate(chat="system", system="Use this: "),
            (
                "<s><system>Use this: Sea\nA ship.\n\n",
                "</system><user>Who?</user><assistant>",
            ),
        ),
    ],
    ids=lambda value: getattr(value, "chat", ""),
)
def test_passages_in_a_chat(
    llama: PreTrainedModel,
    chat_tokenizer: Tokenizer,
    template: PassageTemplate,
    expected: tuple[str, str],
) -> None:
    """In front of everything, or in the system or user message; one beginning-of-sequence."""
    lm = HuggingFaceLM(llama, chat_tokenizer, template=template)

    assert _parts(lm, "Who?", [SHIP]) == expected


def test_a_chat_without_passages_is_the_tokenizers_own(chat_tokenizer: Tokenizer) -> None:
    """Head and prompt together are what `apply_chat_template` gives."""
    head, prompt = prompt_tokens(PassageTemplate(chat="front"), chat_tokenizer, "Who?")
    own = chat_tokenizer.apply_chat_template(
        [{"role": "user", "content": "Who?"}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,
    )

    assert list(head + prompt) == own


def test_a_chat_template_that_hides_the_passages_is_refused(tokenizer: Tokenizer) -> None:
    """No chat template at all, or one without a system message."""
    with pytest.raises(ModelError, match="none"):
        prompt_tokens(PassageTemplate(chat="user"), tokenizer, "Who?")
    silent = tiny_tokenizer()
    silent.chat_template = "{{ messages[-1]['content'] }}"
    with pytest.raises(ModelError, match="does not include the system message"):
        prompt_tokens(PassageTemplate(chat="system"), silent, "Who?")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": "Q: {question}"}, "prompt"),
        ({"passage": "nothing"}, "passage"),
        ({"title": "{0}"}, "title"),
        ({"chat": "assistant"}, "'front', 'system', 'user'"),
        ({"system": "Be brief."}, "chat"),
    ],
)
def test_a_template_that_loses_something_is_refused(settings: dict, message: str) -> None:
    """When it is made, not when it is used."""
    with pytest.raises(ConfigError, match=message):
        PassageTemplate(**settings)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_overflow_says_the_numbers(make: object, tokenizer: Tokenizer) -> None:
    """Before anything is computed; a text that just fits is written to its end."""
    lm = HuggingFaceLM(make(context=32), tokenizer)
    prompt = len(tokenizer.encode("The keeper", add_special_tokens=False))
    passage = Passage("1", "x " * 100)
    fits = 32 - prompt - 1
    draft = lm.begin(Request(prompt="The keeper", max_tokens=fits + 1))
    draft = lm.write(draft, [], fits, Progress())

    assert len(draft.tokens) == fits
    with pytest.raises(ContextOverflowError, match=rf"1 passage .* {fits + 1} text .* 33.* 32"):
        lm.write(draft, [], 1, Progress())
    lm.release(draft)
    with pytest.raises(ContextOverflowError, match="passage_tokens"):
        lm.write(lm.begin(Request(prompt="The keeper")), [passage], 1, Progress())
    assert len(lm.caches) == 1


def test_an_empty_prompt(llama: PreTrainedModel) -> None:
    """It is continued behind passages or a beginning-of-sequence, and refused behind nothing."""
    with_bos = HuggingFaceLM(llama, tiny_tokenizer())
    draft = with_bos.write(with_bos.begin(Request(prompt="")), [], 4, Progress())
    alone = HuggingFaceLM(llama, tiny_tokenizer(bos=False))
    behind = alone.write(alone.begin(Request(prompt="")), [SHIP], 4, Progress())

    assert len(draft.tokens) == len(behind.tokens) == 4
    with pytest.raises(InputError, match="empty"):
        alone.write(alone.begin(Request(prompt="")), [], 4, Progress())


def test_the_tail_is_text_without_broken_characters(
    llama: PreTrainedModel, tokenizer: Tokenizer
) -> None:
    """The last tokens of prompt and text together, whatever character they start in."""
    lm = HuggingFaceLM(llama, tokenizer)
    draft = lm.begin(Request(prompt="storm 🌋"))

    assert lm.tail(draft, 100) == "storm 🌋"
    assert lm.tail(draft, 2) == ""
    written = lm.write(draft, [SHIP], 4, Progress())
    assert tokenizer.decode([*draft.prompt_tokens, *written.tokens][-6:]).strip(
        "\ufffd"
    ) == lm.tail(written, 6)


@pytest.mark.parametrize("wrong", [{"passage_tokens": 0}, {"cache_bytes": -1}])
def test_settings_out_of_range_are_refused(
    llama: PreTrainedModel, tokenizer: Tokenizer, wrong: dict[str, int]
) -> None:
    """Each message names the setting."""
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        HuggingFaceLM(llama, tokenizer, **wrong)


def test_no_tokens_are_refused(llama: PreTrainedModel, tokenizer: Tokenizer) -> None:
    """A segment has a length."""
    lm = HuggingFaceLM(llama, tokenizer)
    with pytest.raises(ConfigError, match="got 0"):
        lm.write(lm.begin(Request(prompt="Who?")), [], 0, Progress())
