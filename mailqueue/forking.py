"""No fork while a thread is in the middle of something.

A lock that another thread holds at the moment of a fork stays locked in the child, where nobody will release it. A
worker's main process forks its pool, at its start and whenever one of the pool has died, and has threads that talk to
the broker all the time, through clients with locks of their own.
"""

import os
import threading

#: Whoever does anything in such a thread holds it meanwhile, and not for long: forks wait.
NO_FORK = threading.RLock()

os.register_at_fork(before=NO_FORK.acquire, after_in_parent=NO_FORK.release, after_in_child=NO_FORK.release)
