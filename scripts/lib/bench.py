"""The measurements of scripts/bench."""
import argparse
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import threading
import time

from clusters import Beanstalkd, Coterie, Etcd, Workshop, memory, note

parser = argparse.ArgumentParser()
parser.add_argument("--binaries", required=True)
parser.add_argument("--peers", required=True)
parser.add_argument("--kills", type=int, default=20)
parser.add_argument("--seconds", type=float, default=5)
parser.add_argument("--rounds", type=int, default=3)
options = parser.parse_args()


def bsload(program, address, connections):
    done = subprocess.run([program, "-a", address, "-m", "put", "-c", str(connections), "-t", str(options.seconds), "-s", "256"],
                          capture_output=True, text=True)
    return json.loads(done.stdout)


def etcd_put(program, endpoints, clients):
    done = subprocess.run([program, "-eps", endpoints, "-op", "put", "-clients", str(clients), "-conns", str(clients),
                           "-secs", str(options.seconds), "-val", "256"], capture_output=True, text=True)
    return done.stdout.strip()


def failover(cluster):
    """One writer on a surviving node's queue port puts one job after another; the gap is the longest time between two
    acknowledgements around the kill."""
    gaps = []
    for trial in range(options.kills):
        leader = cluster.leader()
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
        pid = cluster.pid(leader)
        killed = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        time.sleep(2.5)
        stop.set()
        thread.join()
        connection.close()
        around = [t for t in times if t >= killed - 0.2]
        gaps.append(1000 * max((b - a for a, b in zip(around, around[1:])), default=float("inf")))
        note(f"  kill {trial + 1}: {leader} gone, gap {gaps[-1]:.1f} ms")
        cluster.start_again(leader)
        cluster.wait("all nodes back", lambda: all(m["state"] == "alive" for m in cluster.ask("members", node=survivor)["members"])
                     and cluster.ask("status", node=leader)["leader"])
    return gaps


def measure(shop):
    program = shop.compile_c(os.path.join(shop.peers, "queues/bsload.c"))
    etcd_program = shop.compile_go(os.path.join(shop.peers, "etcd/etcd_load.go"))
    report = {"machine": f"{os.cpu_count()} cores, {platform.release()}", "load": os.getloadavg(),
              **shop.versions(), "puts": []}
    for turn in range(options.rounds):
        for connections in (1, 16):
            cluster = Coterie(shop, f"c{turn}-{connections}")
            leader = cluster.leader()
            follower = next(n for n in cluster.queue if n != leader)
            for place, name in (("leader", leader), ("follower", follower)):
                figures = bsload(program, cluster.queue[name], connections)
                report["puts"].append({"system": f"coterie 3 nodes, through the {place}", "connections": connections, "figures": figures})
                note(f"coterie via {place}, {connections} connections: {json.dumps(figures)[:200]}")
            cluster.stop()
            beanstalkd = Beanstalkd(shop, f"b{turn}-{connections}")
            figures = bsload(program, f"127.0.0.1:{beanstalkd.port}", connections)
            report["puts"].append({"system": "beanstalkd -b -f 0, one node", "connections": connections, "figures": figures})
            note(f"beanstalkd, {connections}: {json.dumps(figures)[:200]}")
            beanstalkd.stop()
            etcd = Etcd(shop, f"e{turn}-{connections}")
            text = etcd_put(etcd_program, etcd.endpoints, connections)
            report["puts"].append({"system": "etcd 3 nodes", "connections": connections, "figures": text})
            note(f"etcd, {connections}: {text}")
            etcd.stop()
    starts = []
    for i in range(5):
        cluster = Coterie(shop, f"s{i}")
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


signal.signal(signal.SIGTERM, lambda *_: exit(143))
workshop = Workshop(options.binaries, options.peers)
try:
    measure(workshop)
finally:
    workshop.close()
