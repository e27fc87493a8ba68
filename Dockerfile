# Images with this project, its server and its app. Nothing of the target cuda has been run on a GPU yet (docs/gpu.md).
#
#   docker build --target cpu -t coconut-ds .
#   docker build --target cuda -t coconut-ds:cuda .        # needs the NVIDIA container toolkit to run: --gpus all
#   docker run --rm -p 127.0.0.1:7860:7860 coconut-ds      # the app with the demo's checkpoint: http://127.0.0.1:7860
#   docker run --rm -v "$PWD/outputs:/workspace/outputs" coconut-ds coconut-train run=demo …
#
# pip's default torch for Linux contains the libraries of CUDA, which a CPU does not need: with --build-arg TORCH_INDEX=URL, the
# index of wheels for CPUs that PyTorch's "Get Started" page names, the image is several gigabytes smaller.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim AS base
ENV DS_BUILD_OPS=0 PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
# procps has pkill, with which examples/slurm/train.sh passes signals on.
RUN apt-get update && apt-get install -y --no-install-recommends git procps && rm -rf /var/lib/apt/lists/*
WORKDIR /workspace
ARG TORCH_INDEX=""
COPY constraints.txt ./
RUN pip install -c constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch

FROM base AS cuda
# Triton compiles the code that launches its kernels with a C compiler, when a kernel is first used.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY . .
RUN pip install -c constraints.txt -e '.[gpu,lora,serve]'
EXPOSE 7860 8000
CMD ["python", "-m", "serve", "app", "--host", "0.0.0.0", "--no-key", "--allowed-host", "127.0.0.1", "--allowed-host", "localhost"]

FROM base AS cpu
COPY . .
RUN pip install -c constraints.txt -e '.[lora,serve]'
EXPOSE 7860 8000
CMD ["python", "-m", "serve", "app", "--host", "0.0.0.0", "--no-key", "--allowed-host", "127.0.0.1", "--allowed-host", "localhost"]
