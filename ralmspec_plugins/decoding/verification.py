"""One pass over a token tree, and the path of drafts that the model itself chooses."""

from typing import Final

from torch import Tensor

from ralmspec_plugins.decoding.token_tree import ROOT, TokenTree
from ralmspec_plugins.lm.kv_cache import ModelRunner, Run

_FIRST: Final = 0  # the row of the text's last token; draft n is in row n + 1


class TreePass:
    """A pass over a text's last token and the drafts after it, and the path followed so far.

    The caller chooses a token from the logits of `here` and passes it to `follow`, which returns
    whether the token was drafted. `finish`, to be called exactly once, discards all rows
    that were not followed.
    """

    def __init__(self, runner: ModelRunner, run: Run, last: int, tree: TokenTree) -> None:
        """Read the text's last token, which the run has not read yet, and the drafts."""
        self.tree = tree
        self._runner = runner
        self._run = run
        parents = [ROOT, *(parent + 1 for parent in tree.parents)]
        self.rows = runner.read_rows(run, (last, *tree.tokens), parents)
        self._path = [_FIRST]

    @property
    def accepted(self) -> tuple[int, ...]:
        """The indices in the tree of the followed drafts, in order."""
        return tuple(row - 1 for row in self._path[1:])

    @property
    def length(self) -> int:
        """The number of tokens of the text read so far, those read before the pass included."""
        return len(self._run.tokens) + len(self._path)

    @property
    def here(self) -> Tensor:
        """The logits after the last followed token: [1, vocabulary], float32."""
        row = self._path[-1]
        return self.rows.logits[row : row + 1]

    def follow(self, token: int) -> bool:
        """Follow a draft of this token; return whether there is one here."""
        child = self.tree.child(self._path[-1] - 1, token)
        if child is None:
            return False
        self._path.append(child + 1)
        return True

    def finish(self) -> None:
        """Keep only the followed tokens in the cache."""
        self._runner.keep_rows(self._run, self.rows, self._path)
