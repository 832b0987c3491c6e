"""The measurements of scripts/bench-consensus."""
import argparse
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
import traceback

from clusters import ROOT, Coterie, Etcd, Hosts, Workshop, disk, memory, note, processor_time
from consensus_goals import judge

CLIENTS = (1, 16, 128, 1024)


def etcd_connections(clients):
    return min(clients, 64)


class RowTimeout(Exception):
    pass


class Bench:
    def __init__(self, shop, options):
        self.shop, self.options = shop, options
        self.load = shop.compile_c(os.path.join(ROOT, "Benchmarks/queueload.c"), "-Wall")
        self.bound = shop.compile_c(os.path.join(shop.peers, "raft-bound/group_commit.c"), "-msse4.2", "-w")
        self.etcd_load = shop.compile_go(os.path.join(shop.peers, "etcd/etcd_load.go"))
        self.etcd_failover = shop.compile_go(os.path.join(shop.peers, "etcd/etcd_failover.go"))
        self.libraft_program = None
        self.serial = 0

    # Loads: each gives {"rate", "p50", "p99", "p999"}, per second and in milliseconds.

    def queue_load(self, mode, addresses, connections, depth=1, count=0, size=256, seconds=None):
        seconds = seconds or self.options.seconds
        words = [self.load, mode, "-a", addresses, "-c", str(connections), "-d", str(depth), "-s", str(size)]
        words += ["-n", str(count), "-t", "600"] if count else ["-t", str(seconds)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=660 if count else seconds + 40)
        if done.returncode:
            raise RuntimeError(f"queueload {mode} {connections}x{depth}: {done.stderr.strip()}")
        return json.loads(done.stdout)

    def etcd_run(self, op, endpoints, clients, connections=None, count=0, size=256, seconds=None):
        seconds = seconds or self.options.seconds
        words = [self.etcd_load, "-eps", endpoints, "-op", op, "-clients", str(clients), "-conns",
                 str(connections or etcd_connections(clients)), "-secs", str(seconds), "-val", str(size), "-total", str(count)]
        text = subprocess.run(words, capture_output=True, text=True, timeout=660 if count else seconds + 40).stdout
        found = re.search(r"n=(\d+) errs=(\d+) .*rate=(\d+)/s p50=([\d.]+)ms p90=[\d.]+ p99=([\d.]+) p999=([\d.]+) max=([\d.]+)", text)
        if not found:
            raise RuntimeError(f"etcd_load {op} {clients}: {text.strip()}")
        n, errors, rate, p50, p99, p999, longest = map(float, found.groups())
        return {"rate": rate, "p50": p50, "p99": p99, "p999": p999, "max": longest, "done": int(n), "failed": int(errors)}

    def bound_run(self, connections, window):
        done = subprocess.run([self.bound, "2", str(connections), str(window), str(min(self.options.seconds, 3))],
                              cwd=self.shop.directory, capture_output=True, text=True, timeout=60, start_new_session=True)
        rate, p50, p99 = re.search(r"rate=(\d+)/s p50=(\d+)us p99=(\d+)us", done.stdout).groups()
        return {"rate": float(rate), "p50": float(p50) / 1000, "p99": float(p99) / 1000}

    def libraft_run(self, *words, limit):
        """Benchmarks/libraft.c starts and ends its own nodes."""
        self.serial += 1
        directory = self.shop.path(f"r{self.serial}")
        os.mkdir(directory)
        child = self.shop.start(self.libraft_program, words[0], "-d", directory, *words[1:], stdout=subprocess.PIPE, text=True)
        text, _ = child.communicate(timeout=limit)
        shutil.rmtree(directory)
        if child.returncode:
            raise RuntimeError(f"libraft {' '.join(words)}: exit {child.returncode}")
        return json.loads(text)

    def libraft_load(self, clients, words):
        seconds = self.options.seconds
        for attempt in range(3):
            try:
                return self.libraft_run("load", "-c", str(clients), "-t", str(seconds), *words, limit=seconds + 60)
            except RuntimeError as error:
                # Most likely its leader has changed, on a machine that others use too: what was refused is no measure of a load.
                if attempt == 2:
                    raise
                note(f"  {error}; again")

    def coterie(self):
        self.serial += 1
        return Coterie(self.shop, f"c{self.serial}")

    def etcd(self):
        self.serial += 1
        return Etcd(self.shop, f"e{self.serial}")

    # Rows.

    def puts(self):
        figures = Figures()
        places = ("any",) if self.options.quick else ("any", "leader")

        def ours(name, where, connections, depth):
            cluster = self.coterie()
            addresses = cluster.addresses(*([cluster.leader()] if where == "leader" else []))
            figures.take(f"coterie {where} {name}", self.queue_load("put", addresses, connections, depth))
            cluster.stop()

        def theirs(name, where, clients, connections):
            etcd = self.etcd()
            endpoints = etcd.leader() if where == "leader" else etcd.endpoints
            figures.take(f"etcd {where} {name}", self.etcd_run("put", endpoints, clients, connections))
            etcd.stop()
        for _ in range(self.options.rounds):
            for clients in CLIENTS:
                shared = etcd_connections(clients)
                for where in places:
                    ours(clients, where, shared, clients // shared)
                    theirs(clients, where, clients, shared)
                if clients > shared:
                    ours(f"{clients}, {clients} connections", "any", clients, 1)
                figures.take(f"bound {clients}", self.bound_run(clients, 1))
            for where in places:
                ours("16x64", where, 16, 64)
                theirs("16x64", where, 1024, 16)
            figures.take("bound 16x64", self.bound_run(16, 64))
        return figures.document()

    def reads(self):
        figures = Figures()
        for _ in range(self.options.rounds):
            cluster = self.coterie()
            leader = cluster.leader()
            follower = next(n for n in cluster.queue if n != leader)
            places = (
                ("any", cluster.addresses()), ("leader", cluster.addresses(leader)), ("follower", cluster.addresses(follower)))
            for place, addresses in places[:1] if self.options.quick else places:
                figures.take(f"coterie {place} 1", self.queue_load("peek", addresses, 1))
                figures.take(f"coterie {place} 128", self.queue_load("peek", addresses, 64, 2))
            figures.take("coterie any 128, 128 connections", self.queue_load("peek", cluster.addresses(), 128))
            cluster.stop()
            etcd = self.etcd()
            for place, endpoints in (("any", etcd.endpoints), ("leader", etcd.leader()))[:1 if self.options.quick else 2]:
                for clients in (1, 128):
                    figures.take(f"etcd {place} {clients}", self.etcd_run("get", endpoints, clients))
            etcd.stop()
        return figures.document()

    def kill(self):
        cluster = self.coterie()
        gaps = []
        for trial in range(self.options.trials):
            leader = cluster.leader()
            pid = cluster.pid(leader)
            # Writers of its own for each trial, so that every node has three when the leader dies.
            with Watch(self, cluster, deadline=self.options.deadline) as watch:
                at = time.monotonic_ns()
                os.kill(pid, signal.SIGKILL)
                gaps.append(watch.gap_after(at, 1.0))
            note(f"  kill {trial + 1}: {leader}, gap {gaps[-1]:.1f} ms")
            cluster.start_again(leader)
            cluster.served_at(leader)
            time.sleep(0.7)
        cluster.stop()
        return {"coterie": spread(gaps), "etcd": self.etcd_gaps("kill", 6)}

    def freeze(self):
        """The leader's process gets SIGSTOP for 1.5 s: its connections stay, and say nothing."""
        cluster = self.coterie()
        gaps = []
        for trial in range(max(2, self.options.trials // 4)):
            leader = cluster.leader()
            pid = cluster.pid(leader)
            with Watch(self, cluster, deadline=self.options.deadline) as watch:
                at = time.monotonic_ns()
                os.kill(pid, signal.SIGSTOP)
                try:
                    gaps.append(watch.gap_after(at, 1.5))
                finally:
                    os.kill(pid, signal.SIGCONT)
            note(f"  stop {trial + 1}: {leader}, gap {gaps[-1]:.1f} ms")
            cluster.served_at(leader)
            time.sleep(0.7)
        cluster.stop()
        return {"coterie": spread(gaps), "etcd": self.etcd_gaps("stop", 3)}

    def cut(self):
        """The leader's cable is pulled for 1.5 s, between namespaces: nothing arrives, and nothing says so."""
        if os.geteuid() != 0:
            return {"not_measured": "network namespaces need root"}
        self.serial += 1
        cluster = Hosts(self.shop, f"h{self.serial}")
        gaps = []
        for trial in range(max(2, self.options.trials // 4)):
            leader = cluster.leader()
            other = next(n for n in sorted(cluster.queue) if n != leader)
            with Watch(self, cluster, deadline=self.options.deadline, before=cluster.inside()) as watch:
                at = time.monotonic_ns()
                cluster.cut(leader)
                try:
                    gaps.append(watch.gap_after(at, 1.5))
                finally:
                    cluster.heal(leader)
            note(f"  cut {trial + 1}: {leader}, gap {gaps[-1]:.1f} ms")
            cluster.wait("the old leader back", lambda: cluster.ask("status", node=leader)["leader"]["name"]
                         == cluster.ask("status", node=other)["leader"]["name"] != leader
                         and cluster.ask("status", node=other)["members"]["alive"] == 3)
            time.sleep(0.7)
        cluster.stop()
        return {"coterie": spread(gaps)}

    def etcd_gaps(self, what, trials):
        """etcd_failover.go: nine writers and 2 ms of pause, as ours; a deadline of 100 ms."""
        trials = 1 if self.options.quick else trials
        directory = self.shop.path(f"etcd-{what}")
        child = self.shop.start(self.etcd_failover, "-trials", str(trials), "-sig", what, "-dir", directory, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            text, _ = child.communicate(timeout=20 + 8 * trials)
        except BaseException:
            # Its servers are children of its own.
            os.killpg(child.pid, signal.SIGKILL)
            raise
        gaps = [float(g) for g in re.findall(r"gap=(\d+)ms", text)]
        note(f"  etcd, {what}: {gaps}")
        return spread(gaps)

    def handover(self):
        cluster = self.coterie()
        result = {}
        stops = max(2, self.options.trials // 5)
        for what, trials in (("transfer", self.options.trials), ("sigterm", stops), ("sigterm_follower", stops)):
            gaps, failed = [], 0
            for _ in range(trials):
                # New writers each time, three on each node: those of a node that stops go to another one for good.
                with Watch(self, cluster, pause=1, deadline=2000, threshold=1.5) as watch:
                    leader = cluster.leader()
                    victim = next(n for n in sorted(cluster.queue) if (n == leader) == (what == "sigterm"))
                    time.sleep(0.2)
                    at = time.monotonic_ns()
                    if what == "transfer":
                        cluster.ask("transfer")
                        gaps.append(watch.gap_after(at, 0.4))
                    else:
                        os.kill(cluster.pid(victim), signal.SIGTERM)
                        gaps.append(watch.gap_after(at, 1.0))
                        cluster.wait("the end of a node", lambda: victim not in cluster.processes())
                    failed += watch.failed()
                if what != "transfer":
                    cluster.start_again(victim)
                    cluster.served_at(victim)
                    time.sleep(0.7)
            result[what] = {**spread(gaps), "failed_commands": failed}
            note(f"  {what}: {result[what]}")
        cluster.stop()
        return {"coterie": result}

    def overload(self):
        """Three busy loops of nice 0 for each core, beside one client that puts."""
        seconds, result = 60 * self.options.minutes, {}
        for system in ("coterie", "etcd"):
            cluster = self.coterie() if system == "coterie" else self.etcd()
            term = (lambda: cluster.ask("status", node="node0")["term"]) if system == "coterie" else cluster.term
            before = term()
            burners = [self.shop.start("sh", "-c", "while :; do :; done") for _ in range(3 * (os.cpu_count() or 1))]
            try:
                if system == "coterie":
                    figures = self.queue_load("put", cluster.addresses(), 1, seconds=seconds)
                else:
                    figures = self.etcd_run("put", cluster.endpoints, 1, seconds=seconds)
            finally:
                for burner in burners:
                    burner.kill()
                    burner.wait()
            result[system] = {"minutes": self.options.minutes, "term_changes": term() - before, **short(figures)}
            note(f"  {system}: {result[system]}")
            cluster.stop()
        return result

    def memory(self):
        result = {}
        for system in ("coterie", "etcd"):
            cluster = self.coterie() if system == "coterie" else self.etcd()
            time.sleep(1 if self.options.quick else 2)

            def pids():
                return [pid for pid, _ in cluster.processes().values()] if system == "coterie" else [c.pid for c in cluster.children]
            idle = [memory(pid) for pid in pids()]
            if system == "coterie":
                self.queue_load("put", cluster.addresses(), 128, count=100_000)
            else:
                self.etcd_run("put", cluster.endpoints, 128, count=100_000)
            time.sleep(1 if self.options.quick else 3)
            full = [memory(pid) for pid in pids()]
            result[system] = {"idle_MiB": idle, "after_100k_MiB": full, "disk_MiB": [disk(d) for d in cluster.directories().values()]}
            note(f"  {system}: {result[system]}")
            cluster.stop()
        return result

    def restart(self):
        result = {}
        for count in (100_000, 1_000_000) if self.options.million else (100_000,):
            for system in ("coterie", "etcd"):
                cluster = self.coterie() if system == "coterie" else self.etcd()
                if system == "coterie":
                    self.queue_load("put", cluster.addresses(), 128, count=count, size=64)
                    nodes, leader = sorted(cluster.queue), cluster.leader()
                    one = next(n for n in nodes if n != leader)
                    pid = cluster.pid
                else:
                    self.etcd_run("put", cluster.endpoints, 128, count=count, size=64)
                    nodes, leader = [0, 1, 2], cluster.clients.index(cluster.leader())
                    one = (leader + 1) % 3
                    pid = lambda i: cluster.children[i].pid
                time.sleep(1)
                times = {}
                for what, which in (("one follower", [one]), ("all three", nodes)):
                    taken = []
                    for _ in range(1 if self.options.quick else 3):
                        for n in which:
                            os.kill(pid(n), signal.SIGKILL)
                        time.sleep(0.5)
                        begun = time.monotonic()
                        for n in which:
                            cluster.start_again(n)
                        taken.append(round(1000 * (cluster.served_at(which[0]) - begun), 1))
                        time.sleep(1)
                    times[what] = {"median": statistics.median(taken), "all": taken}
                note(f"  {system}, {count} writes: {times}")
                result[f"{system} {count}"] = {"milliseconds": times, "after_MiB": memory(pid(one))}
                cluster.stop()
        return result

    def libraft(self):
        """canonical's C Raft, which forwards nothing: every client has a connection of its own to the leader, with both. "tuned" has
        what the library leaves to its user: the commands of one turn handed over together, TCP_NODELAY between the nodes, snapshots as
        rare as Coterie's; for the kill, Coterie's time-outs instead."""
        if not os.path.exists("/usr/include/raft/uv.h"):
            return {"not_measured": "libraft-dev is not installed: scripts/install-packages bench does, where Debian has it"}
        self.libraft_program = self.shop.compile_c(os.path.join(ROOT, "Benchmarks/libraft.c"), "-Wall", "-Wextra", libraries=("raft", "uv"))
        kinds = {"libraft": (), "libraft-tuned": ("-b", "-N", "-S", "50000")}
        figures = Figures()
        for _ in range(self.options.rounds):
            for clients in CLIENTS:
                for kind, words in kinds.items():
                    figures.take(f"{kind} leader {clients}", self.libraft_load(clients, words))
                cluster = self.coterie()
                addresses, pids = cluster.addresses(cluster.leader()), [pid for pid, _ in cluster.processes().values()]
                before = sum(map(processor_time, pids))
                load = self.queue_load("put", addresses, clients)
                load["cpu_us"] = round(1e6 * (sum(map(processor_time, pids)) - before) / load["done"], 1)
                figures.take(f"coterie leader {clients}", load)
                cluster.stop()
        trials = 1 if self.options.quick else 6
        gaps = {}
        for kind, words in {"libraft": (), "libraft-tuned": ("-e", "250", "-h", "50")}.items():
            gaps[kind] = spread(self.libraft_run("kill", "-n", str(trials), *words, limit=60 + 30 * trials)["gaps"])
            note(f"  {kind}, kill: {gaps[kind]['all']}")
        return {**figures.document(), "kill": gaps}

    def core(self):
        places = [os.path.join(place, "consensus-rate") for place in (self.shop.binaries, os.path.join(ROOT, ".build/release"))]
        program = next((p for p in places if os.access(p, os.X_OK)), None)
        if not program:
            return {"not_measured": f"{places[0]} is not there: scripts/bench-consensus --build builds it"}
        done = subprocess.run([program, str(1 if self.options.quick else 3)], capture_output=True, text=True, timeout=60, check=True)
        result = json.loads(done.stdout)
        note(f"  {result}")
        return result


class Watch:
    """queueload watch: nine writers, three on each node, that retry; and the gaps between their acknowledgements."""

    def __init__(self, bench, cluster, deadline, pause=2, threshold=3, before=()):
        self.lines = open(bench.shop.path("watch.out"), "w+b")
        self.words = [*before, bench.load, "watch", "-a", cluster.addresses(), "-c", "9", "-p", str(pause),
                      "-w", str(deadline), "-g", str(threshold)]
        self.threshold, self.shop = threshold, bench.shop

    def __enter__(self):
        self.child = self.shop.start(*self.words, stdin=subprocess.PIPE, stdout=self.lines)
        time.sleep(0.5)
        return self

    def __exit__(self, *_):
        self.child.stdin.close()
        try:
            self.child.wait(5)
        except subprocess.TimeoutExpired:
            self.child.kill()
        self.lines.close()

    def read(self):
        if self.child.poll() is not None:
            raise RuntimeError("the writers ended")
        return open(self.lines.name, encoding="ascii").read().split("\n")[:-1]

    def failed(self):
        return sum(line.startswith("fail ") for line in self.read())

    def gap_after(self, at, seconds):
        """The longest time without an acknowledgement that ended after `at` and began within `seconds` of it, in milliseconds.
        Gaps under the threshold are not told: they count as it."""
        until = at + int(seconds * 1e9)
        time.sleep(max(0.0, (until - time.monotonic_ns()) / 1e9))
        end = time.monotonic() + 20
        while time.monotonic() < end:
            lines = [line.split() for line in self.read()]
            # An acknowledgement after the window: every gap that counts has ended.
            if any(line[0] in ("at", "gap") and int(line[-1]) > until for line in lines):
                gaps = [(int(line[1]), int(line[2])) for line in lines if line[0] == "gap"]
                longest = max((to - begun for begun, to in gaps if to > at and begun < until), default=0)
                return round(max(longest / 1e6, self.threshold), 2)
            time.sleep(0.02)
        raise RuntimeError("no write was acknowledged for 20 s")


def spread(gaps):
    ordered = sorted(gaps)

    def at(share):
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
    return {"trials": len(gaps), "min": ordered[0], "median": statistics.median(ordered), "p90": at(0.9), "p99": at(0.99),
            "max": ordered[-1], "all": gaps}


def short(figures):
    return {key: figures[key] for key in ("rate", "p50", "p99", "p999", "max", "cpu_us") if key in figures}


class Figures:
    """Runs of several systems under names "SYSTEM PLACE CLIENTS"."""

    def __init__(self):
        self.runs = {}

    def take(self, name, figures):
        self.runs.setdefault(name, []).append(short(figures))
        cost = f", {figures['cpu_us']} us of processor time each" if "cpu_us" in figures else ""
        note(f"  {name}: {figures['rate']:.0f}/s, p50 {figures['p50']:.2f}, p99 {figures['p99']:.2f} ms{cost}")

    def document(self):
        medians = {name: {key: round(statistics.median(r[key] for r in runs), 3) for key in runs[0]} for name, runs in self.runs.items()}
        ratios = {}
        for name, figures in medians.items():
            if not name.startswith("coterie "):
                continue
            place, clients = re.match(r"coterie (\S+) ([^,]+)", name).groups()
            for peer in (f"etcd {place} {clients}", f"etcd any {clients}", f"bound {clients}", f"libraft {place} {clients}",
                         f"libraft-tuned {place} {clients}"):
                if peer in medians and not (peer.startswith("etcd any") and place == "any" and peer in ratios.get(name, {})):
                    ratios.setdefault(name, {})[peer] = {
                        "rate": round(figures["rate"] / medians[peer]["rate"], 3), "p50": round(figures["p50"] / medians[peer]["p50"], 3)}
        return {"medians": medians, "ratios": ratios, "runs": self.runs}


# Seconds that a row may take before it is given up: generous, for a machine that others use too.
ROWS = {"puts": 900, "reads": 300, "core": 60, "kill": 600, "freeze": 240, "cut": 240, "handover": 360, "overload": 120,
        "memory": 180, "restart": 900, "libraft": 600}


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench-consensus")
    parser.add_argument("--binaries", required=True)
    parser.add_argument("--peers", required=True)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--trials", type=int)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--deadline", type=float, default=2000)
    parser.add_argument("--million", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--gates", action="store_true")
    options = parser.parse_args()
    for name, usual, quick in (("seconds", 3, 1), ("rounds", 2, 1), ("trials", 50, 5), ("minutes", 0.5, 0.05)):
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else usual)
    wanted = options.rows.split(",")
    for row in wanted:
        if row not in ROWS:
            parser.error(f"--rows {row}: known are {','.join(ROWS)}")

    def ended(number, _):
        raise RowTimeout() if number == signal.SIGALRM else SystemExit(128 + number)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, ended)
    report = {"machine": f"{os.cpu_count()} cores, {platform.machine()}", "kernel": platform.release(), "load_before": os.getloadavg(),
              "settings": {name: getattr(options, name) for name in ("seconds", "rounds", "trials", "minutes", "deadline")}}
    shop = Workshop(options.binaries, options.peers)
    broken = []
    try:
        report["versions"] = shop.versions()
        note(f"{report['machine']}, load {report['load_before']}, {report['versions']}")
        bench = Bench(shop, options)
        report["rows"] = rows = {}
        for row in wanted:
            begun = time.monotonic()
            note(f"== {row}")
            signal.alarm(int(ROWS[row] + (120 * options.minutes if row == "overload" else 0)))
            try:
                rows[row] = getattr(bench, row)()
            except (Exception, RowTimeout) as error:
                signal.alarm(0)
                traceback.print_exc()
                rows[row] = {"broken": f"{type(error).__name__}: {error}"}
                broken.append(row)
            finally:
                signal.alarm(0)
                shop.stop_all()
            rows[row]["took_seconds"] = round(time.monotonic() - begun, 1)
            rows[row]["load_after"] = os.getloadavg()
        report["goals"] = judge(rows)
        report["gates"] = {g["what"]: "pass" if g["met"] else "fail" for g in report["goals"] if g["gate"]}
        report["broken"] = broken
    finally:
        signal.alarm(0)
        shop.close()
    for goal in report["goals"]:
        word = ("ok  " if goal["met"] else "MISS") + (" GATE " if goal["gate"] else "      ")
        note(f"{word}{goal['what']}: {goal['value']:g} ({goal['goal']})")
    print(json.dumps(report, indent=1))
    if broken:
        return 1
    return 3 if options.gates and "fail" in report["gates"].values() else 0


if __name__ == "__main__":
    sys.exit(main())
