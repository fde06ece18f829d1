"""A retrieval service in a process of its own, and the retriever that talks to it.

It holds passages and their vectors, searches them exactly, and answers when the given
time has passed since the request came: by sleeping, or by burning a core. Any number
of requests are served at once.
"""

import argparse
import base64
import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Hashable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import numpy as np

from ralmspec_plugins import Hit, Hits, Passage, Query
from ralmspec_plugins.protocols import PassageTable
from ralmspec_plugins.retrieval import NumpyFlat
from ralmspec_plugins.retrieval.dense import DenseCorpus


def packed(vectors: np.ndarray) -> str:
    """Write vectors as text."""
    return base64.b64encode(np.ascontiguousarray(vectors, dtype=np.float32)).decode()


def unpacked(text: str, dimension: int) -> np.ndarray:
    """Read vectors back.  # [n, dim]."""
    return np.frombuffer(base64.b64decode(text), dtype=np.float32).reshape(-1, dimension)


class RemoteStore:
    """Exact dense search over HTTP; queries are encoded here, passages come with vectors."""

    inline_encode = False

    def __init__(self, port: int, corpus: DenseCorpus, k: int = 1) -> None:
        """Talk to the service on this port; `corpus` only encodes and makes pool tables."""
        self.k = k
        self.signature: Hashable = ("remote", port, k)
        self._port = port
        self._corpus = corpus
        self._connections = threading.local()

    def encode(self, text: str) -> Query:
        """Encode one query."""
        return self._corpus.encode(text)

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        """Search in one round trip."""
        return self.search_wide(queries, self.k)

    def search_wide(self, queries: Sequence[Query], width: int) -> list[Hits]:
        """Search wider in one round trip."""
        vectors = packed(np.array([query.encoding for query in queries]))
        body = json.dumps({"vectors": vectors, "width": width})
        connection = self._connection()
        connection.request("POST", "/", body)
        answer = json.loads(connection.getresponse().read())
        return [self._hits(found) for found in answer]

    def table(self, capacity: int) -> PassageTable:
        """Make a pool's table."""
        return self._corpus.table(capacity)

    def _hits(self, found: dict[str, Any]) -> Hits:
        vectors = unpacked(found["vectors"], self._corpus.dimension)
        return tuple(
            Hit(Passage(row["id"], row["text"], row["title"]), row["score"], features=vector)
            for row, vector in zip(found["hits"], vectors, strict=True)
        )

    def _connection(self) -> http.client.HTTPConnection:
        """Keep one connection a thread."""
        if not hasattr(self._connections, "open"):
            self._connections.open = http.client.HTTPConnection("127.0.0.1", self._port)
        connection: http.client.HTTPConnection = self._connections.open
        return connection


class Service:
    """Starts the service in another process and ends it."""

    def __init__(self, data: Path, *, answer_s: float, burn: bool) -> None:
        """Serve the passages of this folder."""
        command = [sys.executable, __file__, str(data), "--answer-s", str(answer_s)]
        self._process = subprocess.Popen(
            [*command, *(["--burn"] if burn else [])], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def __enter__(self) -> Self:
        """Use as a context manager."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait()


def load_passages(data: Path) -> tuple[list[Passage], np.ndarray]:
    """Load the real passages and their MiniLM vectors."""
    lines = (data / "wikipedia_passages.jsonl").read_text().splitlines()
    passages = [Passage(row["id"], row["text"], row["title"]) for row in map(json.loads, lines)]
    vectors = np.load(data / "trace_vectors.npz", allow_pickle=False)["docs"].astype(np.float32)
    return passages, vectors


def serve(data: Path, answer_s: float, *, burn: bool) -> None:
    """Answer until the process is ended."""
    retriever = NumpyFlat(DenseCorpus(*load_passages(data)))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one packet, or the client waits for the second

        def do_POST(self) -> None:
            until = time.perf_counter() + answer_s
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            vectors = unpacked(asked["vectors"], retriever.corpus.dimension)
            queries = [Query(str(n), vector) for n, vector in enumerate(vectors)]
            found = retriever.search_wide(queries, asked["width"])
            body = json.dumps([_row(hits) for hits in found]).encode()
            while burn and time.perf_counter() < until:
                retriever.search(queries)
            time.sleep(max(0.0, until - time.perf_counter()))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            self.wfile.flush()

        def log_message(self, *_: object) -> None:
            """Stay silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()


def _row(hits: Hits) -> dict[str, Any]:
    return {
        "hits": [
            {"id": h.passage.id, "text": h.passage.text, "title": h.passage.title, "score": h.score}
            for h in hits
        ],
        "vectors": packed(np.array([hit.features for hit in hits])),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--answer-s", type=float, required=True)
    parser.add_argument("--burn", action="store_true")
    options = parser.parse_args()
    serve(options.data, options.answer_s, burn=options.burn)
