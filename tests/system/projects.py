"""Projects with a Dockerfile each, as people write them, for `test_real_projects.py`."""

from __future__ import annotations

from tests.system.peer_builds import Project

SMALL = Project(
    dockerfile="""\
# syntax=docker/dockerfile:1
ARG BASE=localhost/busybox:1
FROM ${BASE} AS build
ARG VERSION=0.0
ENV OUT=/out PARTS="one two three"
WORKDIR /src
COPY . .
RUN mkdir -p $OUT/bin $OUT/share/doc && sh ./make.sh "$VERSION"
RUN busybox ln -s ../share/text $OUT/bin/text && busybox ln $OUT/share/text $OUT/share/doc/copy \\
 && busybox chmod 2750 $OUT/share/doc && busybox chown -R jane:wheel $OUT/share && busybox rm make.sh

FROM ${BASE}
LABEL org.opencontainers.image.title="small" maintainer="A. Person <a@example.org>"
ARG VERSION
ENV VERSION=${VERSION:-none} GREETING="${GREETING}, again"
RUN echo small:x:1234:100::/srv/small:/bin/sh >> /etc/passwd \\
 && mkdir -p /srv/data && busybox chown small /srv/data
WORKDIR /opt/small
COPY --from=build --chown=small:users /out ./
COPY --chown=1234:100 conf/ ./conf/
COPY --chmod=700 start.sh /usr/local/bin/start
COPY --from=build /src /srv/left
RUN echo kept > /srv/data/kept && busybox rm -r /srv/left/conf
USER small
EXPOSE 8080 53/udp
VOLUME /srv/data
STOPSIGNAL SIGINT
HEALTHCHECK --interval=5s --timeout=2s --retries=2 CMD ["busybox", "test", "-s", "/opt/small/share/text"]
ENTRYPOINT ["sh", "/opt/small/bin/show"]
CMD []
""",
    files={
        ".dockerignore": "**/*.tmp\nsecret*\n!secret.example\nconf/local\n.dockerignore\nDockerfile\n",
        "make.sh": '#!/bin/sh\nset -e\necho "small $1: $PARTS" > $OUT/share/text\n'
        'echo \'busybox printf "%s" "$(cat /opt/small/share/text)"; echo "${1:+ $1}"\' > $OUT/bin/show\n',
        "start.sh": "#!/bin/sh\nexec sh /opt/small/bin/show\n",
        "conf/main": "a = 1\n",
        "conf/local": "left out\n",
        "conf/deep/er/x.tmp": "left out\n",
        "conf/deep/y": "y\n",
        "conf/link": "-> deep/y",
        "secret": "left out\n",
        "secret.example": "not left out\n",
        "a name with spaces": "",
    },
    options=("--build-arg", "VERSION=2.1", "--label", "built.by=test"),
)

PYTHON = Project(
    dockerfile="""\
# syntax=docker/dockerfile:1
ARG BASE=localhost/workshop:1

FROM ${BASE} AS build
ARG VERSION
ENV PIP_NO_CACHE_DIR=1 \\
    PIP_DISABLE_PIP_VERSION_CHECK=1 \\
    VENV=/opt/venv
RUN python3 -m venv --system-site-packages "$VENV"
WORKDIR /src
COPY pyproject.toml ./
COPY greeter greeter
RUN sed -i "s/^version = .*/version = \\"${VERSION:?}\\"/" pyproject.toml \\
 && "$VENV/bin/pip" install --no-index --no-build-isolation .

FROM ${BASE} AS final
LABEL org.opencontainers.image.title=greeter
LABEL org.opencontainers.image.licenses="MIT" org.opencontainers.image.source=https://git.example/greeter
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PORT=8000
RUN groupadd --system --gid 990 web \\
 && useradd --system --uid 990 --gid web --create-home --home-dir /srv/web web \\
 && install -d -o web -g web -m 0750 /srv/web/state
WORKDIR /srv/web
COPY --from=build /opt/venv /opt/venv
COPY --chown=web:web config/ ./config/
USER web
EXPOSE $PORT
VOLUME ["/srv/web/state"]
HEALTHCHECK --interval=1s --timeout=10s --start-period=30s --retries=5 \\
  CMD python3 -c "import os, urllib.request as r; r.urlopen('http://127.0.0.1:%s/' % os.environ['PORT'])"
ENTRYPOINT ["greeter"]
CMD ["--config", "config/greeter.ini"]
""",
    files={
        ".dockerignore": "*\n!pyproject.toml\n!greeter\n!config\n**/__pycache__\n**/*.local.ini\n",
        "pyproject.toml": """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "greeter"
version = "0"
requires-python = ">=3.9"

[project.scripts]
greeter = "greeter.server:main"

[tool.setuptools]
packages = ["greeter"]

[tool.setuptools.package-data]
greeter = ["*.txt"]
""",
        "greeter/__init__.py": "",
        "greeter/word.txt": "from greeter",
        "greeter/__pycache__/old.pyc": "left out",
        "greeter/server.py": """\
import argparse, configparser, getpass, os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata, resources


class Handler(BaseHTTPRequestHandler):
    word = ""

    def do_GET(self):
        rest = resources.files("greeter").joinpath("word.txt").read_text()
        text = f"{self.word} {rest} {metadata.version('greeter')} as {getpass.getuser()}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--config")
    config = configparser.ConfigParser()
    config.read(parser.parse_args().config)
    Handler.word = config["greeter"]["word"]
    open("state/started", "w").close()
    ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
""",
        "config/greeter.ini": "[greeter]\nword = hello\n",
        "config/mine.local.ini": "left out\n",
        "README.md": "left out\n",
        "tests/test_it.py": "left out\n",
    },
    options=("--build-arg", "VERSION=3.4"),
    contents_left_out={r".*\.pyc": "holds the time of the file it was compiled from"},
)
ASK_PYTHON = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8000/').read().decode())"

NODE = Project(
    dockerfile="""\
ARG BASE=localhost/workshop:1
FROM ${BASE} AS dependencies
WORKDIR /app
COPY package.json ./
COPY lib lib
RUN npm install --install-links=false --offline --no-audit --no-fund --no-update-notifier

FROM dependencies AS build
COPY . .
ARG NODE_ENV=development
RUN npm test
RUN npm run build

FROM ${BASE}
ARG NODE_ENV=production
ENV NODE_ENV=$NODE_ENV PORT=3000
LABEL com.example.parts="3" \\
      com.example.stage="$NODE_ENV"
RUN useradd --user-group --uid 1000 --create-home --shell /bin/bash node
WORKDIR /app
COPY --from=build --chown=node:node /app/dist ./dist
COPY --from=dependencies /app/node_modules ./node_modules
COPY --from=build /app/lib ./lib
COPY --chown=node package.json *.js ./
RUN mkdir -p /app/logs && chown 1000:1000 /app/logs && chmod 1770 /app/logs
USER node:node
EXPOSE 3000/tcp
HEALTHCHECK --interval=1s --timeout=10s --start-period=30s --retries=5 CMD ["node", "health.js"]
STOPSIGNAL SIGTERM
CMD ["node", "dist/server.js"]
""",
    files={
        ".dockerignore": "# what is made anew\nnode_modules\ndist\n**/*.log\n.git\n",
        "package.json": """\
{"name": "parts", "version": "1.0.0", "private": true, "dependencies": {"joiner": "file:./lib"},
 "scripts": {"test": "node test.js", "prebuild": "mkdir -p dist", "build": "node build.js"}}
""",
        "lib/package.json": '{"name": "joiner", "version": "0.1.0", "main": "index.js"}\n',
        "lib/index.js": "module.exports = parts => `${parts.length} parts`;\n",
        "lib/debug.log": "left out\n",
        "src/a.part": "a",
        "src/b.part": "b",
        "src/c.part": "c",
        "build.js": """\
const fs = require('fs'), join = require('joiner');
const parts = fs.readdirSync('src').sort().map(name => fs.readFileSync('src/' + name, 'utf8'));
fs.writeFileSync('dist/parts.json', JSON.stringify(parts));
fs.writeFileSync('dist/server.js', `
const join = require('joiner'), parts = require('./parts.json');
const who = require("os").userInfo().username;
const text = join(parts) + ' by ' + who + ', ' + process.env.NODE_ENV;
require('http').createServer((_, answer) => answer.end(text)).listen(process.env.PORT, '127.0.0.1');
`);
fs.chmodSync('dist/server.js', 0o755);
""",
        "test.js": "if (require('joiner')([1, 2]) !== '2 parts') process.exit(1);\n",
        "health.js": """\
require('http').get('http://127.0.0.1:' + process.env.PORT, answer => process.exit(answer.statusCode - 200))
  .on('error', () => process.exit(1));
""",
        "dist/stale.js": "left out\n",
        "node_modules/stale/index.js": "left out\n",
    },
)
ASK_NODE = "require('http').get('http://127.0.0.1:3000', a => a.on('data', d => console.log(String(d))))"

C = Project(
    dockerfile="""\
ARG RUNTIME=localhost/busybox:1
FROM localhost/workshop:1 AS sources
WORKDIR /src
COPY Makefile ./
COPY include/ include/
COPY src/*.c src/

FROM sources AS build
ARG VERSION=0
ARG CFLAGS="-O1 -g"
ENV CFLAGS=$CFLAGS
RUN make -j2 VERSION=$VERSION tally && make DESTDIR=/stage VERSION=$VERSION install

FROM build AS test
RUN test "$(echo 1 2 | /stage/usr/bin/tally)" = "never built"

FROM ${RUNTIME}
LABEL description="adds numbers" \\
      version.of.it="1.5"
ENV LANG=C.UTF-8
COPY --from=build /stage /
COPY --from=build --chown=jane:users --chmod=0640 /src/include /usr/include/tally
COPY --chown=0:10 doc /usr/share/doc/tally
WORKDIR /home/jane
USER 1000:100
EXPOSE 7000-7002
VOLUME /home/jane/files /tmp
HEALTHCHECK NONE
ENTRYPOINT ["/usr/bin/tally"]
CMD ["-"]
""",
    files={
        ".dockerignore": "**/*.o\n/build\n!doc/keep.o\n",
        "Makefile": """\
objects := $(patsubst src/%.c,build/%.o,$(sort $(wildcard src/*.c)))
tally: build/main.o build/libsum.a ; gcc -static -o $@ $^
build/libsum.a: $(filter-out build/main.o,$(objects)) ; ar rcs $@ $^
build/%.o: src/%.c include/sum.h | build ; gcc $(CFLAGS) -DVERSION='"$(VERSION)"' -Iinclude -c -o $@ $<
build: ; mkdir -p $@
install: tally
\tinstall -D -m 0755 -s tally $(DESTDIR)/usr/bin/tally
\tln -s tally $(DESTDIR)/usr/bin/add
\tln $(DESTDIR)/usr/bin/tally $(DESTDIR)/usr/bin/sum
\tinstall -d -m 2775 -g 10 $(DESTDIR)/var/lib/tally
""",
        "include/sum.h": "long sum(long, long);\n",
        "src/sum.c": '#include "sum.h"\nlong sum(long a, long b) { return a + b; }\n',
        "src/sum.o": "left out",
        "src/main.c": """\
#include <stdio.h>
#include <string.h>
#include "sum.h"
int main(int count, char **words) {
    long total = 0, next;
    if (count > 1 && strcmp(words[1], "-")) return printf("tally %s adds what it reads\\n", VERSION) < 0;
    while (scanf("%ld", &next) == 1) total = sum(total, next);
    return printf("tally %s: %ld\\n", VERSION, total) < 0;
}
""",
        "doc/README": "Adds numbers.\n",
        "doc/keep.o": "not left out\n",
        "doc/other.o": "left out\n",
    },
    options=("--build-arg", "VERSION=1.5", "--build-arg", "CFLAGS=-O2 -g"),
)
