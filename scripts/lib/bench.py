"""The measurements of scripts/bench."""
import argparse
import glob
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

parser = argparse.ArgumentParser()
parser.add_argument("--binaries", required=True)
parser.add_argument("--peers", required=True)
parser.add_argument("--kills", type=int, default=20)
parser.add_argument("--seconds", type=float, default=5)
parser.add_argument("--rounds", type=int, default=3)
options = parser.parse_args()
BIN = os.path.abspath(options.binaries)
PEERS = os.path.abspath(options.peers)
COTERIE = os.path.join(BIN, "coterie")
WORK = tempfile.mkdtemp(prefix="coterie-bench-", dir=os.environ.get("BENCH_DIRECTORY"))
ENV = dict(os.environ, HOME=WORK)


def note(text):
    print(text, file=sys.stderr, flush=True)


def build():
    bsload = os.path.join(WORK, "bsload")
    subprocess.run(["cc", "-O2", "-o", bsload, os.path.join(PEERS, "queues/bsload.c")], check=True)
    etcd_load = os.path.join(WORK, "etcd_load")
    environment = dict(os.environ, GO111MODULE="off", GOPATH="/usr/share/gocode", GOCACHE=os.path.join(WORK, "gocache"), GOFLAGS="")
    subprocess.run(["go", "build", "-o", etcd_load, os.path.join(PEERS, "etcd/etcd_load.go")], check=True, env=environment)
    return bsload, etcd_load


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Coterie:
    def __init__(self, name, nodes):
        self.data = os.path.join(WORK, name)
        begun = time.monotonic()
        out = open(os.path.join(WORK, name + ".out"), "wb")
        subprocess.run([COTERIE, "up", "--nodes", str(nodes), "--data", self.data, "--detach"], check=True, env=ENV, stdout=out, stderr=out)
        self.startup = time.monotonic() - begun
        lines = [json.loads(l) for l in open(os.path.join(WORK, name + ".out")) if l.startswith("{")]
        self.ready = [l for l in lines if l.get("ready")]
        self.queue = {l["name"]: l["queue"] for l in self.ready}

    def ask(self, *words, node=None):
        address = ["--address", f"unix:{self.data}/{node}/agent.sock"] if node else []
        done = subprocess.run([COTERIE, "--json", *address, *words], env=ENV, capture_output=True, timeout=20)
        return json.loads(done.stdout)

    def processes(self):
        found = {}
        for entry in glob.glob("/proc/[0-9]*/cmdline"):
            try:
                words = open(entry, "rb").read().split(b"\0")
            except OSError:
                continue
            if b"agent" in words and b"--name" in words and any(w.startswith(self.data.encode()) for w in words):
                found[words[words.index(b"--name") + 1].decode()] = (int(entry.split("/")[2]), [w.decode() for w in words if w])
        return found

    def stop(self):
        subprocess.run([COTERIE, "down", "--data", self.data], env=ENV, capture_output=True, timeout=60)


class Etcd:
    def __init__(self, name):
        ports = free_ports(6)
        peers = [f"http://127.0.0.1:{p}" for p in ports[3:]]
        cluster = ",".join(f"e{i}={peers[i]}" for i in range(3))
        self.children = []
        for i in range(3):
            client = f"http://127.0.0.1:{ports[i]}"
            self.children.append(subprocess.Popen(
                ["etcd", "--name", f"e{i}", "--data-dir", os.path.join(WORK, f"{name}{i}"), "--listen-client-urls", client,
                 "--advertise-client-urls", client, "--listen-peer-urls", peers[i], "--initial-advertise-peer-urls", peers[i],
                 "--initial-cluster", cluster], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        self.endpoints = ",".join(f"127.0.0.1:{p}" for p in ports[:3])
        end = time.monotonic() + 20
        while subprocess.run(["etcdctl", "--endpoints", self.endpoints, "endpoint", "health"], capture_output=True,
                             env=dict(os.environ, ETCDCTL_API="3")).returncode and time.monotonic() < end:
            time.sleep(0.2)

    def stop(self):
        for child in self.children:
            child.terminate()
        for child in self.children:
            child.wait()


class Beanstalkd:
    def __init__(self, name):
        self.port = free_ports(1)[0]
        directory = os.path.join(WORK, name)
        os.makedirs(directory)
        self.child = subprocess.Popen(["beanstalkd", "-l", "127.0.0.1", "-p", str(self.port), "-b", directory, "-f", "0"])
        end = time.monotonic() + 5
        while time.monotonic() < end:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                break
            except OSError:
                time.sleep(0.02)

    def stop(self):
        self.child.kill()
        self.child.wait()


def bsload(program, address, connections):
    done = subprocess.run([program, "-a", address, "-m", "put", "-c", str(connections), "-t", str(options.seconds), "-s", "256"],
                          capture_output=True, text=True)
    return json.loads(done.stdout)


def etcd_put(program, endpoints, clients):
    done = subprocess.run([program, "-eps", endpoints, "-op", "put", "-clients", str(clients), "-conns", str(clients),
                           "-secs", str(options.seconds), "-val", "256"], capture_output=True, text=True)
    return done.stdout.strip()


def memory(pid):
    figures = {}
    for line in open(f"/proc/{pid}/status"):
        if line.startswith(("RssAnon", "VmRSS")):
            figures[line.split(":")[0]] = int(line.split()[1]) / 1024
    return figures


def failover(cluster):
    """One writer on a surviving node's queue port puts one job after another; the gap is the longest time between two
    acknowledgements around the kill."""
    gaps = []
    for trial in range(options.kills):
        # A node that has just come back may know the leader's id before gossip tells its name.
        end = time.monotonic() + 20
        leader = cluster.ask("leader")["name"]
        while leader not in cluster.queue and time.monotonic() < end:
            time.sleep(0.1)
            leader = cluster.ask("leader")["name"]
        survivor = next(n for n in cluster.queue if n != leader)
        host, port = cluster.queue[survivor].rsplit(":", 1)
        connection = socket.create_connection((host, int(port)))
        connection.settimeout(15)
        times, stop = [], threading.Event()

        def write():
            while not stop.is_set():
                connection.sendall(b"put 0 0 60 4\r\ntest\r\n")
                reply = b""
                while not reply.endswith(b"\r\n"):
                    got = connection.recv(256)
                    if not got:
                        return
                    reply += got
                times.append(time.monotonic())
        thread = threading.Thread(target=write, daemon=True)
        thread.start()
        time.sleep(0.5)
        pid, words = cluster.processes()[leader]
        killed = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        time.sleep(2.5)
        stop.set()
        thread.join()
        connection.close()
        around = [t for t in times if t >= killed - 0.2]
        gaps.append(1000 * max((b - a for a, b in zip(around, around[1:])), default=float("inf")))
        note(f"  kill {trial + 1}: {leader} gone, gap {gaps[-1]:.1f} ms")
        log = open(os.path.join(WORK, "again.log"), "ab")
        subprocess.Popen(words, env=ENV, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                if all(m["state"] == "alive" for m in cluster.ask("members", node=survivor)["members"]) and cluster.ask("status", node=leader)["leader"]:
                    break
            except (json.JSONDecodeError, KeyError, subprocess.TimeoutExpired):
                pass
            time.sleep(0.2)
    return gaps


def main():
    program, etcd_program = build()
    report = {"machine": f"{os.cpu_count()} cores, {platform.release()}", "load": os.getloadavg(),
              "coterie": subprocess.run([COTERIE, "version"], capture_output=True, text=True, env=ENV).stdout.strip(),
              "etcd": subprocess.run(["etcd", "--version"], capture_output=True, text=True).stdout.split("\n")[0],
              "beanstalkd": subprocess.run(["beanstalkd", "-v"], capture_output=True, text=True).stdout.strip(), "puts": []}
    for turn in range(options.rounds):
        for connections in (1, 16):
            cluster = Coterie(f"c{turn}-{connections}", 3)
            leader = cluster.ask("leader")["name"]
            follower = next(n for n in cluster.queue if n != leader)
            for place, name in (("leader", leader), ("follower", follower)):
                figures = bsload(program, cluster.queue[name], connections)
                report["puts"].append({"system": f"coterie 3 nodes, through the {place}", "connections": connections, "figures": figures})
                note(f"coterie via {place}, {connections} connections: {json.dumps(figures)[:200]}")
            cluster.stop()
            beanstalkd = Beanstalkd(f"b{turn}-{connections}")
            figures = bsload(program, f"127.0.0.1:{beanstalkd.port}", connections)
            report["puts"].append({"system": "beanstalkd -b -f 0, one node", "connections": connections, "figures": figures})
            note(f"beanstalkd, {connections}: {json.dumps(figures)[:200]}")
            beanstalkd.stop()
            etcd = Etcd(f"e{turn}-{connections}-")
            text = etcd_put(etcd_program, etcd.endpoints, connections)
            report["puts"].append({"system": "etcd 3 nodes", "connections": connections, "figures": text})
            note(f"etcd, {connections}: {text}")
            etcd.stop()
    starts = []
    for i in range(5):
        cluster = Coterie(f"s{i}", 3)
        starts.append(1000 * cluster.startup)
        if i < 4:
            cluster.stop()
    report["startup_milliseconds_3_nodes"] = {"median": statistics.median(starts), "max": max(starts)}
    time.sleep(3)
    report["idle_memory_MiB"] = {name: memory(pid) for name, (pid, _) in cluster.processes().items()}
    note(f"start-up {report['startup_milliseconds_3_nodes']}, idle memory {report['idle_memory_MiB']}")
    try:
        gaps = failover(cluster)
    finally:
        cluster.stop()
    report["failover_gap_milliseconds"] = {"kills": len(gaps), "min": min(gaps), "median": statistics.median(gaps), "max": max(gaps), "all": [round(g, 1) for g in gaps]}
    print(json.dumps(report, indent=1))
    shutil.rmtree(WORK, ignore_errors=True)


main()
