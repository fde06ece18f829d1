"""Speculative tools for LangChain's agents: the model runs while its tools run.

`SpeculativeTools` is a middleware for `create_agent()`.
"""

from ralmspec_plugins.errors import MissingExtraError

try:
    import langchain.agents as _agents  # noqa: F401 the rest of this package needs it
    from langgraph.runtime import RunControl as _RunControl  # noqa: F401 by which it knows a run
except ImportError as missing:
    raise MissingExtraError("langchain-agents", "langchain 1.3 or later") from missing

from langchain_ralmspec.agents.middleware import SpeculativeTools
from ralmspec_plugins.adapters.agent_limits import AgentStats

__all__ = ["AgentStats", "SpeculativeTools"]
