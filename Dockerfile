# sdstream for CPUs. The runtime is compiled for the processor of the machine that builds the image.
# For NVIDIA (not tried): --build-arg CMAKE_ARGS=-DSD_CUDA=ON, with BUILD_IMAGE and RUN_IMAGE that have
# CUDA and Python.
ARG BUILD_IMAGE=python:3.13-slim-bookworm
ARG RUN_IMAGE=python:3.13-slim-bookworm

FROM ${BUILD_IMAGE} AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/sdstream
COPY . .
ARG CMAKE_ARGS=
RUN scripts/install && rm -rf /root/.cache

FROM ${RUN_IMAGE}
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home-dir /data sdstream \
    && install -d -o sdstream /data
COPY --from=build /opt/sdstream /opt/sdstream
ENV PATH=/opt/sdstream/.venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    SDSTREAM_HOST=0.0.0.0 \
    SDSTREAM_DATA_DIR=/data/jobs \
    SDSTREAM_MODEL_DIR=/data/models \
    SDSTREAM_CACHE_DIR=/data/cache
USER 10001
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["sdstream"]
CMD ["serve"]
