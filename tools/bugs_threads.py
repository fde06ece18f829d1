"""Bugs of who works in which thread, and of how often threads take turns."""

from bug import Bug

THREADS = "tests/test_plain_threads.py tests/test_turns.py tests/test_schedule.py"
CORE = "ralmspec_plugins"

BUGS_THREADS = (
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
)
