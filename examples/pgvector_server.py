"""An OpenAI-compatible server over documents in PostgreSQL with pgvector.

    pip install "ralmspec-plugins[serving,langchain]" langchain-postgres langchain-openai
    export OPENAI_API_KEY=...
    python examples/pgvector_server.py postgresql+psycopg://user@localhost/database my_documents

The store, the embeddings and the model are LangChain's own objects; only the chain is ours. Each
sentence of an answer is written with what was retrieved for it.
"""

import sys
from typing import Any

from langchain_core.vectorstores import VectorStore
from langchain_ralmspec import SpeculativeRAG

from ralmspec_plugins.serving import Limits, create_app


def application(store: VectorStore, llm: Any, *, name: str = "documents", **settings: Any) -> Any:
    """Return the application; requests share what they have found, and nothing across filters."""
    retriever = store.as_retriever(search_kwargs={"k": 4})
    rag = SpeculativeRAG.from_llm(llm, retriever, **settings)
    return create_app({name: rag}, limits=Limits(running=32))


def main() -> None:
    """Serve on http://127.0.0.1:8000/v1."""
    import uvicorn
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings
    from langchain_postgres import PGVector

    address, collection = sys.argv[1:]
    embeddings = OpenAIEmbeddings(model="text-embedding-3-small")
    store = PGVector(
        embeddings,
        connection=address,
        collection_name=collection,
        use_jsonb=True,
        async_mode=True,  # a server answers on an event loop
    )
    uvicorn.run(application(store, ChatOpenAI(model="gpt-4o-mini")))


if __name__ == "__main__":
    main()
