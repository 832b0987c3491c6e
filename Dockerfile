# Two stages: the Swift toolchain builds, Debian runs. There is nothing in here that scripts/install-packages and
# `swift build` do not do on a plain Debian 12 host.
FROM swift:6.3-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends libuv1-dev libssl-dev pkg-config && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY Package.swift ./
COPY Sources Sources
COPY Tests Tests
RUN swift build -c release --static-swift-stdlib --product coterie \
 && swift build -c release --static-swift-stdlib --product coterie-console \
 && swift build -c release --static-swift-stdlib --product coterie-init

FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends libuv1 libssl3 libstdc++6 && rm -rf /var/lib/apt/lists/*
COPY --from=build /src/.build/release/coterie /src/.build/release/coterie-console /src/.build/release/coterie-init /usr/local/bin/
VOLUME /var/lib/coterie
EXPOSE 7630/udp 7630/tcp 7631/tcp 11300/tcp
STOPSIGNAL SIGTERM
ENTRYPOINT ["coterie"]
CMD ["agent"]
