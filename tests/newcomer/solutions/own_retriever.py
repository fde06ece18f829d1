from given.own_retriever import TEXTS, find, workload

from ralmspec_plugins import Engine, Hit, Passage


class Store:
    def search(self, queries):
        return [[Hit(Passage(one, TEXTS[one])) for one in find(query.text)] for query in queries]


def answer(prompt):
    with Engine(workload, Store()) as engine:
        return engine.run(prompt)
