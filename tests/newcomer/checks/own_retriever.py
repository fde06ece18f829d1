"""Texts and sources are right, and an engine made them."""

from answers.own_retriever import answer

found = answer("whale cat fox whale")
assert found.text == "blue whale\ngrey cat\nred fox\nblue whale", found.text
assert [hit.passage.id for hit in found.sources] == ["p1", "p2", "p0"]
assert found.stats.searches > 0
assert [span.kind for span in found.stats.timeline].count("extend") >= 4
