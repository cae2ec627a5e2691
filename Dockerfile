# srpo as a container. The folder /data holds models, data and results; the port is that of `srpo serve --host 0.0.0.0`.
#   CPU:  docker build -t srpo .
#   GPU:  docker build -t srpo-gpu --build-arg TORCH=https://download.pytorch.org/whl/cu130 .
#         docker run --gpus all -v "$PWD:/data" srpo-gpu train --config my-run.yaml
FROM python:3.12-slim

ARG TORCH=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 HF_HUB_DISABLE_TELEMETRY=1 HF_HOME=/data/.cache/huggingface

WORKDIR /src
COPY constraints.txt ./
# torch alone in a layer of its own: it is by far the largest, and changes most rarely.
RUN pip install --index-url "$TORCH" "$(grep '^torch==' constraints.txt)"
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY recipes recipes
COPY srpo srpo
RUN pip install --constraint constraints.txt '.[serve,server]' \
    && useradd --create-home --uid 1000 srpo && mkdir /data && chown srpo /data

USER 1000
WORKDIR /data
EXPOSE 8000
ENTRYPOINT ["srpo"]
CMD ["--help"]
