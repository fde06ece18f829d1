"""The new chain gives the old one's texts, alone and in a batch, and is ours."""

from answers.langchain_chain import fast
from given.langchain_chain import chain

questions = ["Which animal is red?", "Which one swims?", "And the cat?"]
expected = [chain.invoke(one) for one in questions]
assert fast is not chain, "fast is the old chain"
assert type(fast).__module__.startswith("langchain_ralmspec"), f"fast is a {type(fast)}"
assert [fast.invoke(one) for one in questions] == expected
assert fast.batch(questions) == expected
assert len(set(expected)) == 3
assert fast.stats.queries > 0, "nothing was searched through it"
