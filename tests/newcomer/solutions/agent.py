from given.agent import cheap_guess, model, tool
from langchain.agents import create_agent
from langchain_ralmspec import SpeculativeTools

middleware = SpeculativeTools(lambda call: cheap_guess(call["args"]["query"]))
agent = create_agent(model, [tool], middleware=[middleware])
