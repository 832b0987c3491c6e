// libraft: the load of scripts/bench-consensus on canonical's C Raft (Debian's libraft-dev), as a peer of Coterie's consensus. The
// nodes are processes of their own on loopback with the library's own libuv back-end: segments written with O_DIRECT and synced, in
// a directory on a real disk, and its own TCP. The state machine counts commands and keeps the last one. Nothing but the library's
// log is between a client and the disks, so a figure here is its consensus and one small server around it.
// Build: cc -O2 -Wall -Wextra -o libraft libraft.c -lraft -luv
//
//   libraft load -d DIR [-c CLIENTS] [-t SECONDS] [-s BYTES] [options of the nodes]
//   libraft kill -d DIR [-n TRIALS] [-c WRITERS] [-p PAUSE_MS] [-w DEADLINE_MS] [options of the nodes]
//   options of the nodes:  -b         hand the commands of one turn of the loop over together, not one by one
//                          -N         TCP_NODELAY between the nodes, which the library does not set
//                          -S N       entries between snapshots (the library's default: 1024)
//                          -e MS      election time-out, from one to two times this (default 1000)
//                          -h MS      heartbeat, which is the library's tick too (default 100)
//
// Both start three nodes in DIR, which must not be in memory, wait until there is a leader and all have connected, end the nodes by
// SIGKILL when they are done, and print one JSON object; exit 1 if a command failed, 2 if it could not run. "cpu_us" is the
// processor time that the three nodes took, in microseconds for each command, their start included.
// load: each client has a connection of its own to the leader (the library forwards nothing) and one command in flight: a length of
// 4 bytes and that many bytes. The answer, a status and the leader's number, comes when the command is applied at the leader.
// kill: writers as in "queueload watch", with a pause after each acknowledgement; one that is refused goes to the leader that the
// answer names, one without an answer in time or without its connection to the next node. The leader is killed and started
// again TRIALS times; a gap is the longest time without an acknowledgement to any writer, in milliseconds, seen from the kill on.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/magic.h>
#include <netinet/tcp.h>
#include <raft.h>
#include <raft/uv.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "latency.h"

enum { NODES = 3, MAX_BYTES = 60000, HEAD = 4, TAG = 16, RING = 65536, ANSWER = 2 };
enum { APPLIED, NOT_LEADER, FAILED };  // the status of an answer

static struct {
    int clients, bytes, trials;
    double seconds, pause_ms, deadline_ms;
    const char *directory;
    char *batch, *no_delay, *snapshot, *election, *heartbeat;  // for the nodes, as they were given; "0": the library's default
} options = {.clients = 1, .bytes = 256, .trials = 6, .seconds = 3, .pause_ms = 2, .deadline_ms = 100, .batch = "0", .no_delay = "0",
             .snapshot = "0", .election = "0", .heartbeat = "0"};
static char ports[NODES * 2][8];  // of the nodes among themselves, then for clients

static void die(const char *what) {
    fprintf(stderr, "libraft: %s: %s\n", what, errno ? strerror(errno) : "failed");
    exit(2);
}

// A node.

typedef struct client {
    uv_tcp_t tcp;
    struct raft_apply apply;
    bool waits, closed;  // for the answer to its command; by the client
    uint64_t serial;     // of the command that it waits for, with -b
    size_t length;
    char input[HEAD + MAX_BYTES];
} client;

static struct {
    uv_loop_t loop;
    struct raft raft;
    struct raft_io io;
    struct raft_uv_transport transport;
    struct raft_fsm machine;
    uint64_t count;
    struct raft_buffer last;
    unsigned id;
    // With -b: commands of this turn, and who waits for those that are on their way. Each carries the incarnation of its node and a
    // serial number in its first bytes.
    bool batches;
    uint64_t incarnation, serial;
    struct raft_buffer turn[RING];
    unsigned in_turn;
    client *waiting[RING];
} node;

static void check(int code, const char *what) {
    if (!code) return;
    fprintf(stderr, "libraft: node %u: %s: %s\n", node.id, what, raft_strerror(code));
    exit(2);
}

static void free_client(uv_handle_t *handle) {
    client *c = handle->data;
    if (c->waits) c->closed = true;  // the library still refers to it
    else free(c);
}
static void answer(client *c, int status) {
    c->waits = false;
    if (c->closed) {
        free(c);
        return;
    }
    if (uv_is_closing((uv_handle_t *)&c->tcp)) return;
    raft_id leader;
    const char *address;
    raft_leader(&node.raft, &leader, &address);
    char bytes[ANSWER] = {(char)status, (char)leader};
    uv_buf_t buffer = uv_buf_init(bytes, sizeof bytes);
    // A client has one command in flight, so that there is room for its answer, or nobody reads it.
    if (uv_try_write((uv_stream_t *)&c->tcp, &buffer, 1) != ANSWER) uv_close((uv_handle_t *)&c->tcp, free_client);
}
static int status_of(int code) {
    return !code ? APPLIED : code == RAFT_NOTLEADER || code == RAFT_LEADERSHIPLOST ? NOT_LEADER : FAILED;
}
static void applied_one(struct raft_apply *request, int code, void *result) {
    (void)result;
    answer(request->data, status_of(code));
}

static int apply(struct raft_fsm *machine, const struct raft_buffer *command, void **result) {
    (void)machine;
    if (command->len > MAX_BYTES) return RAFT_MALFORMED;
    node.count++;
    memcpy(node.last.base, command->base, node.last.len = command->len);
    *result = NULL;
    if (node.batches && command->len >= TAG) {
        uint64_t tag[2];
        memcpy(tag, command->base, TAG);
        client **place = &node.waiting[tag[1] % RING], *c = *place;
        if (tag[0] == node.incarnation && c && c->serial == tag[1]) {
            *place = NULL;
            answer(c, APPLIED);
        }
    }
    return 0;
}
static int snapshot(struct raft_fsm *machine, struct raft_buffer *buffers[], unsigned *count) {
    (void)machine;
    *count = 1;
    if (!(*buffers = raft_malloc(sizeof **buffers))) return RAFT_NOMEM;
    size_t length = (*buffers)->len = (sizeof node.count + node.last.len + 7) / 8 * 8;
    if (!((*buffers)->base = raft_calloc(1, length))) {
        raft_free(*buffers);
        return RAFT_NOMEM;
    }
    memcpy((*buffers)->base, &node.count, sizeof node.count);
    memcpy((char *)(*buffers)->base + sizeof node.count, node.last.base, node.last.len);
    return 0;
}
static int restore(struct raft_fsm *machine, struct raft_buffer *buffer) {
    (void)machine;
    if (buffer->len < sizeof node.count || buffer->len > MAX_BYTES) return RAFT_MALFORMED;
    memcpy(&node.count, buffer->base, sizeof node.count);
    node.last.len = buffer->len - sizeof node.count;
    memcpy(node.last.base, (char *)buffer->base + sizeof node.count, node.last.len);
    raft_free(buffer->base);
    return 0;
}

typedef struct {
    struct raft_apply apply;
    uint64_t first;
    unsigned count;
} batch;
static void applied_batch(struct raft_apply *request, int code, void *result) {
    (void)result;
    // The library calls when the first command is applied: `apply` answers each in its turn. Here is only what went wrong.
    batch *b = request->data;
    for (uint64_t s = b->first; code && s < b->first + b->count; s++) {
        client *c = node.waiting[s % RING];
        if (!c || c->serial != s) continue;
        node.waiting[s % RING] = NULL;
        answer(c, status_of(code));
    }
    free(b);
}
static void end_of_turn(uv_check_t *handle) {
    (void)handle;
    if (!node.in_turn) return;
    batch *b = malloc(sizeof *b);
    if (!b) die("memory");
    *b = (batch){.first = node.serial - node.in_turn, .count = node.in_turn};
    b->apply.data = b;
    int code = raft_apply(&node.raft, &b->apply, node.turn, node.in_turn, applied_batch);
    if (code) {
        for (unsigned i = 0; i < node.in_turn; i++) raft_free(node.turn[i].base);
        applied_batch(&b->apply, code, NULL);
    }
    node.in_turn = 0;
}

static void command(client *c, const char *bytes, size_t length) {
    if (!length || node.raft.state != RAFT_LEADER) {  // an empty command asks who leads
        answer(c, node.raft.state == RAFT_LEADER ? APPLIED : NOT_LEADER);
        return;
    }
    struct raft_buffer buffer = {.len = (length + 7) / 8 * 8};
    if (!(buffer.base = raft_calloc(1, buffer.len))) die("memory");
    memcpy(buffer.base, bytes, length);
    c->waits = true;
    if (node.batches && length >= TAG && node.in_turn < RING) {
        c->serial = node.serial++;
        memcpy(buffer.base, &node.incarnation, 8);
        memcpy((char *)buffer.base + 8, &c->serial, 8);
        node.waiting[c->serial % RING] = c;
        node.turn[node.in_turn++] = buffer;
        return;
    }
    c->apply.data = c;
    int code = raft_apply(&node.raft, &c->apply, &buffer, 1, applied_one);
    if (!code) return;
    raft_free(buffer.base);
    answer(c, status_of(code));
}
static void give_room(uv_handle_t *handle, size_t wanted, uv_buf_t *buffer) {
    (void)wanted;
    client *c = handle->data;
    *buffer = uv_buf_init(c->input + c->length, (unsigned)(sizeof c->input - c->length));
}
static void input(uv_stream_t *stream, ssize_t got, const uv_buf_t *buffer) {
    (void)buffer;
    client *c = stream->data;
    if (got > 0) {
        c->length += (size_t)got;
        uint32_t length;
        if (c->length < HEAD) return;
        memcpy(&length, c->input, HEAD);
        if (length <= MAX_BYTES && c->length < HEAD + length) return;
        // A second command before the answer to the first is against the rules.
        if (length <= MAX_BYTES && c->length == HEAD + length && !c->waits) {
            c->length = 0;
            command(c, c->input + HEAD, length);
            return;
        }
    }
    if (got && !uv_is_closing((uv_handle_t *)stream)) uv_close((uv_handle_t *)stream, free_client);
}
static void connection(uv_stream_t *listener, int status) {
    client *c = status ? NULL : calloc(1, sizeof *c);
    if (!c) return;
    uv_tcp_init(&node.loop, &c->tcp);
    c->tcp.data = c;
    if (uv_accept(listener, (uv_stream_t *)&c->tcp)) uv_close((uv_handle_t *)&c->tcp, free_client);
    else uv_tcp_nodelay(&c->tcp, 1), uv_read_start((uv_stream_t *)&c->tcp, give_room, input);
}

// The library's own transport, but for an option of its sockets.
static int (*library_connect)(struct raft_uv_transport *, struct raft_uv_connect *, raft_id, const char *, raft_uv_connect_cb);
static raft_uv_connect_cb library_connected;
static void connected(struct raft_uv_connect *request, uv_stream_t *stream, int status) {
    if (!status) uv_tcp_nodelay((uv_tcp_t *)stream, 1);
    library_connected(request, stream, status);
}
static int connect_without_delay(struct raft_uv_transport *t, struct raft_uv_connect *request, raft_id id, const char *address,
                                 raft_uv_connect_cb then) {
    library_connected = then;  // one and the same function in all its calls
    return library_connect(t, request, id, address, connected);
}

static int run_node(char **argv) {
    // node NUMBER DIR BATCH NO_DELAY SNAPSHOT ELECTION HEARTBEAT PORTS...
    node.id = (unsigned)atoi(argv[0]);
    node.batches = atoi(argv[2]);
    node.last.base = malloc(MAX_BYTES);
    node.incarnation = now_ns() ^ (uint64_t)getpid() << 48;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGPIPE, SIG_IGN);
    if (!node.last.base || uv_loop_init(&node.loop)) die("setup");
    check(raft_uv_tcp_init(&node.transport, &node.loop), "transport");
    library_connect = node.transport.connect;
    if (atoi(argv[3])) node.transport.connect = connect_without_delay;
    check(raft_uv_init(&node.io, &node.loop, argv[1], &node.transport), "directory");
    node.machine = (struct raft_fsm){.version = 1, .apply = apply, .snapshot = snapshot, .restore = restore};
    char address[NODES][32];
    struct raft_configuration configuration;
    raft_configuration_init(&configuration);
    for (unsigned i = 0; i < NODES; i++) {
        snprintf(address[i], sizeof address[i], "127.0.0.1:%s", argv[7 + i]);
        check(raft_configuration_add(&configuration, i + 1, address[i], RAFT_VOTER), "configuration");
    }
    check(raft_init(&node.raft, &node.io, &node.machine, node.id, address[node.id - 1]), "init");
    int code = raft_bootstrap(&node.raft, &configuration);
    if (code != RAFT_CANTBOOTSTRAP) check(code, "bootstrap");
    raft_configuration_close(&configuration);
    raft_set_pre_vote(&node.raft, true);
    if (atoi(argv[4])) raft_set_snapshot_threshold(&node.raft, (unsigned)atoi(argv[4]));
    if (atoi(argv[5])) raft_set_election_timeout(&node.raft, (unsigned)atoi(argv[5]));
    if (atoi(argv[6])) raft_set_heartbeat_timeout(&node.raft, (unsigned)atoi(argv[6]));
    check(raft_start(&node.raft), raft_errmsg(&node.raft));

    uv_check_t turn;
    uv_check_init(&node.loop, &turn);
    uv_check_start(&turn, end_of_turn);
    uv_tcp_t listener;
    struct sockaddr_in here;
    uv_ip4_addr("127.0.0.1", atoi(argv[7 + NODES + node.id - 1]), &here);
    if (uv_tcp_init(&node.loop, &listener) || uv_tcp_bind(&listener, (struct sockaddr *)&here, 0) ||
        uv_listen((uv_stream_t *)&listener, 4096, connection)) die("client port");
    return uv_run(&node.loop, UV_RUN_DEFAULT);
}

// The clients, and the cluster that they start.

static pid_t pids[NODES];
static void start_node(unsigned i) {
    char number[8], directory[4096];
    snprintf(number, sizeof number, "%u", i + 1);
    snprintf(directory, sizeof directory, "%s/node%u", options.directory, i);
    if (mkdir(directory, 0700) && errno != EEXIST) die(directory);
    char *words[9 + NODES * 2 + 1] = {"libraft", "node", number, directory, options.batch, options.no_delay, options.snapshot,
                                      options.election, options.heartbeat};
    for (int p = 0; p < NODES * 2; p++) words[9 + p] = ports[p];
    if ((pids[i] = fork()) < 0) die("fork");
    if (pids[i]) return;
    execv("/proc/self/exe", words);
    _exit(2);
}
static double seconds_of(const struct rusage *use) {
    return (double)(use->ru_utime.tv_sec + use->ru_stime.tv_sec) + (double)(use->ru_utime.tv_usec + use->ru_stime.tv_usec) / 1e6;
}
static double nodes_cpu;  // seconds of processor time of the nodes that have ended
static void kill_node(unsigned i) {
    struct rusage use;
    if (pids[i] <= 0) return;
    kill(pids[i], SIGKILL);
    if (wait4(pids[i], NULL, 0, &use) == pids[i]) nodes_cpu += seconds_of(&use);
    pids[i] = 0;
}
static void kill_nodes(void) {
    for (unsigned i = 0; i < NODES; i++) kill_node(i);
}

static int open_connection(unsigned to) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(ports[NODES + to])),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) die("socket");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0) return fd;
    close(fd);
    return -1;
}
// Not if it does not answer in a second.
static bool leads(unsigned i) {
    uint32_t empty = 0;
    unsigned char reply[ANSWER] = {FAILED};
    int fd = open_connection(i);
    if (fd < 0) return false;
    struct timeval second = {.tv_sec = 1};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &second, sizeof second);
    bool yes = send(fd, &empty, HEAD, MSG_NOSIGNAL) == HEAD && recv(fd, reply, ANSWER, MSG_WAITALL) == ANSWER && reply[0] == APPLIED;
    close(fd);
    return yes;
}
static unsigned leader(void) {
    for (uint64_t end = now_ns() + 20000000000ull; now_ns() < end; usleep(20000))
        for (unsigned i = 0; i < NODES; i++)
            if (leads(i)) return i;
    errno = ETIMEDOUT;
    die("a leader");
    return 0;
}
static void start_cluster(void) {
    struct statfs place;
    if (statfs(options.directory, &place)) die(options.directory);
    if (place.f_type == TMPFS_MAGIC) {
        fprintf(stderr, "libraft: %s is in memory, where a sync costs nothing\n", options.directory);
        exit(2);
    }
    int held[NODES * 2];
    for (int i = 0; i < NODES * 2; i++) {
        struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t length = sizeof address;
        held[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (held[i] < 0 || bind(held[i], (struct sockaddr *)&address, length) ||
            getsockname(held[i], (struct sockaddr *)&address, &length)) die("ports");
        snprintf(ports[i], sizeof ports[i], "%u", ntohs(address.sin_port));
    }
    for (int i = 0; i < NODES * 2; i++) close(held[i]);
    atexit(kill_nodes);
    for (unsigned i = 0; i < NODES; i++) start_node(i);
    leader();
    // A node that was not there yet when it was called is called again after a second.
    usleep(1500000);
}

typedef struct {
    int fd;
    unsigned server;
    uint64_t sent;  // 0: no command is on its way
    uint64_t due;   // kill: when to act next (connect, send, give up)
} writer;
static writer *writers;
static int ep;
static char *frame;
static uint64_t done, lost, late, refused, last_ok, gap_from, gap_to, counted_from = UINT64_MAX;

static bool give(writer *w, uint64_t now) {
    ssize_t n = send(w->fd, frame, HEAD + (size_t)options.bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n != HEAD + options.bytes) return false;  // never in part: one command is in flight, and it fits the socket's buffer
    w->sent = now;
    return true;
}
static bool join(writer *w) {
    if ((w->fd = open_connection(w->server)) < 0) return false;
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = w};
    if (epoll_ctl(ep, EPOLL_CTL_ADD, w->fd, &e) < 0) die("epoll_ctl");
    return true;
}
static void leave(writer *w, uint64_t now, unsigned next, uint64_t *why) {
    ++*why;
    if (w->fd >= 0) close(w->fd);
    w->fd = -1;
    w->sent = 0;
    w->server = next;
    w->due = now + about_ns(options.pause_ms);
}
static unsigned after(const writer *w) { return (w->server + 1) % NODES; }

static void make_writers(unsigned server) {
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    writers = calloc((size_t)options.clients, sizeof *writers);
    frame = malloc(HEAD + (size_t)options.bytes);
    ep = epoll_create1(EPOLL_CLOEXEC);
    if (!writers || !frame || ep < 0) die("setup");
    memcpy(frame, &options.bytes, HEAD);
    for (int i = 0; i < options.bytes; i++) frame[HEAD + i] = (char)('a' + i % 26);
    for (int i = 0; i < options.clients; i++) {
        writers[i].server = server;
        if (!join(&writers[i])) die("connect");
    }
}

static int run_load(void) {
    start_cluster();
    make_writers(leader());
    struct epoll_event events[256];
    uint64_t started = now_ns(), stop_at = started + (uint64_t)(options.seconds * 1e9);
    int busy = options.clients;
    for (int i = 0; i < options.clients; i++)
        if (!give(&writers[i], now_ns())) die("send");
    while (busy) {
        int n = epoll_wait(ep, events, 256, 20000);
        if (n <= 0 && !(n < 0 && errno == EINTR)) { fprintf(stderr, "libraft: no answer in 20 s\n"); return 1; }
        for (int i = 0; i < n; i++) {
            writer *w = events[i].data.ptr;
            unsigned char reply[ANSWER];
            ssize_t got = recv(w->fd, reply, ANSWER, MSG_WAITALL);
            uint64_t now = now_ns();
            if (got != ANSWER || reply[0] != APPLIED) {
                fprintf(stderr, "libraft: a command failed: %s\n",
                        got != ANSWER ? "connection lost" : reply[0] == NOT_LEADER ? "the leader changed" : "by the library");
                return 1;
            }
            record(now - w->sent);
            if (now >= stop_at) busy--;
            else if (!give(w, now)) die("send");
        }
    }
    double wall = (double)(now_ns() - started) / 1e9;
    kill_nodes();
    struct rusage use;
    getrusage(RUSAGE_SELF, &use);
    printf("{\"connections\":%d,\"done\":%llu,\"seconds\":%.3f,\"rate\":%.0f,\"mean\":%.3f,\"p50\":%.3f,\"p99\":%.3f,\"p999\":%.3f,"
           "\"max\":%.3f,\"client_cpu_seconds\":%.2f,\"cpu_us\":%.1f}\n",
           options.clients, (unsigned long long)recorded, wall, (double)recorded / wall, total / (double)recorded / 1e6, quantile_ms(.5),
           quantile_ms(.99), quantile_ms(.999), (double)longest / 1e6,
           seconds_of(&use), nodes_cpu / (double)recorded * 1e6);
    return 0;
}

static void acknowledged(uint64_t now) {
    // Gaps that ended after the kill count; that of a restart, once the next leader is there, is not told apart.
    if (last_ok && now > counted_from && now - last_ok > gap_to - gap_from) gap_from = last_ok, gap_to = now;
    last_ok = now;
    done++;
}
static void act(writer *w, uint64_t now) {  // kill: it is time
    if (w->fd < 0) {
        if (!join(w)) { leave(w, now, after(w), &lost); return; }
    } else if (w->sent) {
        leave(w, now, after(w), &late);
        return;
    }
    if (give(w, now)) w->due = now + (uint64_t)(options.deadline_ms * 1e6);
    else leave(w, now, after(w), &lost);
}
// Until the time has come and an acknowledgement after it.
static void turn_until(uint64_t until) {
    struct epoll_event events[64];
    for (uint64_t now = now_ns(); now < until || last_ok <= until; now = now_ns()) {
        if (now > until + 20000000000ull) { fprintf(stderr, "libraft: no acknowledgement for 20 s\n"); exit(1); }
        uint64_t next = now + 20000000;
        for (int i = 0; i < options.clients; i++) if (writers[i].due < next) next = writers[i].due;
        struct timespec wait = {.tv_nsec = next > now ? (long)(next - now) : 0};
        int n = epoll_pwait2(ep, events, 64, &wait, NULL);
        for (int i = 0; i < n; i++) {
            writer *w = events[i].data.ptr;
            unsigned char reply[ANSWER];
            if (w->fd < 0) continue;
            ssize_t got = recv(w->fd, reply, ANSWER, MSG_DONTWAIT);
            uint64_t at = now_ns();
            if (got < 0 && errno == EAGAIN) continue;
            if (got != ANSWER || !w->sent) leave(w, at, after(w), &lost);
            else if (reply[0] != APPLIED) leave(w, at, reply[1] && reply[1] - 1u != w->server ? reply[1] - 1u : after(w), &refused);
            else acknowledged(at), w->sent = 0, w->due = at + about_ns(options.pause_ms);
        }
        now = now_ns();
        for (int i = 0; i < options.clients; i++) if (now >= writers[i].due) act(&writers[i], now);
    }
}
static int run_kill(void) {
    start_cluster();
    make_writers(leader());
    printf("{\"trials\":%d,\"gaps\":[", options.trials);
    for (int trial = 0; trial < options.trials; trial++) {
        turn_until(now_ns() + 500000000ull);
        unsigned who = leader();
        uint64_t at = now_ns();
        gap_from = gap_to = 0;
        counted_from = at;
        kill(pids[who], SIGKILL);
        turn_until(at + 3000000000ull);
        printf("%s%.2f", trial ? "," : "", (double)(gap_to - gap_from) / 1e6);
        fflush(stdout);
        counted_from = UINT64_MAX;
        kill_node(who);  // it is dead: this takes its exit
        start_node(who);
        turn_until(now_ns() + 3000000000ull);
    }
    printf("],\"done\":%llu,\"lost\":%llu,\"late\":%llu,\"refused\":%llu}\n", (unsigned long long)done, (unsigned long long)lost,
           (unsigned long long)late, (unsigned long long)refused);
    return 0;
}

int main(int argc, char **argv) {
    bool killing = argc > 1 && !strcmp(argv[1], "kill");
    if (argc == 9 + NODES * 2 && !strcmp(argv[1], "node")) return run_node(argv + 2);
    if (argc < 2 || (!killing && strcmp(argv[1], "load"))) { fprintf(stderr, "usage: see the head of libraft.c\n"); return 2; }
    if (killing) options.clients = 9;
    for (int o; (o = getopt(argc - 1, argv + 1, "d:c:t:s:n:p:w:bNS:e:h:")) != -1;) switch (o) {
        case 'd': options.directory = optarg; break;
        case 'c': options.clients = atoi(optarg); break;
        case 't': options.seconds = atof(optarg); break;
        case 's': options.bytes = atoi(optarg); break;
        case 'n': options.trials = atoi(optarg); break;
        case 'p': options.pause_ms = atof(optarg); break;
        case 'w': options.deadline_ms = atof(optarg); break;
        case 'b': options.batch = "1"; break;
        case 'N': options.no_delay = "1"; break;
        case 'S': options.snapshot = optarg; break;
        case 'e': options.election = optarg; break;
        case 'h': options.heartbeat = optarg; break;
        default: return 2;
        }
    if (!options.directory || options.clients < 1 || options.clients > RING / 2 || options.bytes < TAG || options.bytes > MAX_BYTES - 8) {
        fprintf(stderr, "libraft: -d is missing, or -c or -s out of range\n");
        return 2;
    }
    return killing ? run_kill() : run_load();
}
