# A PostgreSQL of Debian's that takes the settings of the official image that compose-postgres.yaml gives, for test.sh:
# a machine without a registry has no other.
FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends postgresql \
    && rm -rf /var/lib/apt/lists/* \
    && install -d -m 700 -o postgres /var/lib/postgresql/data
COPY postgres.sh /
USER postgres
VOLUME /var/lib/postgresql/data
ENTRYPOINT ["/postgres.sh"]
