"""Whether a guess by a query's text is worth making, and replacing by one by its encoding."""

from ralmspec_plugins.scheduling.cost_model import Costs


class GuessReplacement:
    """Decides for a policy that may replace an early guess with a second one.

    A query is encoded for `ahead_s` seconds, then searched for b(1) seconds. A segment on an early
    guess hides both, one on a guess by the encoding hides the search alone.
    """

    def __init__(self, costs: Costs, min_acceptance_rate: float) -> None:
        self._costs = costs
        self._least_right = min_acceptance_rate

    def worth_guessing_early(self, rate: float, second: float, ahead_s: float) -> bool:
        """Return whether early guesses save more time than stopping the wrong ones costs.

        Args:
            rate: how often they are right.
            second: how often the second ones are.
            ahead_s: by how many seconds they precede the second ones; may be infinite.
        """
        costs = self._costs
        hidden_s = ahead_s + (1 - second) * costs.curve(1)
        gain_s = rate * hidden_s - (1 - rate) * costs.stop_s
        return rate >= self._least_right and gain_s >= costs.WORTH_WRITING * (costs.step_s or 0.0)

    def worth_replacing(self, first: float, second: float, since_s: float, *, stops: bool) -> bool:
        """Return whether to continue with a second guess for a query, before its search returns.

        If the second is right, the search is hidden, except for the time until a segment stops. If
        the first is right, all that followed from it is done again after the search.

        Args:
            first: the probability that the first guess is right.
            second: the same of the second, which differs.
            since_s: seconds since a segment was begun with the first; 0 if none was.
            stops: whether a segment would have to be stopped.
        """
        costs = self._costs
        if costs.step_s is None or not costs.curve.points:
            return False
        search_s, stop_s = costs.curve(1), costs.stop_s if stops else 0.0
        gain_s = second * (search_s - stop_s) - first * (search_s + since_s + stop_s)
        return gain_s >= costs.WORTH_WRITING * costs.step_s
