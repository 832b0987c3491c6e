"""What scripts/bench and scripts/bench-consensus share: a place to work in, load generators, clusters that are started and
stopped by process id, and what a process costs."""
import glob
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def note(text):
    print(text, file=sys.stderr, flush=True)


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Workshop:
    """A directory on the real disk for all that a run writes, and every cluster and process that it started. `close` ends
    them, whatever has happened."""

    def __init__(self, binaries, peers):
        self.binaries = os.path.abspath(binaries)
        self.peers = os.path.abspath(peers)
        self.coterie = os.path.join(self.binaries, "coterie")
        # In memory a sync costs nothing, and the figures would mean nothing.
        place = os.environ.get("BENCH_DIRECTORY") or ("/var/tmp" if on_memory(tempfile.gettempdir()) else None)
        self.directory = tempfile.mkdtemp(prefix="coterie-bench-", dir=place)
        self.environment = dict(os.environ, HOME=self.directory)
        self.running = []

    def path(self, *parts):
        return os.path.join(self.directory, *parts)

    def compile_c(self, source, *flags, libraries=()):
        program = self.path(os.path.basename(source)[:-2])
        subprocess.run(["cc", "-O2", *flags, "-o", program, source, *(f"-l{name}" for name in libraries)], check=True)
        return program

    def compile_go(self, source):
        program = self.path(os.path.basename(source)[:-3])
        environment = dict(os.environ, GO111MODULE="off", GOPATH="/usr/share/gocode", GOCACHE=self.path("gocache"), GOFLAGS="")
        subprocess.run(["go", "build", "-o", program, source], check=True, env=environment)
        return program

    def start(self, *words, **options):
        """A process that `close` kills if it still runs."""
        child = subprocess.Popen(words, **options)
        self.running.append(Child(self, child))
        return child

    def versions(self):
        def first(*words):
            return subprocess.run(words, capture_output=True, text=True, env=self.environment).stdout.split("\n")[0].strip()
        return {"coterie": first(self.coterie, "version"), "etcd": first("etcd", "--version"), "beanstalkd": first("beanstalkd", "-v")}

    def stop_all(self):
        for thing in list(reversed(self.running)):
            try:
                thing.kill()
            except (OSError, subprocess.SubprocessError) as error:
                note(f"could not stop {thing}: {error}")
        self.running = []

    def close(self):
        self.stop_all()
        shutil.rmtree(self.directory, ignore_errors=True)


class Child:
    def __init__(self, shop, process):
        self.shop, self.process = shop, process

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def on_memory(directory):
    found = subprocess.run(["stat", "-f", "-c", "%T", directory], capture_output=True, text=True).stdout.strip()
    return found in ("tmpfs", "ramfs")


class Coterie:
    """A cluster that `coterie up` started, with the programs' defaults."""

    def __init__(self, shop, name, nodes=3):
        self.shop = shop
        self.data = shop.path(name)
        shop.running.append(self)
        begun = time.monotonic()
        with open(shop.path(name + ".out"), "wb") as out:
            subprocess.run([shop.coterie, "up", "--nodes", str(nodes), "--data", self.data, "--detach"], check=True,
                           env=shop.environment, stdout=out, stderr=out, timeout=60)
        self.startup = time.monotonic() - begun
        self.ready = [l for l in map(json.loads, filter(lambda l: l.startswith("{"), open(shop.path(name + ".out")))) if l.get("ready")]
        self.queue = {l["name"]: l["queue"] for l in self.ready}
        # What each node was started with, to start it again.
        self.words = {name: words for name, (_, words) in self.processes().items()}

    def ask(self, *words, node=None):
        address = ["--address", f"unix:{self.data}/{node}/agent.sock"] if node else []
        done = subprocess.run([self.shop.coterie, "--json", *address, *words], env=self.shop.environment, capture_output=True,
                              timeout=20)
        return json.loads(done.stdout)

    def wait(self, what, question, seconds=20):
        """The first true answer to `question`; a node that just came back may not know names yet, or answer at all."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if answer := question():
                    return answer
            except (ValueError, KeyError, TypeError, OSError, subprocess.SubprocessError):
                pass
            time.sleep(0.05)
        raise RuntimeError(f"{what}: not within {seconds} s")

    def leader(self, node="node0"):
        """The name of the leader as this node knows it; of the next, while this one does not answer."""
        def name():
            for one in [node, *(n for n in sorted(self.queue) if n != node)]:
                try:
                    found = self.ask("leader", node=one)["name"]
                except (ValueError, KeyError):
                    continue
                if found in self.queue:
                    return found
        return self.wait("a leader", name)

    def addresses(self, *names):
        """For a load generator: of these nodes, or of all, the leader last: a single connection then goes to a follower."""
        if not names:
            leader = self.leader()
            names = sorted(self.queue, key=lambda name: (name == leader, name))
        return ",".join(self.queue[name] for name in names)

    def processes(self):
        found = {}
        for entry in glob.glob("/proc/[0-9]*/cmdline"):
            try:
                words = open(entry, "rb").read().split(b"\0")
            except OSError:
                continue
            if b"agent" in words and b"--name" in words and any(w.startswith(self.data.encode() + b"/") for w in words):
                found[words[words.index(b"--name") + 1].decode()] = (int(entry.split("/")[2]), [w.decode() for w in words if w])
        return found

    def pid(self, name):
        return self.processes()[name][0]

    def start_again(self, name):
        with open(self.shop.path("again.log"), "ab") as log:
            return self.shop.start(*self.words[name], env=self.shop.environment, stdout=log, stderr=log,
                                   stdin=subprocess.DEVNULL, start_new_session=True)

    def served_at(self, name, limit=60):
        """When a linearizable read through this node's queue port is first answered."""
        host, port = self.queue[name].rsplit(":", 1)
        end = time.monotonic() + limit
        while time.monotonic() < end:
            try:
                with socket.create_connection((host, int(port)), timeout=5) as connection:
                    connection.sendall(b"peek 1\r\n")
                    if connection.recv(4096).startswith((b"FOUND", b"NOT_FOUND")):
                        return time.monotonic()
            except OSError:
                pass
            time.sleep(0.002)
        raise RuntimeError(f"{name} served no read in {limit} s")

    def directories(self):
        return {name: os.path.join(self.data, name) for name in self.queue}

    def stop(self):
        subprocess.run([self.shop.coterie, "down", "--data", self.data], env=self.shop.environment, capture_output=True, timeout=60)
        self.kill()

    def kill(self):
        for pid, _ in self.processes().values():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if self in self.shop.running:
            self.shop.running.remove(self)
        shutil.rmtree(self.data, ignore_errors=True)


class Hosts(Coterie):
    """Three nodes, each in a network namespace of its own on one bridge, so that a node's cable can be pulled. Needs root."""

    def __init__(self, shop, name):
        self.shop = shop
        self.data = shop.path(name)
        self.bridge = f"coterie-bench-{os.getpid()}"
        self.space = {f"node{i}": f"{self.bridge}-{i}" for i in range(3)}
        address = {f"node{i}": f"10.77.0.{i + 1}" for i in range(3)}
        self.queue = {node: f"{host}:11300" for node, host in address.items()}
        self.made = []
        shop.running.append(self)
        os.makedirs(self.data, mode=0o700)
        self.lay_cables(address)
        key = os.path.join(self.data, "cluster.key")
        subprocess.run([shop.coterie, "keygen", key], check=True, env=shop.environment, capture_output=True)
        for node, host in address.items():
            words = ["ip", "netns", "exec", self.space[node], shop.coterie, "agent", "--name", node, "--data",
                     os.path.join(self.data, node), "--bind", f"{host}:7630", "--key", key, "--expect", "3", "--queue", self.queue[node]]
            for other in address.values():
                words += ["--join", f"{other}:7630"] if other != host else []
            with open(shop.path("hosts.log"), "ab") as log:
                shop.start(*words, env=shop.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.wait("three nodes that agree", lambda: all(self.ask("status", node=n)["members"]["alive"] == 3 for n in address)
                  and self.leader("node0"))

    def ip(self, *words):
        subprocess.run(["ip", *words], check=True, capture_output=True, timeout=10)

    def lay_cables(self, address):
        for space in (self.bridge, *self.space.values()):
            self.ip("netns", "add", space)
            self.made.append(space)
            self.ip("-n", space, "link", "set", "lo", "up")
        self.ip("-n", self.bridge, "link", "add", "hub", "type", "bridge")
        self.ip("-n", self.bridge, "addr", "add", "10.77.0.254/24", "dev", "hub")
        self.ip("-n", self.bridge, "link", "set", "hub", "up")
        for node, space in self.space.items():
            self.ip("-n", self.bridge, "link", "add", node, "type", "veth", "peer", "name", "eth0", "netns", space)
            self.ip("-n", self.bridge, "link", "set", node, "master", "hub", "up")
            self.ip("-n", space, "addr", "add", f"{address[node]}/24", "dev", "eth0")
            self.ip("-n", space, "link", "set", "eth0", "up")

    def inside(self):
        """Words before a command that shall run on the bridge."""
        return ["ip", "netns", "exec", self.bridge]

    def cut(self, node):
        """The cable is pulled: what is sent is lost, and nobody is told."""
        self.ip("-n", self.bridge, "link", "set", node, "nomaster")

    def heal(self, node):
        self.ip("-n", self.bridge, "link", "set", node, "master", "hub")

    def stop(self):
        self.kill()

    def kill(self):
        super().kill()
        for space in self.made:
            subprocess.run(["ip", "netns", "del", space], capture_output=True, timeout=10)
        self.made = []


class Etcd:
    """Three members with etcd's defaults."""

    def __init__(self, shop, name):
        self.shop, self.name = shop, name
        ports = free_ports(6)
        self.clients = [f"127.0.0.1:{p}" for p in ports[:3]]
        self.peers = [f"http://127.0.0.1:{p}" for p in ports[3:]]
        self.endpoints = ",".join(self.clients)
        self.children = [None, None, None]
        shop.running.append(self)
        for i in range(3):
            self.start_again(i)
        end = time.monotonic() + 20
        while self.control("endpoint", "health").returncode:
            if time.monotonic() > end:
                raise RuntimeError("etcd did not become healthy in 20 s")
            time.sleep(0.1)

    def start_again(self, i):
        client = f"http://{self.clients[i]}"
        cluster = ",".join(f"e{j}={self.peers[j]}" for j in range(3))
        self.children[i] = subprocess.Popen(
            ["etcd", "--name", f"e{i}", "--data-dir", self.directories()[f"e{i}"], "--listen-client-urls", client,
             "--advertise-client-urls", client, "--listen-peer-urls", self.peers[i], "--initial-advertise-peer-urls",
             self.peers[i], "--initial-cluster", cluster], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def control(self, *words):
        return subprocess.run(["etcdctl", "--endpoints", self.endpoints, *words], capture_output=True, timeout=20,
                              env=dict(os.environ, ETCDCTL_API="3"))

    def status(self):
        return json.loads(self.control("endpoint", "status", "-w", "json").stdout)

    def leader(self):
        """The client address of the leader."""
        for one in self.status():
            if one["Status"]["leader"] == one["Status"]["header"]["member_id"]:
                return one["Endpoint"]
        raise RuntimeError("etcd has no leader")

    def term(self):
        return max(one["Status"]["raftTerm"] for one in self.status())

    def served_at(self, i, limit=60):
        """When a linearizable read is first answered by this member."""
        host, port = self.clients[i].rsplit(":", 1)
        body = b'{"key":"azAwMDAwMDAx"}'
        request = b"POST /v3/kv/range HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        end = time.monotonic() + limit
        while time.monotonic() < end:
            try:
                with socket.create_connection((host, int(port)), timeout=5) as connection:
                    connection.sendall(request)
                    if connection.recv(4096).startswith(b"HTTP/1.1 200"):
                        return time.monotonic()
            except OSError:
                pass
            time.sleep(0.002)
        raise RuntimeError(f"etcd served no read in {limit} s")

    def directories(self):
        return {f"e{i}": self.shop.path(f"{self.name}-e{i}") for i in range(3)}

    def stop(self):
        for child in self.children:
            child.terminate()
        for child in self.children:
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                pass
        self.kill()

    def kill(self):
        for child in self.children:
            if child and child.poll() is None:
                child.kill()
                child.wait()
        if self in self.shop.running:
            self.shop.running.remove(self)
        for directory in self.directories().values():
            shutil.rmtree(directory, ignore_errors=True)


class Beanstalkd:
    def __init__(self, shop, name):
        self.shop = shop
        self.port = free_ports(1)[0]
        directory = shop.path(name)
        os.makedirs(directory)
        shop.running.append(self)
        self.child = subprocess.Popen(["beanstalkd", "-l", "127.0.0.1", "-p", str(self.port), "-b", directory, "-f", "0"])
        end = time.monotonic() + 5
        while time.monotonic() < end:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                break
            except OSError:
                time.sleep(0.02)

    def stop(self):
        self.kill()

    def kill(self):
        self.child.kill()
        self.child.wait()
        if self in self.shop.running:
            self.shop.running.remove(self)


def memory(pid):
    """MiB: what the process alone holds, and all that is resident."""
    figures = {}
    for line in open(f"/proc/{pid}/status"):
        if line.startswith(("RssAnon", "VmRSS")):
            figures[line.split(":")[0]] = round(int(line.split()[1]) / 1024, 1)
    return figures


def processor_time(pid):
    """Seconds that the process has computed, in the kernel and out of it."""
    fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def disk(directory):
    """MiB that the files of a directory take on disk."""
    blocks = 0
    for place, _, files in os.walk(directory):
        for name in files:
            try:
                blocks += os.lstat(os.path.join(place, name)).st_blocks
            except FileNotFoundError:
                pass
    return round(blocks * 512 / 1048576, 1)
