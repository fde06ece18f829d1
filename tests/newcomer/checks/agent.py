"""The agent's messages are those of the plain one, and a call that was made early was used."""

from answers.agent import agent, middleware
from given.agent import model, tool
from langchain.agents import create_agent

asked = {"messages": [("user", "Which colour has the fox?")]}
expected = [one.content for one in create_agent(model, [tool]).invoke(asked)["messages"]]
found = [one.content for one in agent.invoke(asked)["messages"]]
assert found == expected
assert found[-1] == "They say: The fox is red."
assert middleware.stats.committed == 1, middleware.stats
