"""The bugs that are planted in the datastore of KNN-LM, its building, and its keys."""

from bug import Bug

KNN = "ralmspec_plugins/knn"
BUILDING = "tests/knn/test_building.py"
STORE = "tests/knn/test_datastore.py"
HIDDEN = "tests/knn/test_hidden.py"
NAMES = "tests/knn/test_fingerprints.py"

BUGS_KNN_DATASTORE = (
    Bug(
        "following entries are another document's",
        f"{KNN}/datastore.py",
        "self.document_ends[document])",
        "len(self))",
        STORE,
    ),
    Bug(
        "a document's first entry counts to the one before",
        f"{KNN}/datastore.py",
        'known, side="right")',
        'known, side="left")',
        STORE,
    ),
    Bug(
        "following entries come twice",
        f"{KNN}/datastore.py",
        "        starts[1:] = np.maximum(starts[1:], stops[:-1])\n",
        "",
        STORE,
    ),
    Bug(
        "a key of infinity is stored",
        f"{KNN}/building.py",
        "        check_keys(keys, first)\n",
        "",
        BUILDING,
    ),
    Bug(
        "a datastore of other tokens fits",
        f"{KNN}/datastore_info.py",
        "if got and expected and got != expected",
        "if got and expected and not got",
        STORE,
    ),
    Bug(
        "a datastore with values beyond the vocabulary opens",
        f"{KNN}/datastore.py",
        "if least < 0 or greatest >= about.vocabulary:",
        "if least < 0:",
        STORE,
    ),
    Bug(
        "a key stands beside its own token",
        f"{KNN}/building_windows.py",
        "tokens[done + 1 : stop + 1]",
        "tokens[done:stop]",
        BUILDING,
    ),
    Bug(
        "a long text's tokens come twice",
        f"{KNN}/building_windows.py",
        "        done = stop\n",
        "        done = min(stop, start + stride)\n",
        BUILDING,
    ),
    Bug(
        "windows have nothing to look back at",
        f"{KNN}/building_windows.py",
        "        yield Window(tokens[start:stop],",
        "        yield Window(tokens[done:stop],",
        BUILDING,
    ),
    Bug(
        "a window's first keys are taken for its last",
        f"{KNN}/building_keys.py",
        "state[len(window.tokens) - len(window.following) : len(window.tokens)]",
        "state[: len(window.following)]",
        BUILDING,
    ),
    Bug(
        "keys of padding are taken",
        f"{KNN}/building_keys.py",
        "state[len(window.tokens) - len(window.following) : len(window.tokens)]",
        "state[longest - len(window.following) :]",
        BUILDING,
    ),
    Bug(
        "keys stay in the order of their windows' lengths",
        f"{KNN}/building_keys.py",
        "[parts[row] for row in range(len(windows))]",
        "list(parts.values())",
        BUILDING,
    ),
    Bug(
        "a portion depends on where a build was stopped",
        f"{KNN}/building.py",
        "enumerate(portions(windows, self._recipe.tokens)):",
        "enumerate(portions(windows, self._recipe.tokens - (bool(recorded) and 9))):",
        BUILDING,
    ),
    Bug(
        "texts are read for special tokens",
        f"{KNN}/building_windows.py",
        "encode(self.tokenizer, text, literal=True)",
        "encode(self.tokenizer, text)",
        BUILDING,
    ),
    Bug(
        "a datastore goes on with other texts",
        f"{KNN}/building_files.py",
        "if digest_of(windows) != portion.windows:",
        "if False:",
        BUILDING,
    ),
    Bug(
        "a datastore goes on over damaged files",
        f"{KNN}/building_files.py",
        "if (digest(keys), digest(values)) != (portion.keys, portion.values):",
        "if False:",
        BUILDING,
    ),
    Bug(
        "a datastore goes on with another model",
        f"{KNN}/building.py",
        '            "model": self._model,\n            **self.cutting',
        "            **self.cutting",
        BUILDING,
    ),
    Bug(
        "a resumed datastore forgets where documents ended",
        f"{KNN}/building.py",
        "                if window.ends_document:",
        '                if window.ends_document and stage == "encoding":',
        BUILDING,
    ),
    Bug(
        "a portion of keys counts before it is on the disk",
        f"{KNN}/building.py",
        "        self._journal.add(self._files.append(windows, keys))\n",
        "        held = GrowingStore.append\n"
        "        fsync, os.fsync = os.fsync, lambda _: None\n"
        "        batch = held(self._files, windows, keys)\n"
        "        os.fsync = fsync\n"
        "        self._journal.add(batch)\n",
        BUILDING,
    ),
    Bug(
        "all keys are held in memory",
        f"{KNN}/building.py",
        "        check_keys(keys, first)\n",
        "        check_keys(keys, first)\n"
        '        self.__dict__.setdefault("_all", []).append(keys)\n',
        BUILDING,
    ),
    Bug(
        "all texts are held in memory",
        f"{KNN}/building.py",
        "self._recipe.cutting.windows(texts)",
        "list(self._recipe.cutting.windows(texts))",
        BUILDING,
    ),
    Bug(
        "the first layer is tapped",
        f"{KNN}/hidden.py",
        "return stacks[0][-1]",
        "return stacks[0][0]",
        HIDDEN,
    ),
    Bug(
        "OPT's flattened states stay flat",
        f"{KNN}/hidden.py",
        "states.dim() == 2:",
        "states.dim() == 9:",
        HIDDEN,
    ),
    Bug(
        "a tap shows another thread's pass",
        f"{KNN}/hidden.py",
        "        self._of_thread = threading.local()",
        '        self._of_thread = type("Shared", (), {})()',
        HIDDEN,
    ),
    Bug(
        "a dropped tap stays in the model",
        f"{KNN}/hidden.py",
        "            weakref.finalize(self, handle.remove)",
        "            del handle",
        HIDDEN,
    ),
    Bug(
        "an old hidden state is given again",
        f"{KNN}/hidden.py",
        '__dict__.pop("states", None)',
        '__dict__.get("states")',
        HIDDEN,
    ),
    Bug(
        "padding gives a tokenizer another name",
        f"{KNN}/fingerprints.py",
        '        content.pop("padding", None)\n',
        "",
        NAMES,
    ),
    Bug(
        "only a model's shapes are in its name",
        f"{KNN}/fingerprints.py",
        "        if weight.is_meta:",
        "        if weight.shape:",
        NAMES,
    ),
    Bug(
        "a model has another name in bfloat16",
        f"{KNN}/fingerprints.py",
        ".bfloat16().float()",
        ".float()",
        NAMES,
    ),
    Bug(
        "a datastore's place is cleared of whatever is in it",
        "ralmspec_plugins/knn/building.py",
        "    if others:\n",
        "    if not place:\n",
        "tests/knn/test_building.py",
    ),
)
