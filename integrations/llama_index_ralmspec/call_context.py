"""What one request was called with: `Request.context` of LlamaIndex's requests."""

from copy import copy
from dataclasses import dataclass, field

from llama_index.core.schema import QueryBundle

from llama_index_ralmspec.recording import Recording, Recordings


@dataclass(frozen=True, slots=True, eq=False)
class HostContext:
    """A request's query as its caller gave it, and the calls of the host that failed for it."""

    bundle: QueryBundle  # a copy of its own: hosts write the embedding into it
    asynchronous: bool = False
    streaming: bool = False  # as the response synthesizer was told when the request began
    failures: list[tuple[BaseException, Recording]] = field(default_factory=list)
    recordings: Recordings = field(default_factory=Recordings)  # of this request's calls

    def recording(self) -> Recording:
        """Begin the recording of one call of the host for this request."""
        return self.recordings.begun()

    def query(self) -> QueryBundle:
        """Give a copy of the query, for one call of the host."""
        return copied(self.bundle)

    def ended(self) -> None:
        """End the recordings of this request: what was not told by now never is."""
        self.recordings.end()

    def failed(self, error: BaseException, recording: Recording) -> None:
        """Note what a call raised: if it counts, what it told does too."""
        self.failures.append((error, recording))

    def recording_of(self, error: BaseException) -> Recording | None:
        """Give the recording of the call that raised this error."""
        return next((made for raised, made in self.failures if raised is error), None)


def copied(bundle: QueryBundle) -> QueryBundle:
    """Copy a query, its lists too; what else its class or its caller put on it goes with it."""
    made = copy(bundle)
    strings, vector = bundle.custom_embedding_strs, bundle.embedding
    made.custom_embedding_strs = None if strings is None else list(strings)
    made.embedding = None if vector is None else list(vector)
    return made
