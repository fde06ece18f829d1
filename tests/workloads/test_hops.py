"""How models ask in their own text: tags, thoughts, follow-up questions; what is put in."""

import pytest

from ralmspec_plugins.errors import ConfigError
from ralmspec_plugins.types import Passage
from ralmspec_plugins.workloads import (
    FollowUps,
    HopFormat,
    SearchTags,
    Thoughts,
    Turn,
    passages_say_the_same,
    says_the_same,
)

PASSAGES = [Passage("p1", "It stands\nin Bex.", "Tower"), Passage("p2", "Mo built it.")]


@pytest.mark.parametrize(
    ("text", "stopped_by", "query"),
    [
        ("I need <search> who built it ", "</search>", "who built it"),
        ("<search>a <search>b", "</search>", "a <search>b"),
        ("<answer>x <search>who", "</search>", "who"),
        ("<search></search>", "</answer>", None),
        ("<search>", "</search>", ""),  # an empty query goes on
        ("nothing was opened", "</search>", ""),
        ("<search>who built", "", None),  # cut off: it was not closed
        ("<search>who\n\n", "\n\n", None),  # the request's own stop string
        ("<search>who built", None, "who built"),  # nobody says what stopped it
        ("<search>who</search><answer>Mo", None, None),
        ("no tag at all", None, None),
    ],
)
def test_a_tag_that_is_closed_asks(text: str, stopped_by: str | None, query: str | None) -> None:
    """What is between the tags; nothing where the tag was not closed."""
    turn = SearchTags().read(text, stopped_by, finished=True)

    assert turn.query == query
    assert turn.text.startswith(text)


def test_a_closing_tag_is_put_back() -> None:
    """The model reads its own tag again; a stop string of the request it does not."""
    read = SearchTags().read

    assert read("<search>q", "</search>", finished=True).text == "<search>q</search>"
    assert read("<answer>Mo", "</answer>", finished=True) == Turn("<answer>Mo</answer>", None)
    assert read("<answer>Mo", None, finished=True).text == "<answer>Mo</answer>"
    assert read("<search>q", "\n", finished=True) == Turn("<search>q", None)


def test_tags_can_have_other_names() -> None:
    """Each name makes a tag of its own."""
    tags = SearchTags(search="tool", answer_tag="final", information="result")

    assert tags.stop == ("</tool>", "</final>")
    assert tags.read("<tool>q", "</tool>", finished=True).query == "q"
    assert tags.block([]) == "\n\n<result></result>\n\n"
    assert tags.answer("<final> Mo </final>") == "Mo"
    with pytest.raises(ConfigError, match="different"):
        SearchTags(search="answer")


def test_passages_between_tags() -> None:
    """Worked: numbered, with their titles, as Search-R1 shows them."""
    expected = (
        "\n\n<information>Doc 1(Title: Tower) It stands\nin Bex.\n"
        "Doc 2(Title: ) Mo built it.</information>\n\n"
    )

    assert expected == SearchTags().block(PASSAGES)


@pytest.mark.parametrize(
    ("text", "finished", "turn"),
    [
        (" It is 3.5 m. Mo", False, Turn(" It is 3.5 m.", "It is 3.5 m.")),
        (" So the answer is: Mo. And", False, Turn(" So the answer is: Mo.", None)),
        (" It ends here.", True, Turn(" It ends here.", None)),
        (" It is long", False, Turn(" It is long", "It is long")),
    ],
)
def test_each_thought_is_a_query(text: str, finished: bool, turn: Turn) -> None:
    """But the one that answers, and the one behind which nothing can come."""
    assert turn == Thoughts().read(text, "", finished=finished)


@pytest.mark.parametrize(
    ("text", "stopped_by", "query"),
    [
        ("Follow up: Who? \n", "Intermediate answer:", "Who?"),
        ("Mo.\nFollow up: a\nFollow up: b", "#", "b"),
        ("Follow up: Who", "", "Who"),  # as in the reference: whatever ended it
        ("Follow up: Who", "\n\n", None),  # but for a stop string of the request
        ("Follow up:", None, ""),
        ("So the final answer is: Mo", "", None),
        ("Follow up: x. So the final answer is: Mo", "", None),
    ],
)
def test_a_follow_up_asks(text: str, stopped_by: str | None, query: str | None) -> None:
    """What stands behind the last one, unless the answer does."""
    assert FollowUps().read(text, stopped_by, finished=True) == Turn(text, query)


def test_passages_behind_a_follow_up() -> None:
    """Worked: a line each, and the beginning of what the model is to write."""
    expected = "\nContext1: Tower It stands in Bex.\nContext2: Mo built it.\nIntermediate answer:"

    assert expected == FollowUps().block(PASSAGES)
    assert Thoughts().block(PASSAGES) == ""


@pytest.mark.parametrize(
    ("hops", "text", "answer"),
    [
        (SearchTags(), "<answer>No</answer> <answer> Mo </answer>", "Mo"),
        (SearchTags(), "<answer>Mo", "Mo"),
        (SearchTags(), "Mo", None),
        (Thoughts(), "He. So the answer is: Mo.", "Mo"),
        (Thoughts(), "Mo.", None),
        (FollowUps(), "So the final answer is: Mo.", "Mo"),
        (FollowUps(), "Follow up: who?", None),
    ],
)
def test_the_final_answer_is_found(hops: HopFormat, text: str, answer: str | None) -> None:
    """Where there is one."""
    assert hops.answer(text) == answer


@pytest.mark.parametrize(
    ("guess", "real", "same"),
    [
        ("The Eiffel Tower, in Paris", "eiffel tower in paris", True),  # one holds the other
        ("", "eiffel tower", False),
        ("I cannot find this tower", "I found this tower", False),  # a refusal
        ("Built in 1887 by Eiffel", "Built in 1889 by Eiffel", False),  # a number is missing
        ("Part 3 of a long red tale told", "Part 4 of a long red tale told", True),  # one digit
        ("Mo", "Mo", True),
        ("Mo Bex", "Mo", False),  # under five characters: equal words
        ("M\u00f6!", "mo", True),
        ("alpha beta gamma delta", "alpha beta gamma epsilon", True),  # 3 of 5: 0.6
        ("alpha beta gamma delta", "alpha beta rho sigma", False),  # 2 of 6
        # 8 of 11 words: 73 %
        ("a1x b1x c1x d1x e1x f1x g1x h1x", "a1x b1x c1x d1x e1x f1x g1x h1x i1x j1x k1x", True),
        ("a1x b1x c1x d1x e1x f1x g1x zzz", "a1x b1x c1x d1x e1x f1x g1x h1x i1x j1x k1x", True),
        ("a1x b1x c1x zz yy xx ww", "a1x b1x c1x d1x e1x", False),
    ],
)
def test_spechops_constants(guess: str, real: str, same: bool) -> None:
    """Refusals, numbers, substrings, coverage of 72 %, Jaccard of 0.55, short answers."""
    assert says_the_same(guess, real) is same


def test_passages_are_held_against_each_other_as_one_text() -> None:
    """Titles take part; nothing agrees with nothing alone."""
    assert passages_say_the_same(PASSAGES, list(reversed(PASSAGES)))
    assert not passages_say_the_same([Passage("x", "A fish", "Whale")], PASSAGES)
    assert not passages_say_the_same([], PASSAGES)
    assert passages_say_the_same([], [])
