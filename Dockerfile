# The programs of Cairn, in one image: API, control worker, host agent, set-up. Which one, the command says.
FROM python:3.11.14-slim-trixie AS build
WORKDIR /src
RUN pip install --no-cache-dir --disable-pip-version-check uv==0.13.8
COPY . .
# What the lock names and nothing else, each file by its hash; then Cairn itself, as a wheel.
RUN uv export --quiet --frozen --no-dev --no-emit-project --extra docker --extra s3 --output-file requirements.txt
RUN uv build --quiet --wheel --out-dir dist
RUN uv venv --quiet --python-preference only-system /opt/cairn
RUN uv pip install --quiet --python /opt/cairn --require-hashes --requirement requirements.txt
RUN uv pip install --quiet --python /opt/cairn --no-deps --no-index --find-links dist cairn-platform
# Compiled here, as the image is read-only where it runs.
RUN /opt/cairn/bin/python -m compileall -q -j 0 /opt/cairn

FROM python:3.11.14-slim-trixie
RUN groupadd --gid 10001 cairn && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/cairn cairn \
 && install --directory --owner 10001 --group 10001 --mode 0700 /var/lib/cairn
COPY --from=build /opt/cairn /opt/cairn
ENV PATH=/opt/cairn/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 CAIRN_DATA_DIR=/var/lib/cairn
USER 10001:10001
WORKDIR /var/lib/cairn
VOLUME /var/lib/cairn
EXPOSE 8080
# For the command below. docker-compose.yml has one for each other.
HEALTHCHECK --interval=10s --timeout=6s --start-period=30s --retries=3 CMD ["cairn-health", "api"]
CMD ["cairn-api"]
