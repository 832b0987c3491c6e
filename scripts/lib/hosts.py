"""Hosts as network namespaces on one bridge, a coterie agent in each: see scripts/hosts and docs/hosts.md.

Nothing of the machine's own network is touched: the bridge lives in a namespace of its own, so every run has the same
addresses (10.20.0.0/24, those of cluster-configs/hosts) and runs beside others. What a run has made stands in hosts.json of
its directory before it is made, so that `down` finds it however the run ended; processes are remembered by pid and start
time, so that a pid that was used again is nobody's.
"""

import argparse
import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time

NETWORK = "10.20.0."
PORT = 7630
MOST = 64
REGISTER = "/run/coterie-hosts"
DEFAULT_DIR = "/var/tmp/coterie-hosts"

USAGE = """\
scripts/hosts COMMAND [--dir DIR]     hosts as network namespaces on one bridge, a coterie agent in each; needs root

  up N [--binary PATH] [--no-agents] [--tmpfs SIZE]
                       makes hosts h1 to hN (10.20.0.11 and on), starts an agent in each, waits until all agree, and prints
                       a JSON line for each host. --no-agents: the hosts alone. --tmpfs: the data of each host on a file
                       system of that size
  status               a JSON line for each host: its agent, and what of the network does not reach it
  exec HOST -- CMD…    runs CMD in the host's network, with COTERIE_ADDRESS and COTERIE_KEY_FILE of its agent
  kill HOST… [--signal NAME]
                       SIGKILL (or TERM, …) to the agents, and waits for their end
  start HOST…          starts the agents again, on their data, and waits for their ready lines
  stop HOST… · cont HOST…
                       SIGSTOP · SIGCONT
  cut GROUP [GROUP…]   no packet passes between the groups; one group alone is cut from all other hosts
  one-way FROM TO      packets from FROM to TO are lost; those from TO to FROM are not
  heal [HOST…]         ends all cuts, or those of the hosts named
  down                 ends the agents, removes hosts, bridge and DIR

HOST is h1 or 1; a GROUP is a list such as h1,h2. Cuts add up until `heal`. DIR is {default} unless it is given; two runs
with two directories do not touch each other. PATH is the program `coterie`: COTERIE_BINARIES, else .build/release, else
.build/debug.

  scripts/hosts cut h1              h1 is alone            scripts/hosts cut h1,h2 h3,h4,h5    two sides
  scripts/hosts cut h1 h2           only h1 and h2 can not reach each other
  scripts/hosts one-way h1 h2,h3    what h1 says is not heard

Exit codes: 0 done · 1 failed · 2 bad usage · 4 no such host or no hosts here · 6 not within the time; exec: those of CMD.
""".format(default=DEFAULT_DIR)


class Failure(Exception):
    """What failed, why, and what to do; with an exit code."""

    def __init__(self, text, code=1):
        super().__init__(text)
        self.code = code


def run(words, **more):
    """A program of the system that must succeed."""
    done = subprocess.run(words, capture_output=True, text=True, **more)
    if done.returncode != 0:
        raise Failure(f"{' '.join(words)}: {(done.stderr or done.stdout).strip() or done.returncode}")
    return done.stdout


# --- Processes by pid and start time


def start_time(pid):
    """The kernel's start time of a process in ticks, None if it is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def is_running(process):
    return process is not None and start_time(process["pid"]) == process["started"]


def process_state(process):
    if not is_running(process):
        return "ended"
    with open(f"/proc/{process['pid']}/stat") as file:
        return "stopped" if file.read().rpartition(")")[2].split()[0] in "Tt" else "running"


def send(process, number):
    if is_running(process):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process["pid"], number)


def await_end(process, seconds):
    deadline = time.monotonic() + seconds
    while is_running(process):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


# --- One run


class Hosts:
    """The hosts of one directory. All changes go through `save`, before what they announce is made."""

    def __init__(self, directory, state):
        self.directory = directory
        self.state = state

    @classmethod
    def load(cls, directory):
        try:
            with open(os.path.join(directory, "hosts.json")) as file:
                return cls(directory, json.load(file))
        except FileNotFoundError:
            raise Failure(f"there are no hosts in {directory} (make some: scripts/hosts up 3)", 4) from None
        except ValueError as error:
            raise Failure(f"{directory}/hosts.json can not be read: {error}") from None

    def save(self):
        path = os.path.join(self.directory, "hosts.json")
        with open(path + ".new", "w") as file:
            json.dump(self.state, file, indent=1)
        os.replace(path + ".new", path)

    @property
    def names(self):
        return list(self.state["hosts"])

    def host(self, name):
        key = name if name.startswith("h") else "h" + name
        if key not in self.state["hosts"]:
            raise Failure(f"there is no host {name} here: {', '.join(self.names)}", 4)
        return self.state["hosts"][key]

    def group(self, text):
        return [self.host(part.strip())["name"] for part in text.split(",") if part.strip()]

    # Names

    def namespace(self, name):
        return f"coterie-{self.state['tag']}-{name}"

    @property
    def switch(self):
        return f"coterie-{self.state['tag']}-switch"

    def inside(self, namespace, words):
        """The words of a command that runs in a namespace."""
        return ["nsenter", f"--net=/run/netns/{namespace}"] + words

    # Network

    def make_network(self):
        run(["ip", "netns", "add", self.switch])
        ip = ["ip", "-n", self.switch]
        run(ip + ["link", "add", "bridge", "type", "bridge"])
        run(ip + ["link", "set", "bridge", "up"])
        for name, host in self.state["hosts"].items():
            namespace = self.namespace(name)
            run(["ip", "netns", "add", namespace])
            # Both ends are made in namespaces of this run: no name of the machine's own network is used.
            run(ip + ["link", "add", f"port-{name}", "type", "veth", "peer", "name", "eth0", "netns", namespace])
            run(ip + ["link", "set", f"port-{name}", "master", "bridge"])
            run(ip + ["link", "set", f"port-{name}", "up"])
            inside = ["ip", "-n", namespace]
            run(inside + ["addr", "add", f"{host['ip']}/24", "dev", "eth0"])
            run(inside + ["link", "set", "lo", "up"])
            run(inside + ["link", "set", "eth0", "up"])

    def apply_cuts(self, names):
        """Each host drops what it must not hear; a lost packet tells its sender nothing, as in a real network."""
        for name in names:
            lines = ["*filter", ":INPUT ACCEPT [0:0]", ":FORWARD ACCEPT [0:0]", ":OUTPUT ACCEPT [0:0]"]
            for source, target in self.state["cuts"]:
                if target == name:
                    lines.append(f"-A INPUT -s {self.state['hosts'][source]['ip']} -j DROP")
            run(
                self.inside(self.namespace(name), ["iptables-restore"]),
                input="\n".join(lines + ["COMMIT", ""]),
            )

    def cut(self, pairs):
        cuts = {tuple(pair) for pair in self.state["cuts"]} | set(pairs)
        self.state["cuts"] = sorted(cuts)
        self.save()
        self.apply_cuts(sorted({target for _, target in pairs}))

    def heal(self, names):
        touched = {target for pair in self.state["cuts"] if set(pair) & set(names) for target in pair}
        self.state["cuts"] = [pair for pair in self.state["cuts"] if not set(pair) & set(names)]
        self.save()
        self.apply_cuts(sorted(touched))

    # Agents

    def agent_words(self, host):
        state = self.state
        words = [state["binary"], "agent", "--name", host["name"], "--data", host["data"], "--key", state["key"]]
        words += ["--bind", host["address"], "--http", "off", "--queue", host["queue"]]
        if host["number"] <= state["expect"]:
            words += ["--expect", str(state["expect"])]
        for other in state["hosts"].values():
            if other is not host:
                words += ["--join", other["address"]]
        return words

    def start_agent(self, host):
        if is_running(host["agent"]):
            raise Failure(f"the agent of {host['name']} runs already: pid {host['agent']['pid']}")
        output = open(host["output"], "wb")
        log = open(host["log"], "ab")
        with output, log:
            child = subprocess.Popen(
                self.inside(self.namespace(host["name"]), self.agent_words(host)),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=log,
                cwd=self.directory,
                start_new_session=True,
                env={key: value for key, value in os.environ.items() if not key.startswith("COTERIE_")},
            )
        # nsenter becomes the agent: one process, one pid.
        host["agent"] = {"pid": child.pid, "started": start_time(child.pid)}
        self.save()

    def await_ready(self, host, seconds=30):
        deadline = time.monotonic() + seconds
        while True:
            with open(host["output"]) as file:
                for line in file:
                    if '"ready":true' in line and line.endswith("\n"):
                        return json.loads(line)
            if not is_running(host["agent"]):
                with open(host["log"], errors="replace") as file:
                    last = (file.read().strip().splitlines() or ["it said nothing"])[-1]
                raise Failure(f"the agent of {host['name']} has ended: {last}")
            if time.monotonic() > deadline:
                raise Failure(f"the agent of {host['name']} was not ready within {seconds} s (see {host['log']})", 6)
            time.sleep(0.01)

    def ask(self, host, *words):
        """A document of the host's agent through its own socket, None if it does not answer."""
        done = subprocess.run(
            [self.state["binary"], "--json", "--timeout", "2s", "--address", host["socket"], *words],
            capture_output=True,
            text=True,
        )
        return json.loads(done.stdout) if done.returncode == 0 else None

    def await_agreement(self, seconds=60):
        """Until every host sees all alive, the founders as voters, and the same leader. Returns the leader."""
        hosts = self.state["hosts"].values()
        deadline = time.monotonic() + seconds
        while True:
            documents = []
            for host in hosts:
                document = self.ask(host, "status")
                documents.append(document)
                agrees = (
                    document is not None
                    and document["members"]["alive"] == len(hosts)
                    and len(document["voters"]) >= self.state["expect"]
                    and document["leader"] is not None
                )
                if not agrees:
                    break
            else:
                if len({document["leader"]["id"] for document in documents}) == 1:
                    return documents[0]["leader"]
            if time.monotonic() > deadline:
                raise Failure(f"the agents did not agree within {seconds} s (see {self.directory}/h*/agent.log)", 6)
            time.sleep(0.05)

    def line(self, host, agent):
        name = host["name"]
        return {
            "host": name,
            "namespace": self.namespace(name),
            "address": host["address"],
            "socket": host["socket"],
            "queue": host["queue"],
            "data": host["data"],
            "log": host["log"],
            "agent": agent,
            "pid": host["agent"]["pid"] if is_running(host["agent"]) else None,
        }

    # End

    def remove(self):
        agents = [host["agent"] for host in self.state["hosts"].values() if is_running(host["agent"])]
        for agent in agents:
            send(agent, signal.SIGTERM)
            send(agent, signal.SIGCONT)
        deadline = time.monotonic() + 8
        for agent in agents:
            if not await_end(agent, max(0, deadline - time.monotonic())):
                send(agent, signal.SIGKILL)
                await_end(agent, 5)
        for host in self.state["hosts"].values():
            if os.path.ismount(host["data"]):
                run(["umount", "--lazy", host["data"]])
        present = set(os.listdir("/run/netns")) if os.path.isdir("/run/netns") else set()
        for namespace in [self.namespace(name) for name in self.names] + [self.switch]:
            if namespace in present:
                run(["ip", "netns", "del", namespace])
        shutil.rmtree(self.directory, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(REGISTER, self.state["tag"]))


def sweep():
    """Removes namespaces of runs whose directory is gone: of those nobody knows any more."""
    if not os.path.isdir(REGISTER):
        return
    for tag in os.listdir(REGISTER):
        if not re.fullmatch("[0-9a-f]{6}", tag):
            continue
        path = os.path.join(REGISTER, tag)
        with open(path) as file:
            directory = file.read()
        if os.path.exists(os.path.join(directory, "hosts.json")):
            continue
        for namespace in os.listdir("/run/netns") if os.path.isdir("/run/netns") else []:
            if namespace.startswith(f"coterie-{tag}-"):
                run(["ip", "netns", "del", namespace])
        os.remove(path)


# --- Commands


def find_binary(given):
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    binaries = os.environ.get("COTERIE_BINARIES")
    candidates = [given] if given else []
    if not given and binaries:
        candidates.append(os.path.join(binaries, "coterie"))
    if not given and not binaries:
        candidates = [f"{root}/.build/release/coterie", f"{root}/.build/debug/coterie"]
    for path in candidates:
        if os.access(path, os.X_OK) and os.path.isfile(path):
            return os.path.abspath(path)
    raise Failure(f"there is no program {' or '.join(candidates)} (build it: scripts/build-release)")


def require_system():
    if os.geteuid() != 0:
        raise Failure("network namespaces need root (run it with sudo)")
    missing = [tool for tool in ("ip", "nsenter", "iptables-restore") if shutil.which(tool) is None]
    if missing:
        raise Failure(f"{', '.join(missing)} not found (run: scripts/install-packages test)")


def up(options):
    if not 1 <= options.count <= MOST:
        raise Failure(f"1 to {MOST} hosts are possible, not {options.count}", 2)
    if options.tmpfs and not re.fullmatch("[1-9][0-9]*[kmgKMG]?", options.tmpfs):
        raise Failure(f"--tmpfs {options.tmpfs}: a size such as 64m is needed", 2)
    require_system()
    binary = find_binary(options.binary)
    directory = options.dir
    if os.path.exists(os.path.join(directory, "hosts.json")):
        raise Failure(f"there are hosts in {directory} already (end them: scripts/hosts down --dir {directory})")
    if os.path.isdir(directory) and os.listdir(directory):
        raise Failure(f"{directory} is not empty (name another directory with --dir)")
    os.makedirs(directory, mode=0o700, exist_ok=True)
    sweep()
    tag = secrets.token_hex(3)
    hosts = {}
    for number in range(1, options.count + 1):
        name = f"h{number}"
        home = os.path.join(directory, name)
        hosts[name] = {
            "name": name,
            "number": number,
            "ip": f"{NETWORK}{10 + number}",
            "address": f"{NETWORK}{10 + number}:{PORT}",
            "queue": "127.0.0.1:11300",
            "data": os.path.join(home, "data"),
            "socket": "unix:" + os.path.join(home, "data", "agent.sock"),
            "output": os.path.join(home, "agent.out"),
            "log": os.path.join(home, "agent.log"),
            "agent": None,
        }
    state = {
        "tag": tag,
        "binary": binary,
        "key": os.path.join(directory, "cluster.key"),
        "expect": 5 if options.count >= 5 else 3 if options.count >= 3 else 1,
        "cuts": [],
        "hosts": hosts,
    }
    made = Hosts(directory, state)
    made.save()
    os.makedirs(REGISTER, mode=0o755, exist_ok=True)
    with open(os.path.join(REGISTER, tag), "w") as file:
        file.write(directory)
    try:
        for host in hosts.values():
            os.makedirs(host["data"], mode=0o700)
            if options.tmpfs:
                run(["mount", "-t", "tmpfs", "-o", f"size={options.tmpfs},mode=0700", "tmpfs", host["data"]])
        made.make_network()
        run([binary, "keygen", state["key"]])
        leader = None
        if not options.no_agents:
            for host in hosts.values():
                made.start_agent(host)
            for host in hosts.values():
                made.await_ready(host)
            leader = made.await_agreement()
    except BaseException:
        logs = [host["log"] for host in hosts.values() if os.path.exists(host["log"])]
        for path in logs:
            with open(path, errors="replace") as file:
                for line in file.read().strip().splitlines()[-3:]:
                    print(f"hosts: {path}: {line}", file=sys.stderr)
        made.remove()
        raise
    for host in hosts.values():
        print(json.dumps(made.line(host, process_state(host["agent"]))))
    print(json.dumps({"hosts": "ready", "dir": directory, "key": state["key"], "leader": leader}))


def status(options):
    made = Hosts.load(options.dir)
    for host in made.state["hosts"].values():
        document = made.line(host, process_state(host["agent"]))
        document["deafTo"] = [source for source, target in made.state["cuts"] if target == host["name"]]
        answer = made.ask(host, "status") if document["agent"] == "running" else None
        document["leader"] = answer["leader"]["name"] if answer and answer["leader"] else None
        print(json.dumps(document))


def execute(options):
    if not options.command:
        raise Failure("exec: no command after the host: scripts/hosts exec h1 -- coterie status", 2)
    made = Hosts.load(options.dir)
    host = made.host(options.host)
    environment = dict(os.environ)
    environment["COTERIE_ADDRESS"] = host["address"]
    environment["COTERIE_KEY_FILE"] = made.state["key"]
    environment["PATH"] = os.path.dirname(made.state["binary"]) + ":" + environment.get("PATH", "/usr/bin:/bin")
    words = made.inside(made.namespace(host["name"]), ["--"] + options.command)
    os.execvpe(words[0], words, environment)


def each(options, verb):
    """The verb on every host named, after all names were found."""
    made = Hosts.load(options.dir)
    chosen = [made.host(name) for name in options.hosts]
    for host in chosen:
        if not is_running(host["agent"]):
            raise Failure(f"no agent runs on {host['name']} (start it: scripts/hosts start {host['name']})")
    verb(chosen)


def kill(options):
    number = getattr(signal, "SIG" + options.signal.upper().removeprefix("SIG"), None)
    if not isinstance(number, signal.Signals):
        raise Failure(f"--signal {options.signal}: there is no such signal", 2)

    def verb(chosen):
        for host in chosen:
            send(host["agent"], number)
        for host in chosen:
            if not await_end(host["agent"], 60):
                raise Failure(f"the agent of {host['name']} did not end within 60 s of SIG{number.name[3:]}", 6)

    each(options, verb)


def start(options):
    made = Hosts.load(options.dir)
    chosen = [made.host(name) for name in options.hosts]
    for host in chosen:
        made.start_agent(host)
    for host in chosen:
        made.await_ready(host)
        print(json.dumps(made.line(host, process_state(host["agent"]))))


def stop(options):
    each(options, lambda chosen: [send(host["agent"], signal.SIGSTOP) for host in chosen])


def cont(options):
    each(options, lambda chosen: [send(host["agent"], signal.SIGCONT) for host in chosen])


def cut(options):
    made = Hosts.load(options.dir)
    groups = [made.group(text) for text in options.groups]
    if len(groups) == 1:
        groups.append([name for name in made.names if name not in groups[0]])
    if not all(groups):
        raise Failure("cut: a side has no host", 2)
    named = [name for group in groups for name in group]
    if len(named) != len(set(named)):
        raise Failure("cut: a host stands on two sides", 2)
    pairs = [(a, b) for one in groups for other in groups if one is not other for a in one for b in other]
    made.cut(pairs)


def one_way(options):
    made = Hosts.load(options.dir)
    sources, targets = made.group(options.source), made.group(options.target)
    if not sources or not targets:
        raise Failure("one-way: a side has no host", 2)
    if set(sources) & set(targets):
        raise Failure("one-way: a host stands on both sides", 2)
    made.cut([(source, target) for source in sources for target in targets])


def heal(options):
    made = Hosts.load(options.dir)
    made.heal([made.host(name)["name"] for name in options.hosts] or made.names)


def down(options):
    Hosts.load(options.dir).remove()


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise Failure(f"{message} (see scripts/hosts --help)", 2)


def parse(words):
    """The options before `--`, which begins the command of `exec`, are ours."""
    command = None
    if "--" in words:
        at = words.index("--")
        words, command = words[:at], words[at + 1 :]
    parser = Parser(prog="hosts", add_help=False, allow_abbrev=False)
    commands = parser.add_subparsers(dest="verb", required=True, parser_class=Parser)

    def add(name, action, *arguments):
        one = commands.add_parser(name, add_help=False, allow_abbrev=False)
        one.add_argument("--dir", default=DEFAULT_DIR)
        one.set_defaults(action=action)
        for argument, options in arguments:
            one.add_argument(argument, **options)

    some = ("hosts", {"nargs": "+", "metavar": "HOST"})
    add(
        "up",
        up,
        ("count", {"type": int, "metavar": "N"}),
        ("--binary", {}),
        ("--no-agents", {"action": "store_true"}),
        ("--tmpfs", {}),
    )
    add("status", status)
    add("exec", execute, ("host", {"metavar": "HOST"}))
    add("kill", kill, some, ("--signal", {"default": "KILL"}))
    add("start", start, some)
    add("stop", stop, some)
    add("cont", cont, some)
    add("cut", cut, ("groups", {"nargs": "+", "metavar": "GROUP"}))
    add("one-way", one_way, ("source", {"metavar": "FROM"}), ("target", {"metavar": "TO"}))
    add("heal", heal, ("hosts", {"nargs": "*", "metavar": "HOST"}))
    add("down", down)
    options = parser.parse_args(words)
    options.dir = os.path.abspath(options.dir)
    if command is not None and options.verb != "exec":
        raise Failure(f"{options.verb} takes no command", 2)
    options.command = command or []
    return options


@contextlib.contextmanager
def lock(options):
    """One command at a time on a directory; `exec` and `status` only read."""
    if options.verb in ("exec", "status") or not os.path.isdir(options.dir):
        yield
        return
    descriptor = os.open(options.dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def main():
    words = sys.argv[1:]
    if words and (words[0] in ("-h", "--help", "help") or {"-h", "--help"} & set(words[: (words + ["--"]).index("--")])):
        print(USAGE, end="")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        options = parse(words)
        with lock(options):
            options.action(options)
        return 0
    except Failure as failure:
        print(f"hosts: {failure}", file=sys.stderr)
        return failure.code
    except KeyboardInterrupt:
        print("hosts: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"hosts: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
