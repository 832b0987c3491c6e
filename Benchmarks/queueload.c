// queueload: the load of scripts/bench-consensus on Coterie's queue port (the beanstalkd protocol), from one thread.
// It shares the machine's cores with the servers, so it is as cheap as can be: epoll, no dependency but libc, one clock
// reading for each turn of a connection.  Build: cc -O2 -Wall -o queueload queueload.c
//
//   queueload put   -a HOST:PORT[,...] -c CONNS -d DEPTH -t SECONDS [-n COMMANDS] [-s BYTES] [-T TUBE]
//   queueload peek  the same: one job is put first, then every command is "peek" of that job, a linearizable read
//   queueload watch -a ... -c WRITERS [-p PAUSE_MS] [-w DEADLINE_MS] [-g GAP_MS]
//
// put, peek: connection i goes to address i modulo their number and keeps DEPTH commands outstanding. All connections are
// up before the clock starts. Prints one JSON object; exit 1 if a command failed, 2 if it could not run.
// watch: WRITERS connections, each puts a job, deletes it, and so on, with a pause after each acknowledgement (half to one
// and a half times PAUSE_MS, by dice with a fixed seed, so that the writers do not march in step). A command
// without an answer within the deadline, or with its connection lost, has failed: the writer goes to the next address after
// the pause. Prints a line for whatever a test wants to know, with times of CLOCK_MONOTONIC in nanoseconds, and runs until
// its standard input ends:  "ready T" at the first acknowledgement; "gap FROM TO" when acknowledgements (of all writers
// together) were GAP_MS or more apart; "at T" for one acknowledgement in 50 ms; "fail T REASON" (lost, late, refused); at the
// end a JSON object.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "latency.h"

enum { MAX_DEPTH = 1024, MAX_ADDRESSES = 16, INPUT = 65536 };
enum mode { PUT, PEEK, WATCH };

typedef struct {
    int fd, server;
    bool up, want_out;
    uint64_t due;              // watch: when to act next (connect, send, give up)
    uint64_t job;              // watch: the job to delete, or 0
    char *in, *out;
    size_t in_len, out_len, out_pos, out_cap;
    uint64_t sent[MAX_DEPTH];  // times of the commands without an answer, as a ring
    uint32_t head, tail;
} conn;

static enum mode mode;
static int conns_count = 1, depth = 1, size = 256, addresses_count, ep;
static double seconds = 3, pause_ms = 2, deadline_ms = 100, gap_ms = 1;
static uint64_t limit, issued, done, failed, lost, late, refused, last_ok;
static const char *tube = "bench";
static struct sockaddr_in addresses[MAX_ADDRESSES];
static conn *conns;
static char *command;          // what put and peek send
static size_t command_len, body_len;

static void die(const char *what) {
    fprintf(stderr, "queueload: %s: %s\n", what, errno ? strerror(errno) : "failed");
    exit(2);
}

static void say(const char *word, uint64_t a, uint64_t b, const char *text) {
    if (text) printf("%s %llu %s\n", word, (unsigned long long)a, text);
    else if (b) printf("%s %llu %llu\n", word, (unsigned long long)a, (unsigned long long)b);
    else printf("%s %llu\n", word, (unsigned long long)a);
    fflush(stdout);
}

static void add(conn *c, const char *bytes, size_t n) {
    if (c->out_pos) {
        memmove(c->out, c->out + c->out_pos, c->out_len -= c->out_pos);
        c->out_pos = 0;
    }
    while (c->out_len + n > c->out_cap)
        if (!(c->out = realloc(c->out, c->out_cap = c->out_cap ? c->out_cap * 2 : 4096))) die("memory");
    memcpy(c->out + c->out_len, bytes, n);
    c->out_len += n;
}
static void drop(conn *c, uint64_t now, const char *why) {
    bool waited = c->head != c->tail;
    close(c->fd);
    c->fd = -1;
    c->in_len = c->out_len = c->out_pos = 0;
    failed += c->tail - c->head;
    c->head = c->tail = 0;
    c->job = 0;
    if (mode != WATCH) { fprintf(stderr, "queueload: a connection was %s\n", why); exit(1); }
    if (waited && c->up) {
        *(why[1] == 'a' ? &late : why[0] == 'r' ? &refused : &lost) += 1;
        say("fail", now, 0, why);
    }
    c->server = (c->server + 1) % addresses_count;
    c->due = now + about_ns(pause_ms);
}
static void flush_out(conn *c) {
    while (c->out_pos < c->out_len) {
        ssize_t n = send(c->fd, c->out + c->out_pos, c->out_len - c->out_pos, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno == EAGAIN || errno == ENOTCONN) break;
            drop(c, now_ns(), "lost");
            return;
        }
        c->out_pos += (size_t)n;
    }
    if (c->out_pos == c->out_len) c->out_pos = c->out_len = 0;
    bool want = c->out_len > 0 || !c->up;
    if (want != c->want_out) {
        struct epoll_event e = {.events = EPOLLIN | (want ? EPOLLOUT : 0), .data.ptr = c};
        epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &e);
        c->want_out = want;
    }
}
static void expect(conn *c, uint64_t now) { c->sent[c->tail++ % MAX_DEPTH] = now; }
static void open_conn(conn *c, uint64_t now) {
    int one = 1;
    if ((c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)) < 0) die("socket");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct epoll_event e = {.events = EPOLLIN | EPOLLOUT, .data.ptr = c};
    if (epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &e) < 0) die("epoll_ctl");
    c->want_out = true;
    c->up = false;
    c->due = now + (uint64_t)(deadline_ms * 1e6);
    if (connect(c->fd, (struct sockaddr *)&addresses[c->server], sizeof addresses[0]) < 0 && errno != EINPROGRESS) {
        drop(c, now, "lost");
        return;
    }
    char text[256];
    add(c, text, (size_t)snprintf(text, sizeof text, "use %s\r\n", tube));
    expect(c, now);
}

static uint64_t stop_at = UINT64_MAX;
static bool running;
static void pump(conn *c, uint64_t now) {
    if (!running || now >= stop_at) return;
    while ((int)(c->tail - c->head) < depth && (!limit || issued < limit)) {
        issued++;
        add(c, command, command_len);
        expect(c, now);
    }
}
static void act(conn *c, uint64_t now) {  // watch: it is time
    if (c->fd < 0) { open_conn(c, now); return; }
    if (c->head != c->tail || !c->up) { drop(c, now, "late"); return; }
    char text[128];
    size_t n = c->job ? (size_t)snprintf(text, sizeof text, "delete %llu\r\n", (unsigned long long)c->job)
                      : (size_t)snprintf(text, sizeof text, "put 0 0 60 1\r\nx\r\n");
    add(c, text, n);
    expect(c, now);
    c->due = now + (uint64_t)(deadline_ms * 1e6);
    flush_out(c);
}

// One answer; false if the connection is gone.
static bool answer(conn *c, const char *line, uint64_t now) {
    if (c->head == c->tail) { drop(c, now, "refused"); return false; }
    uint64_t at = c->sent[c->head++ % MAX_DEPTH];
    if (!strncmp(line, "USING ", 6)) {
        if (mode == WATCH) c->due = now;
        return true;
    }
    bool inserted = !strncmp(line, "INSERTED ", 9);
    bool ok = mode == PUT ? inserted : mode == PEEK ? !strncmp(line, "FOUND ", 6) : c->job ? !strcmp(line, "DELETED") : inserted;
    if (!ok) {
        fprintf(stderr, "queueload: the answer was %.80s\n", line);
        c->head--;
        drop(c, now, "refused");
        return false;
    }
    done++;
    record(now - at);
    if (mode == WATCH) {
        static uint64_t told;
        if (now - told >= 50000000) say("at", told = now, 0, NULL);
        if (!last_ok) say("ready", now, 0, NULL);
        else if ((double)(now - last_ok) >= gap_ms * 1e6) say("gap", last_ok, now, NULL);
        last_ok = now;
        c->job = c->job ? 0 : strtoull(line + 9, NULL, 10);
        c->due = now + about_ns(pause_ms);
    }
    return true;
}
static void input(conn *c) {
    ssize_t n = recv(c->fd, c->in + c->in_len, INPUT - c->in_len - 1, 0);
    if (n < 0 && errno == EAGAIN) return;
    uint64_t now = now_ns();
    if (n <= 0) { drop(c, now, "lost"); return; }
    c->in_len += (size_t)n;
    c->in[c->in_len] = 0;
    size_t at = 0;
    for (;;) {
        char *end = memmem(c->in + at, c->in_len - at, "\r\n", 2);
        if (!end) break;
        size_t next = (size_t)(end - c->in) + 2;
        if (mode == PEEK && !strncmp(c->in + at, "FOUND ", 6)) {
            if (c->in_len - next < body_len + 2) break;
            next += body_len + 2;
        }
        *end = 0;
        if (!answer(c, c->in + at, now)) return;
        at = next;
    }
    memmove(c->in, c->in + at, c->in_len -= at);
    if (mode != WATCH) pump(c, now);
}

static void parse_addresses(char *list) {
    for (char *save, *a = strtok_r(list, ",", &save); a && addresses_count < MAX_ADDRESSES; a = strtok_r(NULL, ",", &save)) {
        char *colon = strrchr(a, ':');
        if (!colon) { fprintf(stderr, "queueload: %s is not HOST:PORT\n", a); exit(2); }
        *colon = 0;
        addresses[addresses_count].sin_family = AF_INET;
        addresses[addresses_count].sin_port = htons((uint16_t)atoi(colon + 1));
        if (inet_pton(AF_INET, a, &addresses[addresses_count++].sin_addr) != 1) { fprintf(stderr, "queueload: address %s\n", a); exit(2); }
    }
    if (!addresses_count) { fprintf(stderr, "queueload: -a is missing\n"); exit(2); }
}

// The job that peek reads: put over a blocking connection of its own.
static unsigned long long put_one(const char *body_command, size_t n) {
    char text[256];
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&addresses[0], sizeof addresses[0]) < 0) die("connect");
    if (send(fd, body_command, n, MSG_NOSIGNAL) != (ssize_t)n) die("put");
    ssize_t got = recv(fd, text, sizeof text - 1, 0);
    if (got <= 0) die("put");
    text[got] = 0;
    close(fd);
    return strncmp(text, "INSERTED ", 9) ? (fprintf(stderr, "queueload: %s", text), exit(2), 0) : strtoull(text + 9, NULL, 10);
}

int main(int argc, char **argv) {
    char *list = NULL;
    if (argc < 2) { fprintf(stderr, "usage: see the head of queueload.c\n"); return 2; }
    mode = !strcmp(argv[1], "put") ? PUT : !strcmp(argv[1], "peek") ? PEEK : WATCH;
    if (mode == WATCH && strcmp(argv[1], "watch")) { fprintf(stderr, "usage: see the head of queueload.c\n"); return 2; }
    for (int o; (o = getopt(argc - 1, argv + 1, "a:c:d:t:n:s:T:p:w:g:")) != -1;) switch (o) {
        case 'a': list = optarg; break;
        case 'c': conns_count = atoi(optarg); break;
        case 'd': depth = atoi(optarg); break;
        case 't': seconds = atof(optarg); break;
        case 'n': limit = strtoull(optarg, NULL, 10); break;
        case 's': size = atoi(optarg); break;
        case 'T': tube = optarg; break;
        case 'p': pause_ms = atof(optarg); break;
        case 'g': gap_ms = atof(optarg); break;
        case 'w': deadline_ms = atof(optarg); break;
        default: return 2;
        }
    if (conns_count < 1 || depth < 1 || depth > MAX_DEPTH || size < 1 || size > 60000) {
        fprintf(stderr, "queueload: -c, -d or -s out of range\n");
        return 2;
    }
    parse_addresses(list ? list : (char[]){""});
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);

    body_len = (size_t)size;
    if (!(command = malloc(body_len + 128))) die("memory");
    command_len = (size_t)sprintf(command, "put 1024 0 60 %d\r\n", size);
    for (int i = 0; i < size; i++) command[command_len++] = (char)('a' + i % 26);
    command_len += (size_t)sprintf(command + command_len, "\r\n");
    if (mode == PEEK) command_len = (size_t)sprintf(command, "peek %llu\r\n", put_one(command, command_len));

    conns = calloc((size_t)conns_count, sizeof *conns);
    ep = epoll_create1(0);
    if (!conns || ep < 0) die("setup");
    for (int i = 0; i < conns_count; i++) {
        conns[i].server = i % addresses_count;
        if (!(conns[i].in = malloc(INPUT))) die("memory");
        open_conn(&conns[i], now_ns());
    }
    if (mode == WATCH) {
        fcntl(0, F_SETFL, O_NONBLOCK);
        struct epoll_event e = {.events = EPOLLIN, .data.ptr = NULL};
        if (epoll_ctl(ep, EPOLL_CTL_ADD, 0, &e) < 0) die("standard input");
    }
    struct epoll_event events[256];
    uint64_t begun = now_ns(), started = 0, up_by = begun + 5000000000ull;
    for (bool over = false; !over;) {
        uint64_t wait = 20000000;
        if (mode == WATCH) {
            uint64_t at = now_ns(), next = at + wait;
            for (int i = 0; i < conns_count; i++) if (conns[i].due < next) next = conns[i].due;
            wait = next > at ? next - at : 0;
        }
        struct timespec timeout = {.tv_nsec = (long)wait};
        int n = epoll_pwait2(ep, events, 256, &timeout, NULL);
        for (int i = 0; i < n; i++) {
            conn *c = events[i].data.ptr;
            if (!c) {
                char text[64];
                if (read(0, text, sizeof text) == 0) over = true;
                continue;
            }
            if (c->fd < 0) continue;
            if (events[i].events & (EPOLLERR | EPOLLHUP)) { drop(c, now_ns(), "lost"); continue; }
            if (events[i].events & EPOLLOUT) c->up = true;
            if (events[i].events & EPOLLIN) input(c);
            if (c->fd >= 0) flush_out(c);
        }
        uint64_t now = now_ns();
        if (mode == WATCH) {
            for (int i = 0; i < conns_count; i++) if (now >= conns[i].due) act(&conns[i], now);
            continue;
        }
        if (!running) {
            running = true;
            for (int i = 0; i < conns_count; i++) running &= conns[i].up && conns[i].head == conns[i].tail;
            if (!running && now > up_by) { fprintf(stderr, "queueload: not all connections were up in 5 s\n"); return 2; }
            if (!running) continue;
            started = now;
            stop_at = now + (uint64_t)(seconds * 1e9);
            for (int i = 0; i < conns_count; i++) { pump(&conns[i], now); flush_out(&conns[i]); }
        } else if (now >= stop_at || (limit && done >= limit)) {
            over = true;
            for (int i = 0; i < conns_count; i++) over &= conns[i].head == conns[i].tail;
            if (!over && now > stop_at + 20000000000ull) {
                fprintf(stderr, "queueload: answers are missing 20 s after the end\n");
                return 1;
            }
        }
    }
    double wall = (double)(now_ns() - (started ? started : begun)) / 1e9;
    struct rusage use;
    getrusage(RUSAGE_SELF, &use);
    printf("{\"connections\":%d,\"depth\":%d,\"done\":%llu,\"failed\":%llu,\"lost\":%llu,\"late\":%llu,\"refused\":%llu,\"seconds\":%.3f,"
           "\"rate\":%.0f,\"mean\":%.3f,\"p50\":%.3f,\"p99\":%.3f,\"p999\":%.3f,\"max\":%.3f,\"client_cpu_seconds\":%.2f}\n",
           conns_count, depth, (unsigned long long)done, (unsigned long long)failed, (unsigned long long)lost, (unsigned long long)late,
           (unsigned long long)refused, wall, (double)done / wall, done ? total / (double)done / 1e6 : 0, quantile_ms(.5), quantile_ms(.99),
           quantile_ms(.999), (double)longest / 1e6,
           (double)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) + (double)(use.ru_utime.tv_usec + use.ru_stime.tv_usec) / 1e6);
    return 0;
}
