# The first stage compiles; the second holds Python, the locked dependencies and the engine, no compiler.

FROM python:3.13-bookworm AS build
WORKDIR /build
COPY Makefile pyproject.toml setup.py MANIFEST.in README.md LICENSE tailrace_command.py ./
COPY .ci .ci
COPY requirements requirements
COPY engine engine
COPY tailrace tailrace
RUN make wheel install-runtime PREFIX=/opt/tailrace

FROM python:3.13-slim-bookworm
RUN useradd --system --uid 10001 --no-create-home --home-dir /nonexistent tailrace
COPY --from=build /opt/tailrace /opt/tailrace
ENV PATH=/opt/tailrace/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /etc/tailrace
USER 10001:10001
# /metrics, /livez, /readyz, /status
EXPOSE 9464
# SIGTERM drains: everything read is published and acknowledged within engine.drain_seconds.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:9464/livez', timeout=3)"]
# The kernel drops signals that process 1 has no handler for yet. Blocked ones wait for it.
ENTRYPOINT ["env", "--block-signal=TERM,INT,HUP", "tailrace"]
CMD ["run"]
