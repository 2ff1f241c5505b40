FROM python:3.12-slim AS build
# Debian removes old versions, so a pinned one would break the build.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY native native
COPY src src
# Without demo, the image has no weights, and the cache volume keeps those that are downloaded.
ARG EXTRAS=demo,serve
RUN python -m venv /opt/gemwright \
    && /opt/gemwright/bin/pip install --no-cache-dir ".[${EXTRAS}]"

FROM python:3.12-slim
COPY --from=build /opt/gemwright /opt/gemwright
ENV PATH=/opt/gemwright/bin:$PATH \
    XDG_CACHE_HOME=/cache \
    HF_HOME=/cache/huggingface \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
RUN useradd --create-home --uid 1000 gemwright && install -d -m 0777 /cache
USER 1000
VOLUME /cache
EXPOSE 8000
STOPSIGNAL SIGTERM
ENTRYPOINT ["gemwright"]
CMD ["--help"]
