# wrk, for the bench profile of compose.yaml.
FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends wrk \
    && rm -rf /var/lib/apt/lists/*
USER 65532:65532
ENTRYPOINT ["wrk"]
