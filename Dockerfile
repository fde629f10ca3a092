# CPU:  docker build -t lamjax .          GPU:  docker build -t lamjax --build-arg EXTRA=[cuda12] .   (or [cuda13])
# docker run --rm -v "$PWD:/work" lamjax relax small crystal.cif       (GPU: --gpus all)
FROM python:3.12-slim
ARG EXTRA=""
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY lamjax lamjax
RUN pip install --no-cache-dir ".${EXTRA}" && rm -rf /src/build
WORKDIR /work
ENTRYPOINT ["lamjax"]
CMD ["--help"]
