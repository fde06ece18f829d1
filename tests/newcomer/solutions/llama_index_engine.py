from given.llama_index_engine import index, llm
from llama_index_ralmspec import SpeculativeQueryEngine

engine = SpeculativeQueryEngine.from_index(index, llm=llm)
