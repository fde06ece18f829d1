"""A chain of the usual form: retriever, prompt, model, parser."""

from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.language_models import LLM
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore


class Repeats(LLM):
    """Says what stands in its prompt."""

    @property
    def _llm_type(self):
        return "repeats"

    def _call(self, prompt, stop=None, run_manager=None, **kwargs):
        return f"I read: {prompt}"


def show(documents):
    return "\n".join(one.page_content for one in documents)


store = InMemoryVectorStore.from_texts(
    ["red fox", "blue whale", "grey cat"], DeterministicFakeEmbedding(size=16)
)
retriever = store.as_retriever(search_kwargs={"k": 2})
chain = (
    {"context": retriever | show, "question": RunnablePassthrough()}
    | PromptTemplate.from_template("{context}\n{question}")
    | Repeats()
    | StrOutputParser()
)
