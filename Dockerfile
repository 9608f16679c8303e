# lipsyncd as a container. A build without --target makes the last stage:
#
#   docker build -t lipsyncd .                           with MuseTalk, for one NVIDIA GPU
#   docker build -t lipsyncd:preview --target preview .  without torch, for any CPU
#
# The base needs no CUDA: torch's wheels contain it, and the driver comes from the host. Any Debian with python3 3.11 or
# newer works; pin it by digest for reproducible builds.
ARG BASE=python:3.11-slim-bookworm

# -- builds: their leftovers stay out of the image ---------------------------------------------------------------------

FROM ${BASE} AS build-preview
WORKDIR /build
COPY config/venv.sh config/
COPY config/locks config/locks
RUN sh config/venv.sh /opt/lipsyncd && sh config/venv.sh /opt/build
RUN /opt/build/bin/pip install --no-cache-dir --require-hashes -r config/locks/build.txt
RUN /opt/lipsyncd/bin/pip install --no-cache-dir --no-deps --require-hashes -r config/locks/preview.txt
COPY pyproject.toml README.md LICENSE ./
COPY config/build_backend.py config/pages.py config/
COPY lipsyncd lipsyncd
# The wheel is built with the locked build tools, and installed without its dependencies, which are there already.
RUN /opt/build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels . \
 && /opt/lipsyncd/bin/pip install --no-cache-dir --no-deps /wheels/*.whl \
 && mkdir -p /opt/lipsyncd/share/lipsyncd && echo method=container > /opt/lipsyncd/share/lipsyncd/installation

FROM build-preview AS build-gpu
# `--build-arg TORCH=` leaves torch out, for a base that has its own, or to build the rest of the image only.
ARG TORCH=config/locks/torch.txt
RUN if [ -n "${TORCH}" ]; then /opt/lipsyncd/bin/pip install --no-cache-dir --no-deps --require-hashes -r "${TORCH}"; fi
RUN /opt/lipsyncd/bin/pip install --no-cache-dir --no-deps --require-hashes -r config/locks/musetalk.txt
# The onnxruntime that computes on the GPU, in place of the other one; `--build-arg ONNXRUNTIME=` leaves that.
ARG ONNXRUNTIME=config/locks/onnxruntime-gpu.txt
RUN if [ -n "${ONNXRUNTIME}" ]; then /opt/lipsyncd/bin/pip uninstall --yes onnxruntime \
 && /opt/lipsyncd/bin/pip install --no-cache-dir --no-deps --require-hashes -r "${ONNXRUNTIME}"; fi

# -- the images --------------------------------------------------------------------------------------------------------

FROM ${BASE} AS runtime
LABEL org.opencontainers.image.title="lipsyncd" \
      org.opencontainers.image.description="Turns a portrait and a voice in a watched folder into a talking video" \
      org.opencontainers.image.licenses="MIT"
# tini forwards signals and reaps orphaned processes. A plain Debian gets its python3 here; a Python image has one.
RUN apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends tini $(command -v python3 >/dev/null || echo python3) \
 && rm -rf /var/lib/apt/lists/*
RUN groupadd --gid 961 lipsyncd \
 && useradd --uid 961 --gid 961 --home-dir /app/storage --no-create-home --shell /usr/sbin/nologin lipsyncd \
 && install -d -o 961 -g 961 /app/storage /app/models
COPY config/container.toml /etc/lipsyncd/lipsyncd.toml
COPY --chmod=755 config/entrypoint.sh /usr/local/bin/lipsyncd-entrypoint
ENV PATH=/opt/lipsyncd/bin:$PATH \
    HOME=/app/storage \
    PYTHONUNBUFFERED=1
WORKDIR /app
VOLUME ["/app/storage", "/app/models"]
EXPOSE 8003
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s \
  CMD ["python3", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ.get('PORT', '8003') + '/health/ready', timeout=8)"]
ENTRYPOINT ["tini", "--", "lipsyncd-entrypoint"]
CMD ["run"]

FROM runtime AS preview
COPY --from=build-preview /opt/lipsyncd /opt/lipsyncd
ENV LIPSYNCD_RENDER_RENDERER=preview \
    LIPSYNCD_RENDER_DEVICES=cpu

FROM runtime AS gpu
COPY --from=build-gpu /opt/lipsyncd /opt/lipsyncd
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,video,utility
