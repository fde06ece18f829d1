"""Bugs of who works in which thread, of how often threads take turns, and of what costs what."""

from bug import Bug

THREADS = "tests/test_plain_threads.py tests/test_turns.py tests/test_schedule.py"
SCHEDULE = "tests/test_schedule.py"
CORE = "ralmspec_plugins"

BUGS_THREADS = (
    Bug(
        "what guessing takes is not counted where a worker guesses, too",
        "ralmspec_plugins/loop.py",
        "            self.policy.guessed(self.guesses.clock() - began_s)\n            if",
        "            if not self.guesses.slow:\n"
        "                self.policy.guessed(self.guesses.clock() - began_s)\n            if",
        "tests/test_schedule.py",
    ),
    Bug(
        "what others go on beside is done in the caller's thread",
        f"{CORE}/desk.py",
        "alone=only and not self._out and not self._left",
        "alone=True",
        THREADS,
    ),
    Bug(
        "what may be given up is done in the caller's thread",
        f"{CORE}/desk.py",
        "(job.setup.speculate and job.stoppable)",
        "(job.setup.speculate and False)",
        THREADS,
    ),
    Bug(
        "the switch interval is not put back",
        f"{CORE}/turns.py",
        "        if ours:\n",
        "        if not ours:\n",
        THREADS,
    ),
    Bug(
        "the switch interval is made longer",
        f"{CORE}/turns.py",
        "sys.setswitchinterval(min([_before_s, *_wanted]))",
        "sys.setswitchinterval(max([_before_s, *_wanted]))",
        THREADS,
    ),
    Bug(
        "a search that waits is taken for one that computes here",
        f"{CORE}/costs.py",
        "search.busy_s >= 0.5 * search.seconds > 0.0",
        "search.busy_s <= 0.5 * search.seconds",
        THREADS,
    ),
    Bug(
        "what the model computed is taken for the search's",
        f"{CORE}/costs.py",
        "if search.beside_s <= 0.05 * search.seconds:",
        "if search.beside_s >= 0.0:",
        THREADS,
    ),
    Bug(
        "what a guess takes is never counted",
        f"{CORE}/costs.py",
        "return self._guess_s <= max(self.QUICK_GUESS_S, self.guess_rate * most_s)",
        "return True",
        SCHEDULE,
    ),
    Bug(
        "what a guess took is never forgotten",
        f"{CORE}/costs.py",
        "        self._guess_s *= self.FADING\n",
        "",
        SCHEDULE,
    ),
    Bug(
        "guesses inside the loop are not timed",
        f"{CORE}/loop.py",
        "            self.policy.guessed(self.guesses.clock() - began_s)\n",
        "",
        SCHEDULE,
    ),
    Bug(
        "a stride is chosen only where a guess is at hand",
        f"{CORE}/rounds.py",
        "        self._renew(view)  # a guess",
        "        # a guess",
        "tests/test_loop.py",
    ),
    Bug(
        "a step that begins with a search is not beside it",
        f"{CORE}/policies.py",
        "if not beside and (view.searching or self._is_due(view)):",
        "if not beside and view.searching:",
        SCHEDULE,
    ),
)
