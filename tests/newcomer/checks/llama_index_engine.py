"""The new engine gives the host's responses: text, nodes and scores."""

from answers.llama_index_engine import engine
from given.llama_index_engine import index, llm

host = index.as_query_engine(llm=llm)
assert type(engine).__module__.startswith("llama_index_ralmspec"), f"engine is a {type(engine)}"
for question in ("Which animal is red?", "Which one swims?"):
    ours, theirs = engine.query(question), host.query(question)
    assert str(ours) == str(theirs) != ""
    assert [(one.node_id, one.score) for one in ours.source_nodes] == [
        (one.node_id, one.score) for one in theirs.source_nodes
    ]
    assert ours.source_nodes
