"""The bound is near 1, and the verdict follows from it; 1 itself is that of times of zero."""

from answers.does_not_pay import at_best, pays

assert pays is False, f"pays is {pays}"
assert 1.0 < at_best < 1.05, f"at best {at_best}"
