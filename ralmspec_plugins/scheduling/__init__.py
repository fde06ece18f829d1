"""When to guess, how far to run ahead and when to search: schedules, policies and their costs."""
