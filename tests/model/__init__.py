"""The protocol's small cases, explored whole, with the project's own code in the middle.

`python -m tests.model --help` says how to run it; `world.py` says what is the project's code and
what is the model's.
"""
