"""PostgreSQL and Redis for one machine, and the runner of the whole stack.

Nothing here imports Django's settings: this package makes the environment that they are read from.
"""
