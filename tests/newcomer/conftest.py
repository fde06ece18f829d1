"""What the tasks give and check runs in folders of its own."""

collect_ignore = ["given", "solutions", "checks", "run.py"]
