# capvec as a container image. docs/image.md tells how to build and run it.
#
#   docker build -t capvec:0.1.0 .                      for CPUs
#   docker build -t capvec:0.1.0-cuda --target cuda .   for NVIDIA GPUs
#
# Three stages hold nothing but files, at their root: program, onnxruntime-cpu, onnxruntime-cuda. Each can be given as a
# folder instead, `--build-context program=FOLDER`, and then nothing is compiled or downloaded for it.

# What it is built with: Debian or Ubuntu with Rust, at least the rust-version of Cargo.toml. Its C library must not be
# newer than that of the other base.
ARG RUST_BASE=rust:1.95-slim-bookworm
# What it runs on: Debian or Ubuntu.
ARG RUNTIME_BASE=debian:bookworm-slim

# === The program ===

FROM ${RUST_BASE} AS toolchain
WORKDIR /src
COPY Cargo.toml ./
COPY scripts/setup scripts/
RUN scripts/setup build

# Every crate is compiled here, against a program that does nothing. This layer is made again only when the lock file
# changes.
FROM toolchain AS dependencies
COPY Cargo.lock ./
RUN mkdir -p src benches \
 && touch src/lib.rs \
 && echo 'fn main() {}' >src/main.rs \
 && cp src/main.rs benches/pure.rs \
 && cargo build --release --locked

FROM dependencies AS build
COPY src src
# Cargo goes by times, and the files that it saw in the layer before are younger than the real ones.
RUN touch src/lib.rs src/main.rs \
 && cargo build --release --locked \
 && mkdir /program \
 && strip --strip-debug -o /program/capvec target/release/capvec
COPY scripts/sbom scripts/
COPY scripts/wheels scripts/wheels
RUN scripts/sbom /program
COPY LICENSE /program/

FROM scratch AS program
COPY --from=build /program/ /

# === ONNX Runtime, from the wheels on PyPI ===

FROM toolchain AS download-cpu
COPY scripts/onnxruntime scripts/
COPY scripts/wheels scripts/wheels
RUN CAPVEC_CACHE=/cache scripts/onnxruntime \
 && mv /cache/onnxruntime/*-cpu /library

FROM toolchain AS download-cuda
COPY scripts/onnxruntime scripts/
COPY scripts/wheels scripts/wheels
RUN CAPVEC_CACHE=/cache scripts/onnxruntime gpu \
 && mv /cache/onnxruntime/*-gpu /library

FROM scratch AS onnxruntime-cpu
COPY --from=download-cpu /library/ /

FROM scratch AS onnxruntime-cuda
COPY --from=download-cuda /library/ /

# === What both images share ===

FROM ${RUNTIME_BASE} AS runtime
# Versions aren't pinned: Debian's mirrors keep only the newest of a release, and what is newer there is a security fix.
# hadolint ignore=DL3008
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
      ca-certificates libgcc-s1 libssl3 libstdc++6 zlib1g \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log

ENV PATH=/opt/capvec:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
EXPOSE 9180
# Debian's nobody, as a number, since Kubernetes can't look a name up to see that it isn't root.
USER 65534:65534
WORKDIR /
ENTRYPOINT ["/opt/capvec/capvec"]
CMD ["run", "--config", "/etc/capvec/capvec.toml"]

ARG VERSION=unknown
ARG REVISION=unknown
ARG CREATED=unknown
ARG SOURCE=https://github.com/capvec/capvec
ARG RUNTIME_BASE
LABEL org.opencontainers.image.title="capvec" \
      org.opencontainers.image.description="A Kafka worker that turns captions into Multilingual-CLIP vectors" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.base.name="${RUNTIME_BASE}"

# === For NVIDIA GPUs ===

FROM runtime AS cuda
COPY --from=onnxruntime-cuda /*.so* /opt/capvec/
COPY --from=onnxruntime-cuda /LICENSE* /ThirdPartyNotices.txt /opt/capvec/licenses/onnxruntime/
COPY --from=program /LICENSE /third-party.txt /opt/capvec/licenses/
COPY --from=program /sbom-gpu.cdx.json /opt/capvec/sbom.cdx.json
COPY --from=program /capvec /opt/capvec/
# The CUDA provider looks for CUDA's libraries where the loader is told to.
ENV LD_LIBRARY_PATH=/opt/capvec
# What NVIDIA's container runtime mounts of the driver: its library, and nvidia-smi.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
LABEL org.opencontainers.image.licenses="Apache-2.0 AND LicenseRef-NVIDIA-CUDA-EULA"

# === For CPUs: the last stage, and so what is built where no target is named ===

FROM runtime AS cpu
COPY --from=onnxruntime-cpu /*.so* /opt/capvec/
COPY --from=onnxruntime-cpu /LICENSE /ThirdPartyNotices.txt /opt/capvec/licenses/onnxruntime/
COPY --from=program /LICENSE /third-party.txt /opt/capvec/licenses/
COPY --from=program /sbom-cpu.cdx.json /opt/capvec/sbom.cdx.json
COPY --from=program /capvec /opt/capvec/
