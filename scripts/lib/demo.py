"""The scenes of scripts/demo. Everything is done with the coterie program, as a user would."""
import argparse
import glob
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

parser = argparse.ArgumentParser()
parser.add_argument("--binaries", required=True)
parser.add_argument("--keep", action="store_true")
options = parser.parse_args()
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BIN = os.path.abspath(os.path.join(ROOT, options.binaries))
COTERIE = os.path.join(BIN, "coterie")
WORK = tempfile.mkdtemp(prefix="coterie-demo-")
os.chmod(WORK, 0o711)
DATA = os.path.join(WORK, "cluster")
ENV = dict(os.environ, HOME=WORK, LC_ALL="C")
checks = []
started = time.monotonic()
children = []


def say(text=""):
    print(text, flush=True)


def scene(text):
    say(f"\n\033[1m== {text}\033[0m" if sys.stdout.isatty() else f"\n== {text}")


def check(name, held, detail=""):
    checks.append((name, bool(held), detail))
    say(f"   {'ok  ' if held else 'FAIL'} {name}{': ' + detail if detail else ''}")
    return held


def run(*words, input=None, expect=0, timeout=60, echo=True):
    """Runs `coterie WORDS`, says so, and returns its output."""
    if echo:
        say("   $ coterie " + " ".join(w if re.fullmatch(r"[\w./:=@%+,-]+", w) else "'" + w + "'" for w in words))
    done = subprocess.run([COTERIE, *words], input=input, capture_output=True, env=ENV, timeout=timeout)
    if expect is not None and done.returncode != expect:
        raise RuntimeError(f"coterie {' '.join(words)} ended with {done.returncode}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout.decode(errors="replace")


def document(*words, **more):
    return json.loads(run("--json", *words, **more))


def wait(what, condition, seconds=30.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            value = condition()
        except (RuntimeError, subprocess.TimeoutExpired, OSError, KeyError, json.JSONDecodeError):
            value = None
        if value:
            return value
        time.sleep(0.1)
    raise RuntimeError(f"waited {seconds:.0f} s for {what}")


def quiet(*words):
    return document(*words, echo=False, timeout=15)


class Node:
    """One agent of the cluster: found by its data directory, so that it can be killed and started again."""

    def __init__(self, name):
        self.name = name

    def pid(self):
        for entry in glob.glob("/proc/[0-9]*/cmdline"):
            try:
                words = open(entry, "rb").read().split(b"\0")
            except OSError:
                continue
            if b"agent" in words and b"--name" in words and words[words.index(b"--name") + 1] == self.name.encode() \
                    and any(w.startswith(DATA.encode()) for w in words):
                return int(entry.split("/")[2]), [w.decode() for w in words if w]
        return None

    def kill(self):
        pid, self.words = self.pid()
        os.kill(pid, signal.SIGKILL)

    def restart(self):
        log = open(os.path.join(WORK, f"{self.name}-again.log"), "wb")
        child = subprocess.Popen(self.words, env=ENV, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
        children.append(child)


def write(name, text):
    path = os.path.join(WORK, name)
    with open(path, "w") as file:
        file.write(text)
    return path


def open_directory(name):
    """A directory that every pod's user can write."""
    path = os.path.join(WORK, name)
    os.makedirs(path, exist_ok=True)
    os.chmod(path, 0o1777)
    return path


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def pods():
    return {item["metadata"]["name"]: item for item in quiet("get", "pods")["items"]}


def wait_phase(name, *phases, seconds=30):
    def look():
        pod = pods().get(name)
        return pod if pod and pod["status"]["phase"] in phases else None
    return wait(f"pod {name} to be {' or '.join(phases)}", look, seconds)


def delete(kind, name):
    run("delete", kind, name)


# ---------------------------------------------------------------------------------------------------------------------

def cluster():
    scene("Five nodes find each other and elect a leader")
    say("   $ coterie up --nodes 5 --data … --detach")
    begun = time.monotonic()
    # To a file: the nodes inherit the streams and live on.
    with open(os.path.join(WORK, "up.out"), "wb") as out:
        done = subprocess.run([COTERIE, "up", "--nodes", "5", "--data", DATA, "--detach"], env=ENV, stdout=out, stderr=subprocess.STDOUT, timeout=60)
    text = open(os.path.join(WORK, "up.out")).read()
    if done.returncode != 0:
        raise RuntimeError(f"coterie up ended with {done.returncode}: {text}")
    for line in text.splitlines():
        say("     " + line)
    say(f"   ready after {time.monotonic() - begun:.2f} s")
    members = document("members")["members"]
    leader = document("leader")
    check("five members are alive", [m["state"] for m in members] == ["alive"] * 5, ", ".join(m["name"] for m in members))
    check("one of them leads", sum(m["role"] == "leader" for m in members) == 1, f"{leader['name']} in term {leader['term']}")
    return [m["name"] for m in members], leader["name"]


def queue(leader):
    scene("10 000 lines through a durable queue, while the leader is killed -9")
    count = 10_000
    out = open_directory("executions")
    lines = "".join(f"item {i}\n" for i in range(count))
    begun = time.monotonic()
    ids = document("queue", "put", "lines", "--lines", "--ttr", "8s", "-", input=lines.encode(), timeout=60)["ids"]
    say(f"   {len(ids)} jobs in {time.monotonic() - begun:.2f} s")
    check("every line has an id of its own", len(ids) == len(set(ids)) == count)
    # Three worker pods, one a node; each execution leaves the item's id.
    path = write("workers.yaml", f"""apiVersion: coterie.internal/v1alpha1
kind: WorkQueue
metadata:
  name: drain
spec:
  tube: lines
  workers: 3
  concurrency: 2
  image: localhost/host
  command: ["/bin/sh", "-c", "umask 0; echo $COTERIE_ITEM >> /out/$COTERIE_POD"]
  volumeMounts:
  - name: out
    mountPath: /out
  volumes:
  - name: out
    hostPath:
      path: {out}
""")
    run("apply", "-f", path)

    def executed():
        found = []
        for name in os.listdir(out):
            with open(os.path.join(out, name)) as file:
                found += [int(x) for x in file.read().split()]
        return found

    wait("the workers to begin", lambda: len(executed()) > 500, 40)
    homes = sorted({p["spec"].get("nodeName") for n, p in pods().items() if n.startswith("drain-")} - {None})
    say(f"   workers run on {', '.join(homes)}; killing the leader {leader} with kill -9")
    before = len(executed())
    open_reservations = next(t["reserved"] for t in quiet("queue", "list")["tubes"] if t["name"] == "lines")
    victim = Node(leader)
    victim.kill()
    killed_at = time.monotonic()
    successor = wait("another leader", lambda: (lambda s: s["leader"] and s["leader"]["name"] != leader and s["leader"]["name"])(quiet("status")), 20)
    say(f"   {successor} leads {1000 * (time.monotonic() - killed_at):.0f} ms later (as seen by asking)")

    def drained():
        tubes = [t for t in quiet("queue", "list")["tubes"] if t["name"] == "lines"]
        left = sum(t["ready"] + t["reserved"] + t["delayed"] + t["buried"] for t in tubes)
        return left == 0
    wait("the queue to be empty", drained, 90)
    found = executed()
    repeated = len(found) - count
    # Open at the kill: what was seen reserved then, or could have been taken since: the workers' whole concurrency.
    bound = max(open_reservations, 3 * 2)
    check("the workers ran on three nodes", len(homes) == 3, ", ".join(homes))
    check("the leader died in the middle", 500 < before < count, f"after {before} executions")
    check("every id was executed and deleted, none is left", set(found) == set(ids), f"{len(set(found))} ids")
    check("repeated executions are within the reservations open at the kill", 0 <= repeated <= bound, f"{repeated} repeated, {bound} open at most")
    for i in range(3):
        delete("pod", f"drain-{i}")
    victim.restart()
    wait(f"{leader} to be back", lambda: all(m["state"] == "alive" for m in quiet("members")["members"]), 30)
    say(f"   {leader} was started again and is back")
    return successor


def real_text(least):
    """At least so many bytes of text that Debian packages have put on this machine."""
    pattern = ["/usr/share/doc/*/copyright", "/usr/share/perl/*/**/*.pod", "/usr/share/perl/*/**/*.pm", "/usr/share/common-licenses/*",
               "/usr/lib/python3*/**/*.py", "/usr/share/info/*", "/usr/include/**/*.h"]
    parts, size, files = [], 0, 0
    for p in pattern:
        for name in sorted(glob.glob(p, recursive=True)):
            if size >= least:
                break
            try:
                with open(name, "rb") as file:
                    text = file.read(4 << 20)
            except OSError:
                continue
            if b"\0" in text:
                continue
            if not text.endswith(b"\n"):
                text += b"\n"
            parts.append(text)
            size += len(text)
            files += 1
    return b"".join(parts), files


def words(leader, names):
    scene("A word count scattered over the cluster, while another node is killed -9")
    text, files = real_text(21 << 20)
    path = os.path.join(WORK, "text")
    with open(path, "wb") as file:
        file.write(text)
    say(f"   {len(text) / (1 << 20):.1f} MiB of text from {files} files of Debian packages")
    count = "tr -cs A-Za-z '\\n' | grep . | sort | uniq -c"
    merge = "awk '{n[$2]+=$1} END {for (w in n) print n[w], w}' | sort -k2"
    expected = subprocess.run(["/bin/sh", "-c", count + " | awk '{print $1, $2}' | sort -k2"], stdin=open(path, "rb"), capture_output=True, env=ENV).stdout
    summary = os.path.join(WORK, "summary.json")
    command = [COTERIE, "scatter", "--bytes", "256KiB", "--leaf", count, "--merge", merge, "--input", path, "--parallel", "5", "--summary", summary]
    say("   $ coterie scatter --bytes 256KiB --leaf \"" + count + "\" --merge \"" + merge + "\" --input text --parallel 5")
    begun = time.monotonic()
    job = subprocess.Popen(command, stdout=open(os.path.join(WORK, "words"), "wb"), stderr=open(os.path.join(WORK, "scatter.err"), "wb"), env=ENV)

    def running():
        if job.poll() is not None:
            return True
        gathers = quiet("gather", "list")["gathers"]
        return gathers and gathers[-1]["shards"]["successful"] >= 8
    wait("the first shards", running, 60)
    homes = {n: p["spec"].get("nodeName") for n, p in pods().items() if n.startswith("gather-")}
    root = next((h for n, h in homes.items() if n.endswith("-root")), None)
    target = next((h for n, h in sorted(homes.items()) if h and h not in (root, leader) and "-leaf-" in n), None)
    in_time = job.poll() is None and target is not None
    victim = None
    if in_time:
        say(f"   leaves run on {', '.join(sorted({h for n, h in homes.items() if h and '-leaf-' in n}))}; killing {target} with kill -9")
        victim = Node(target)
        victim.kill()
    code = job.wait(timeout=90)
    if code != 0:
        say("     " + open(os.path.join(WORK, "scatter.err")).read().strip().replace("\n", "\n     "))
    result = open(os.path.join(WORK, "words"), "rb").read()
    say(f"   done after {time.monotonic() - begun:.2f} s: exit code {code}, {len(result.splitlines())} different words")
    told = json.load(open(summary)) if os.path.exists(summary) else {}
    check("a node was killed while shards were running", in_time, target or "")
    check("the scatter succeeded", code == 0 and told.get("state") == "succeeded", f"{told.get('shards', {}).get('successful')} shards, {told.get('retried')} retried")
    check("the result equals tr | sort | uniq -c", result == expected and len(expected) > 0, f"{len(expected)} bytes")
    if victim:
        victim.restart()
        wait("it to be back", lambda: all(m["state"] == "alive" for m in quiet("members")["members"]), 30)


class Sink:
    """Keeps the lines that come in on a TCP port of the host."""

    def __init__(self):
        self.lines = []
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            connection, _ = self.server.accept()
            threading.Thread(target=self.read, args=(connection,), daemon=True).start()

    def read(self, connection):
        with connection, connection.makefile("rb") as file:
            for line in file:
                self.lines.append(line.decode(errors="replace"))


def sidecar():
    scene("Sidecar: the app only prints, the log sidecar ships")
    sink = Sink()
    path = write("sidecar.yaml", f"""apiVersion: v1
kind: Pod
metadata:
  name: printer
  annotations:
    coterie.internal/listen: "ship"
spec:
  restartPolicy: Never
  initContainers:
  - name: ship
    image: localhost/host
    restartPolicy: Always
    command: ["coterie", "sidecar", "logs", "--to", "tcp://127.0.0.1:{sink.port}"]
  containers:
  - name: app
    image: localhost/host
    command: ["/bin/sh", "-c", "i=0; while [ $i -lt 200 ]; do echo \\"line $i of the app\\"; i=$((i+1)); done; echo the last words >&2"]
""")
    run("apply", "-f", path)
    pod = wait_phase("printer", "Succeeded", "Failed")
    texts = []

    def shipped():
        texts[:] = [json.loads(line).get("message", json.loads(line).get("log", json.loads(line).get("text", ""))) for line in list(sink.lines)]
        return len(texts) >= 201
    try:
        wait("the lines", shipped, 15)
    except RuntimeError:
        pass
    expected = [f"line {i} of the app" for i in range(200)]
    check("the app's pod succeeded", pod["status"]["phase"] == "Succeeded", pod["status"].get("reason", ""))
    check("every printed line arrived once and in order", [t.rstrip("\n") for t in texts if "line" in t] == expected, f"{len(texts)} lines")
    check("and so did the last words on stderr", any("the last words" in t for t in texts))
    logs = run("logs", "printer", "-c", "app", "--tail", "2")
    say("     " + logs.strip().replace("\n", "\n     "))
    delete("pod", "printer")


def ambassador():
    scene("Ambassador: redis-py on localhost:6379, writes to the master, reads from the replicas")
    library = os.path.join(WORK, "python")
    subprocess.run(["python3", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", library, "redis", "async-timeout"], check=True,
                   stderr=subprocess.DEVNULL)
    subprocess.run(["chmod", "-R", "a+rX", library], check=True)
    ports = [free_port() for _ in range(3)]
    for i, port in enumerate(ports):
        place = os.path.join(WORK, f"redis{i}")
        os.makedirs(place)
        words = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--dir", place, "--save", "", "--appendonly", "no"]
        if i:
            words += ["--replicaof", "127.0.0.1", str(ports[0])]
        children.append(subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    def ask(port, *words):
        return subprocess.run(["redis-cli", "-p", str(port), *words], capture_output=True, timeout=5).stdout.decode()
    wait("the replicas to follow", lambda: all("master_link_status:up" in ask(p, "info", "replication") for p in ports[1:]), 20)
    for p in ports:
        ask(p, "config", "resetstat")
    app = write("app.py", """import redis, time
r = redis.Redis(host="localhost", port=6379)
for attempt in range(100):
    try:
        r.ping()
        break
    except redis.exceptions.ConnectionError:
        time.sleep(0.1)
for i in range(200):
    r.set(f"key{i}", f"value{i}")
r.wait(2, 2000)
good = sum(r.get(f"key{i}") == f"value{i}".encode() for i in range(200))
pipe = r.pipeline()
for i in range(50):
    pipe.incr("counter")
total = pipe.execute()[-1]
print("READS", good, "COUNTER", total, flush=True)
""")
    os.chmod(app, 0o644)
    path = write("ambassador.yaml", f"""apiVersion: v1
kind: Pod
metadata:
  name: shop
  annotations:
    coterie.internal/listen: "redis=6379"
spec:
  restartPolicy: Never
  initContainers:
  - name: redis
    image: localhost/host
    restartPolicy: Always
    command: ["coterie", "ambassador", "redis", "--master", "127.0.0.1:{ports[0]}", "--replica", "127.0.0.1:{ports[1]}", "--replica", "127.0.0.1:{ports[2]}"]
  containers:
  - name: app
    image: localhost/host
    command: ["/usr/bin/python3", "/code/app.py"]
    env:
    - name: PYTHONPATH
      value: /library
    volumeMounts:
    - name: code
      mountPath: /code
      readOnly: true
    - name: library
      mountPath: /library
      readOnly: true
  volumes:
  - name: code
    hostPath:
      path: {WORK}/code
  - name: library
    hostPath:
      path: {library}
""")
    os.makedirs(os.path.join(WORK, "code"), exist_ok=True)
    shutil.move(app, os.path.join(WORK, "code", "app.py"))
    run("apply", "-f", path)
    pod = wait_phase("shop", "Succeeded", "Failed", seconds=40)
    logs = run("logs", "shop", "-c", "app")
    say("     " + logs.strip().replace("\n", "\n     "))

    def calls(port, command):
        found = re.search(rf"cmdstat_{command}:calls=(\d+)", ask(port, "info", "commandstats"))
        return int(found.group(1)) if found else 0
    # A replica executes the replicated writes as well; those it took from a client would have failed with READONLY.
    sets, gets = [calls(p, "set") for p in ports], [calls(p, "get") for p in ports]
    refused = [re.search(r"cmdstat_set:.*rejected_calls=(\d+)", ask(p, "info", "commandstats")) for p in ports[1:]]
    check("the app read what it wrote", "READS 200 COUNTER 50" in logs and pod["status"]["phase"] == "Succeeded")
    check("writes went to the master only", sets[0] == 200 and all(int(m.group(1)) == 0 for m in refused if m), f"SET on the master: {sets[0]}")
    check("reads went to both replicas and not to the master", gets[0] == 0 and all(g > 20 for g in gets[1:]) and sum(gets) == 200, f"GET on master and replicas: {gets}")
    delete("pod", "shop")


def adapter():
    scene("Adapter: the app writes its own format, the adapter rewrites it for its consumers")
    path = write("adapter.yaml", """apiVersion: v1
kind: Pod
metadata:
  name: legacy
spec:
  restartPolicy: Never
  initContainers:
  - name: adapt
    image: localhost/host
    restartPolicy: Always
    command: ["coterie", "adapter", "--watch", "/data/in/*.csv", "--out", "/data/out", "--from", "csv", "--to", "json"]
    volumeMounts:
    - name: data
      mountPath: /data
  containers:
  - name: app
    image: localhost/host
    command: ["/bin/sh", "-c", "mkdir -p /data/in; echo name,count > /data/in/sales.csv; for i in 1 2 3 4 5; do echo item$i,$i >> /data/in/sales.csv; done; n=0; while [ $(cat /data/out/sales.csv 2>/dev/null | wc -l) -lt 5 ] && [ $n -lt 100 ]; do sleep 0.1; n=$((n+1)); done; cat /data/out/sales.csv"]
    volumeMounts:
    - name: data
      mountPath: /data
  volumes:
  - name: data
    emptyDir: {}
""")
    run("apply", "-f", path)
    pod = wait_phase("legacy", "Succeeded", "Failed", seconds=30)
    logs = run("logs", "legacy", "-c", "app")
    say("     " + logs.strip().replace("\n", "\n     "))
    records = []
    for line in logs.splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            pass
    check("the consumer found the app's records as JSON", [r.get("name") for r in records] == [f"item{i}" for i in range(1, 6)], pod["status"]["phase"])
    delete("pod", "legacy")


def election():
    scene("Leader election: the holder is killed, its successor has a larger token")
    path = write("election.yaml", """apiVersion: coterie.internal/v1alpha1
kind: LeaderElection
metadata:
  name: boss
spec:
  replicas: 3
  ttl: 2s
  template:
    spec:
      containers:
      - name: app
        image: localhost/host
        command: ["/bin/sh", "-c", "while true; do sleep 1; done"]
""")
    run("apply", "-f", path)
    first = wait("a holder", lambda: (lambda e: e if e.get("holder") else None)(quiet("election", "show", "boss")), 30)
    holder = first["holder"]["pod"] or first["holder"]["id"]
    say(f"   {holder} holds it with token {first['token']}; its elector is killed -9")
    home = pods()[holder]["spec"]["nodeName"]
    killed = 0
    for entry in glob.glob("/proc/[0-9]*/environ"):
        try:
            environment = open(entry, "rb").read().split(b"\0")
            command = open(entry.replace("environ", "cmdline"), "rb").read().split(b"\0")
        except OSError:
            continue
        if f"COTERIE_POD={holder}".encode() in environment and b"elector" in command:
            os.kill(int(entry.split("/")[2]), signal.SIGKILL)
            killed += 1
    begun = time.monotonic()
    second = wait("a successor", lambda: (lambda e: e if e.get("holder") and e["token"] > first["token"] else None)(quiet("election", "show", "boss")), 30)
    say(f"   after {time.monotonic() - begun:.2f} s {second['holder']['pod']} holds it with token {second['token']}")
    check("the holder's elector was killed", killed == 1, f"{holder} on {home}")
    check("the successor's token is larger", second["token"] > first["token"], f"{first['token']} then {second['token']}")
    for i in range(3):
        delete("pod", f"boss-{i}")


def main():
    failed = None
    try:
        names, leader = cluster()
        leader = queue(leader)
        leader = quiet("leader")["name"]
        words(leader, names)
        sidecar()
        ambassador()
        adapter()
        election()
    except Exception as error:  # What broke is told, and everything is still cleared away.
        failed = error
        check("the demo ran to its end", False, f"{type(error).__name__}: {error}")
    seconds = time.monotonic() - started
    scene("What was checked")
    width = max(len(name) for name, _, _ in checks)
    for name, held, detail in checks:
        say(f"   {'ok  ' if held else 'FAIL'} {name.ljust(width)}  {detail}")
    good = all(held for _, held, _ in checks)
    say(f"\n   {sum(h for _, h, _ in checks)} of {len(checks)} held, {seconds:.0f} s")
    for child in children:
        if not options.keep and child.poll() is None and "redis" in str(child.args[0]):
            child.terminate()
    if options.keep:
        say(f"   the cluster is left running: coterie status --address unix:{DATA}/node0/agent.sock; stop it with: HOME={WORK} {COTERIE} down")
    else:
        subprocess.run([COTERIE, "down", "--data", DATA], env=ENV, capture_output=True, timeout=60)
        for child in children:
            if child.poll() is None:
                child.terminate()
                try:
                    child.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    child.kill()
        if good:
            shutil.rmtree(WORK, ignore_errors=True)
        else:
            say(f"   logs are kept in {WORK}")
    sys.exit(0 if good else 1)


main()
