"""The secrets that a service needs and nobody has given: made once, then kept as files, one for each.

`python -m mailqueue.embedded.secrets FOLDER` completes a folder for docker-compose.yml, whose programs read all of
them by NAME_FILE: what the environment gives is written there, what it does not is made.
"""

import os
import secrets
import sys
from pathlib import Path
from urllib.parse import quote

from cryptography.fernet import Fernet

#: Made where they are not given.
GENERATED = {
    "SECRET_KEY": lambda: secrets.token_urlsafe(50),
    "JWT_SIGNING_KEY": lambda: secrets.token_urlsafe(50),
    "CREDENTIAL_KEYS": lambda: Fernet.generate_key().decode(),
    "ADMIN_PASSWORD": lambda: secrets.token_hex(8),
    "REDIS_PASSWORD": lambda: secrets.token_hex(16),
}
#: PostgreSQL, Redis and Grafana, which run as others, may read these by their group; the rest only the service.
_FOR_SERVERS = {"POSTGRES_PASSWORD", "REDIS_PASSWORD", "redis.conf", "ADMIN_PASSWORD"}


def kept(file: Path) -> str:
    """What the file says; made if there is none."""
    if not file.exists():
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write(file, GENERATED[file.name]())
    return file.read_text()


def write(file: Path, text: str, mode: int = 0o600) -> None:
    """Whole or not at all."""
    unfinished = file.with_suffix(".new")
    unfinished.unlink(missing_ok=True)
    unfinished.touch(mode=0o600)
    unfinished.write_text(text)
    unfinished.chmod(mode)
    unfinished.replace(file)


def complete(folder: Path) -> dict[str, str]:
    """Each secret and address of docker-compose.yml, in the folder and as answer."""
    make = GENERATED | {"POSTGRES_PASSWORD": lambda: secrets.token_hex(16)}
    found = {
        name: os.environ.get(name, "").strip() or _of_before(folder / name) or make[name]() for name in make
    }
    found["DATABASE_URL"] = os.environ.get("DATABASE_URL", "").strip() or (
        f"postgres://mailqueue:{quote(found['POSTGRES_PASSWORD'], safe='')}@postgres:5432/mailqueue"
    )
    found["REDIS_URL"] = os.environ.get("REDIS_URL", "").strip() or (
        f"redis://:{quote(found['REDIS_PASSWORD'], safe='')}@redis:6379/0"
    )
    quoted = "".join(f"\\x{byte:02x}" for byte in found["REDIS_PASSWORD"].encode())
    found["redis.conf"] = f'requirepass "{quoted}"\n'
    for name, text in found.items():
        write(folder / name, text, 0o440 if name in _FOR_SERVERS else 0o400)
    return found


def _of_before(file: Path) -> str:
    return file.read_text().strip() if file.exists() else ""


if __name__ == "__main__":
    complete(Path(sys.argv[1]))
    sys.stdout.write(f"the secrets are in {sys.argv[1]}\n")
