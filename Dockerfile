# TorchServe, the model's worker and both apps, for the CPU (x86-64 or aarch64). docs/docker.md explains its use.
FROM python:3.11-slim-bookworm AS build
# hadolint ignore=DL3008  # Debian's stable release changes its packages for security only
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential \
    && rm -rf /var/lib/apt/lists/*
# An image runs on other machines than the one that builds it, so llama.cpp may not use all that this processor can:
# on x86-64 it needs AVX2 (2013 and later). For this machine alone: --build-arg CMAKE_ARGS=-DGGML_NATIVE=ON
ARG CMAKE_ARGS=-DGGML_NATIVE=OFF
COPY requirements.txt /
RUN python3 -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --requirement /requirements.txt

FROM python:3.11-slim-bookworm
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin llama
COPY --from=build /opt/venv /opt/venv
WORKDIR /app
COPY . .
# Files of a checkout with a strict umask must be readable here. /state is the home of all that the programs write, and
# the folders of a new volume get the owner of the image's folders.
RUN chmod -R a+rX . \
    && sed -i 's|^model_store=.*|model_store=/app/model_store|' config.properties \
    && install --directory --owner=llama --group=llama --mode=0700 /state models model_store .cache
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    HF_HOME=/app/models/huggingface \
    PIP_NO_CACHE_DIR=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    TS_CONFIG_FILE=/state/config.properties
USER 10001
EXPOSE 8501 8502
HEALTHCHECK --interval=10s --timeout=10s --start-period=10m \
    CMD ["python", "-m", "apps.health", "http://127.0.0.1:8080/ping", "http://127.0.0.1:8501/_stcore/health"]
# A new image brings its own config.properties into an old volume.
CMD ["sh", "-c", "cp config.properties /state/ && exec python -m apps --host 0.0.0.0"]
