"""Bugs in KNN-LM's neighbours, searches and cache, and in what scans share with them."""

from bug import Bug

KNN = "ralmspec_plugins/knn"
RETRIEVAL = "ralmspec_plugins/retrieval"
NEIGHBOURS = "tests/knn/test_neighbours.py"
EXACT = "tests/knn/test_exact.py"
APPROXIMATE = "tests/knn/test_approximate.py"
CACHE = "tests/knn/test_cache.py"

BUGS_KNN_SEARCH = (
    Bug(
        "neighbours become a tuple of hits",
        "ralmspec_plugins/records.py",
        'return hits if getattr(hits, "immutable", False) else tuple(hits)',
        "return tuple(hits)",
        NEIGHBOURS,
    ),
    Bug(
        "neighbours are equal whatever their distances",
        f"{KNN}/neighbours.py",
        "and np.array_equal(self.distances, other.distances)",
        "",
        NEIGHBOURS,
    ),
    Bug(
        "a slice of neighbours holds all of them",
        f"{KNN}/neighbours.py",
        "return type(self)(ids.copy(), values.copy(), distances.copy())",
        "return type(self)(ids, values, distances)",
        NEIGHBOURS,
    ),
    Bug(
        "equally near entries come in any order",
        f"{KNN}/search_keys.py",
        "best = best_first(scores, ids, k)",
        "best = best_first(scores, -ids, k)",
        EXACT,
    ),
    Bug(
        "a kernel's error over keys is taken for smaller than it is",
        f"{KNN}/search_keys.py",
        "self.largest_norm, norm_of(query))",
        "0.0, 0.1 * norm_of(query))",
        EXACT,
    ),
    Bug(
        "threads share the buffer that keys are widened into",
        f"{KNN}/search_keys.py",
        "self._buffers = threading.local()",
        "self._buffers = threading.Event()",
        EXACT,
    ),
    Bug(
        "a key's sign is lost when it is widened",
        f"{KNN}/search_widening.py",
        "np.uint32(0x8FFFE000)",
        "np.uint32(0x0FFFE000)",
        EXACT,
    ),
    Bug(
        "tiny keys are lost where a thread flushes them",
        f"{KNN}/search_widening.py",
        "if not (_SUBNORMAL * _SCALE)[0]:",
        "if not _SCALE:",
        EXACT,
    ),
    Bug(
        "the last rows that passed a bar are forgotten",
        f"{RETRIEVAL}/scan.py",
        "    waiting.share()\n    return shortlists",
        "    return shortlists",
        EXACT,
    ),
    Bug(
        "rows that passed are dealt to another query",
        f"{RETRIEVAL}/shortlist.py",
        "rows, fast = rows[order], fast[order]",
        "rows, fast = rows[order], fast[np.sort(order)]",
        EXACT,
    ),
    Bug(
        "a bar leaves no room for the kernel's error",
        f"{RETRIEVAL}/shortlist.py",
        "nominee_bound(float(kth), self._error)",
        "nominee_bound(float(kth), 0.0)",
        EXACT,
    ),
    Bug(
        "the cache ranks by its float32 products alone",
        f"{KNN}/cache.py",
        "scores = exact_scores(keys[near], hidden, Metric.L2)",
        "scores = fast[near].astype(np.float64) - norm_of(hidden) ** 2",
        CACHE,
    ),
    Bug(
        "an entry that made room still counts as present",
        f"{KNN}/cache.py",
        "        self._slots = np.argsort(self._ids[: self._size])\n"
        "        self._sorted = self._ids[self._slots]\n",
        "        self._sorted = np.union1d(self._sorted, missing)\n"
        "        self._slots = np.arange(len(self._sorted)) % self._size\n",
        CACHE,
    ),
    Bug(
        "what is found again is no newer for it",
        f"{KNN}/cache.py",
        "self._brought[self._slots[self._sorted.searchsorted(ids[there])]] = when[there]",
        "pass",
        CACHE,
    ),
    Bug(
        "the newest make room",
        f"{KNN}/cache.py",
        "np.argpartition(self._brought[: self._size], displaced - 1)[:displaced]",
        "np.argpartition(-self._brought[: self._size], displaced - 1)[:displaced]",
        CACHE,
    ),
    Bug(
        "what waits is taken in from the oldest on",
        f"{KNN}/cache.py",
        "self._entries(self._waiting.pop())",
        "self._entries(self._waiting.popleft())",
        CACHE,
    ),
    Bug(
        "only the last of what waits is taken in",
        f"{KNN}/cache.py",
        "while self._waiting and len(known) < self.capacity:",
        "while self._waiting and not parts:",
        CACHE,
    ),
    Bug(
        "a cache takes in what nobody asks for",
        f"{KNN}/cache.py",
        "            self._waiting.append(ids)\n",
        "            self._waiting.append(ids)\n            self._take_in()\n",
        CACHE,
    ),
    Bug(
        "of many searches that wait the oldest is lost",
        f"{KNN}/cache.py",
        "                self._take_in()\n            self._waiting.append(ids)\n",
        "                self._waiting.popleft()\n            self._waiting.append(ids)\n",
        CACHE,
    ),
    Bug(
        "a cache takes in what another datastore found",
        f"{KNN}/cache.py",
        "if len(ids) and not 0 <= ids.min()",
        "if len(ids) < 0 and not 0 <= ids.min()",
        CACHE,
    ),
    Bug(
        "a tuned index keeps its signature",
        f"{KNN}/approximate.py",
        "recipe.tuning(self.built.index)",
        "*(getattr(recipe, name) for name in recipe.tuned)",
        APPROXIMATE,
    ),
    Bug(
        "an index is tuned as if it were another",
        f"{KNN}/approximate_index.py",
        "if field.name not in recipe.tuned and was != wanted:",
        "if field.name in recipe.tuned and was != was:",
        APPROXIMATE,
    ),
    Bug(
        "the farthest neighbours are followed first",
        f"{KNN}/cache.py",
        "self._datastore.following(ids[:followed], self.following)",
        "self._datastore.following(ids[::-1][:followed], self.following)",
        CACHE,
    ),
    Bug(
        "an entry that is neighbour and follower is in the cache twice",
        f"{KNN}/cache.py",
        "behind[~_among(np.sort(ids), behind)]",
        "behind",
        CACHE,
    ),
    Bug(
        "an entry that FAISS did not find is a neighbour",
        f"{KNN}/approximate.py",
        "there = found >= 0  #",
        "there = found >= -1  #",
        APPROXIMATE,
    ),
    Bug(
        "a graph is searched less far than is looked for",
        "ralmspec_plugins/retrieval/faiss_queries.py",
        "candidates = max(self.index.hnsw.efSearch, count)",
        "candidates = self.index.hnsw.efSearch",
        APPROXIMATE,
    ),
    Bug(
        "candidates keep the index's distances",
        f"{KNN}/approximate.py",
        "        if self.rerank:\n",
        "        if not self._count:\n",
        APPROXIMATE,
    ),
    Bug(
        "an index of another datastore is used",
        f"{KNN}/approximate_files.py",
        "if belongs_to != datastore.signature:",
        "if not belongs_to:",
        APPROXIMATE,
    ),
    Bug(
        "an index learns from another sample each time",
        f"{KNN}/approximate_recipes.py",
        "np.random.default_rng(seed)",
        "np.random.default_rng()",
        APPROXIMATE,
    ),
    Bug(
        "a graph depends on the race of its threads",
        f"{KNN}/approximate_index.py",
        "faiss.omp_set_num_threads(threads)\n    try",
        "faiss.omp_set_num_threads(before)\n    try",
        APPROXIMATE,
    ),
)
