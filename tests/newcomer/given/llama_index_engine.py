"""An index and a model."""

from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.schema import TextNode

nodes = [TextNode(id_=one, text=one) for one in ("red fox", "blue whale", "grey cat")]
index = VectorStoreIndex(nodes, embed_model=MockEmbedding(8))
llm = MockLLM(max_tokens=32)
