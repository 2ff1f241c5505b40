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
RUN python -m venv /opt/gemwright \
    && /opt/gemwright/bin/pip install --no-cache-dir '.[demo]'

FROM python:3.12-slim
COPY --from=build /opt/gemwright /opt/gemwright
ENV PATH=/opt/gemwright/bin:$PATH XDG_CACHE_HOME=/cache HF_HOME=/cache/huggingface
RUN useradd --create-home --uid 1000 gemwright && install -d -m 0777 /cache
USER 1000
VOLUME /cache
ENTRYPOINT ["gemwright"]
CMD ["--help"]
