# GALA's two images. They share nothing but their base: the operator has no torch, the worker no Kubernetes client.
#
#   docker build --target operator -t gala-operator .
#   docker build --target worker -t gala-worker .                    torch with CUDA, for nodes with GPUs
#   docker build --target worker -t gala-worker:cpu \
#     --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu --build-arg TORCH=torch==2.13.0+cpu .
#
# For a reproducible build pin the base: --build-arg BASE_IMAGE=python:3.11-slim-bookworm@sha256:...
ARG BASE_IMAGE=python:3.11-slim-bookworm

# The packages that GALA asks for, apart from its code: a change of code then leaves the layers of packages as they are.
FROM ${BASE_IMAGE} AS requirements
COPY pyproject.toml /src/
RUN python -c "import pathlib, tomllib; \
project = tomllib.load(open('/src/pyproject.toml', 'rb'))['project']; \
extras = project['optional-dependencies']; \
write = lambda name, *parts: pathlib.Path('/src', name).write_text(chr(10).join(sum(parts, [])) + chr(10)); \
write('operator.txt', project['dependencies'], extras['operator']); \
write('worker.txt', project['dependencies'], extras['worker'], extras['report'])"

# GALA itself: the packages and the command, and nothing of the virtual environment that they are put into here.
FROM ${BASE_IMAGE} AS code
COPY . /src
RUN python -m venv --without-pip /opt/gala \
 && python -m pip --python /opt/gala/bin/python install --no-cache-dir --no-deps /src \
 && rm -rf /opt/gala/lib64 /opt/gala/include /opt/gala/pyvenv.cfg /opt/gala/bin/python* /opt/gala/bin/[Aa]ctivate*

FROM ${BASE_IMAGE} AS operator-packages
COPY --from=requirements /src/operator.txt /tmp/requirements.txt
RUN python -m venv --without-pip /opt/gala \
 && python -m pip --python /opt/gala/bin/python install --no-cache-dir -r /tmp/requirements.txt

FROM ${BASE_IMAGE} AS worker-packages
# PyPI's torch for Linux brings CUDA; PyTorch's own indices have the builds for CPUs and for other versions of CUDA.
ARG TORCH=torch==2.13.0
ARG TORCH_INDEX=
RUN python -m venv --without-pip /opt/gala \
 && python -m pip --python /opt/gala/bin/python install --no-cache-dir \
    ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} "${TORCH}"
COPY --from=requirements /src/worker.txt /tmp/requirements.txt
# torch's C++ headers are only for building against it.
RUN python -m pip --python /opt/gala/bin/python install --no-cache-dir -r /tmp/requirements.txt \
 && rm -rf /opt/gala/lib/python*/site-packages/torch/include

# What both are at run time. 65532 is nobody's uid on usual systems; the cluster checks that a numeric user is not root.
# The root file system may be read-only: all that is written goes to /tmp and to the volumes.
FROM ${BASE_IMAGE} AS base
RUN echo 'gala:x:65532:65532:GALA:/tmp:/usr/sbin/nologin' >> /etc/passwd \
 && echo 'gala:x:65532:' >> /etc/group
ENV PATH=/opt/gala/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp
WORKDIR /tmp
USER 65532:65532
LABEL org.opencontainers.image.vendor="GALA" \
      org.opencontainers.image.base.name="python:3.11-slim-bookworm"

# Copied and not installed out of a mount: buildah takes the layer of such an installation for the present one whatever
# the mount holds by now.
FROM base AS operator
COPY --from=operator-packages /opt/gala /opt/gala
COPY --from=code /opt/gala /opt/gala
LABEL org.opencontainers.image.title="gala-operator" \
      org.opencontainers.image.description="Reconciles GalaRuns into gossiping actor-learners" \
      org.opencontainers.image.licenses="Apache-2.0"
EXPOSE 8080
ENTRYPOINT ["python", "-m", "gala_operator"]

FROM base AS worker
COPY --from=worker-packages /opt/gala /opt/gala
COPY --from=code /opt/gala /opt/gala
# GALA is Apache-2.0. The image also holds the Arcade Learning Environment (ale-py) under GPL-2.0-only, torch under
# BSD-3-Clause, and imageio-ffmpeg's build of ffmpeg under GPL-3.0-or-later: whoever passes the image on is bound by those.
LABEL org.opencontainers.image.title="gala-worker" \
      org.opencontainers.image.description="An actor-learner of GALA" \
      org.opencontainers.image.licenses="Apache-2.0 AND BSD-3-Clause AND GPL-2.0-only AND GPL-3.0-or-later"
EXPOSE 7070 7071
CMD ["python", "-m", "gala_worker"]
