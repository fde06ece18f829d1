"""One pass over a token tree, and the walk down the drafts that the model itself chooses."""

from typing import Final

from torch import Tensor

from ralmspec_plugins.decoding.token_tree import ROOT, TokenTree
from ralmspec_plugins.lm.kv_cache import ModelRunner, Run

_FIRST: Final = 0  # the row of the text's last token; draft n stands in row n + 1


class TreePass:
    """A pass over a text's last token and drafts behind it, while it is being walked down.

    The walk is driven by what is chosen: whoever chooses a token from the logits of
    `here` tells it to `follow`, which says whether it was drafted. What was not
    followed is forgotten at `finish`, which is called once in every case.
    """

    def __init__(self, runner: ModelRunner, run: Run, last: int, tree: TokenTree) -> None:
        """Read the text's last token, which the run does not hold yet, and the drafts."""
        self.tree = tree
        self._runner = runner
        self._run = run
        parents = [ROOT, *(parent + 1 for parent in tree.parents)]
        self.rows = runner.read_rows(run, (last, *tree.tokens), parents)
        self._path = [_FIRST]

    @property
    def accepted(self) -> tuple[int, ...]:
        """The places in the tree of the drafts that were followed, in order."""
        return tuple(row - 1 for row in self._path[1:])

    @property
    def length(self) -> int:
        """The tokens of the text that are read, those that the run held before among them."""
        return len(self._run.tokens) + len(self._path)

    @property
    def here(self) -> Tensor:
        """The logits behind the last token that was followed: [1, vocabulary], float32."""
        row = self._path[-1]
        return self.rows.logits[row : row + 1]

    def follow(self, token: int) -> bool:
        """Go on to a draft, if this token was drafted here."""
        child = self.tree.child(self._path[-1] - 1, token)
        if child is None:
            return False
        self._path.append(child + 1)
        return True

    def finish(self) -> None:
        """Keep in the cache what was followed, and nothing else."""
        self._runner.keep_rows(self._run, self.rows, self._path)
