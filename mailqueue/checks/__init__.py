"""What an operator can get wrong in a way that starts well and goes wrong later; docs/checks.md explains every id.

Every command of manage.py tells of the times, `manage.py check --deploy` of all. Those that ask PostgreSQL and Redis
have a tag of their own, by which `prepare` asks them too.
"""

from django.core import checks

from mailqueue.checks import exposure, passwords, servers, timing

SERVERS = "servers"


def register() -> None:
    for check in timing.ALL:
        checks.register(check)
    for check in (*passwords.ALL, *exposure.ALL):
        checks.register(check, deploy=True)
    for check in servers.ALL:
        checks.register(check, SERVERS, deploy=True)
