# CPU:  docker build -t lamjax .          GPU:  docker build -t lamjax --build-arg "EXTRA=[cuda12]" .   (or [cuda13])
# docker run --rm -u "$(id -u):$(id -g)" -v "$PWD:/work" lamjax relax small crystal.cif       (GPU: --gpus all)
# -u: files are the caller's, not root's. Compiled programs go with the container; -v lamjax-cache:/home keeps them.
FROM python:3.12-slim
ARG EXTRA=""
WORKDIR /src
COPY pyproject.toml README.md LICENSE MANIFEST.in ./
COPY lamjax lamjax
RUN pip install --no-cache-dir ".${EXTRA}" && rm -rf /src && chmod 1777 /home
ENV HOME=/home
WORKDIR /work
ENTRYPOINT ["lamjax"]
CMD ["--help"]
