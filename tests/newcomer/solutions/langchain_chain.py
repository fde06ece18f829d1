from given.langchain_chain import chain
from langchain_ralmspec import speculate

fast = speculate(chain)
