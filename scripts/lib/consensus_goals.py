"""What the consensus of Coterie is to reach beside etcd (issue 3): each goal's row of scripts/bench-consensus, whether it is a
gate, what it is, and how its figure is found in the report and judged."""


def rate_ratio(name, peer):
    return lambda rows, row: rows[row]["ratios"][name][peer]["rate"]


def goals():
    def largest(system, key, what):
        return lambda rows, row: max(f[what] for f in rows[row][system][key])
    yield "puts", True, "put, 16 clients, any node: rate, times etcd", rate_ratio("coterie any 16", "etcd any 16"), ">=", 5
    yield "puts", True, "put, 128 clients, any node: rate, times etcd", rate_ratio("coterie any 128", "etcd any 128"), ">=", 5
    yield "puts", True, "put, 1024 clients, any node: rate, times etcd", rate_ratio("coterie any 1024", "etcd any 1024"), ">=", 3
    yield "kill", True, "leader killed: median gap, ms", lambda rows, row: rows[row]["coterie"]["median"], "<=", 50
    yield "kill", True, "leader killed: longest gap, ms", lambda rows, row: rows[row]["coterie"]["max"], "<=", 300
    for clients, times in ((128, 5), (1024, 3)):
        yield ("puts", False, f"put, {clients} clients with a connection each, any node: rate, times etcd on 64 connections",
               rate_ratio(f"coterie any {clients}, {clients} connections", f"etcd any {clients}"), ">=", times)
    yield "puts", False, "put, 1 client, any node: rate, times etcd", rate_ratio("coterie any 1", "etcd any 1"), ">=", 3
    yield ("puts", False, "put, 1 client, any node: p50, times etcd",
           lambda rows, row: rows[row]["ratios"]["coterie any 1"]["etcd any 1"]["p50"], "<=", 0.35)
    yield "puts", False, "put, 16 connections x 64, any node: rate, times etcd", rate_ratio("coterie any 16x64", "etcd any 16x64"), ">=", 15
    yield "reads", False, "linearizable read, 1 client: rate, times etcd", rate_ratio("coterie any 1", "etcd any 1"), ">=", 4
    yield "reads", False, "linearizable read, 128 clients: rate, times etcd", rate_ratio("coterie any 128", "etcd any 128"), ">=", 6
    yield "core", False, "core, batch 64: entries/s", lambda rows, row: rows[row]["batch64"]["rate"], ">=", 1_000_000
    yield "core", False, "core, unbatched: entries/s", lambda rows, row: rows[row]["unbatched"]["rate"], ">=", 200_000
    yield "freeze", False, "leader stopped: median gap, ms", lambda rows, row: rows[row]["coterie"]["median"], "<=", 350
    yield "freeze", False, "leader stopped: longest gap, ms", lambda rows, row: rows[row]["coterie"]["max"], "<=", 900
    yield "cut", False, "leader cut off: median gap, ms", lambda rows, row: rows[row]["coterie"]["median"], "<=", 350
    yield "cut", False, "leader cut off: longest gap, ms", lambda rows, row: rows[row]["coterie"]["max"], "<=", 900
    for what in ("transfer", "sigterm", "sigterm_follower"):
        yield "handover", False, f"{what}: p99 gap, ms", lambda rows, row, what=what: rows[row]["coterie"][what]["p99"], "<=", 10
        yield ("handover", False, f"{what}: failed commands",
               lambda rows, row, what=what: rows[row]["coterie"][what]["failed_commands"], "<=", 0)
    yield "overload", False, "elections under overload", lambda rows, row: rows[row]["coterie"]["term_changes"], "<=", 0
    yield "memory", False, "idle, private MiB", largest("coterie", "idle_MiB", "RssAnon"), "<=", 20
    yield "memory", False, "idle, resident MiB", largest("coterie", "idle_MiB", "VmRSS"), "<=", 40
    yield "memory", False, "after 100k x 256 B, resident MiB", largest("coterie", "after_100k_MiB", "VmRSS"), "<=", 80
    for count, limit in ((100_000, 150), (1_000_000, 700)):
        yield ("restart", False, f"restart to serving after {count} writes, ms",
               lambda rows, row, count=count: rows[row][f"coterie {count}"]["milliseconds"]["one follower"]["median"], "<=", limit)


def judge(rows):
    found = []
    for row, is_gate, what, figure, relation, limit in goals():
        try:
            value = figure(rows, row)
        except KeyError:
            continue
        met = value >= limit if relation == ">=" else value <= limit
        found.append({"row": row, "what": what, "gate": is_gate, "value": value, "goal": f"{relation} {limit}", "met": met})
    return found
