// coterie-init namespaces|user-namespaces|none: see init.h.
//
// One thread, one poll loop: the agent's messages, ends of children, and the reports of children that are about to run.
// A run is a container, a command in a container, or a probe:
//
//   starting ──exec──▶ running ──exit──▶ clearing ──no process left──▶ gone (EXITED)
//       └──── report ────▶ ERROR, then gone
//
// Clearing kills what the container's main process left behind. What belongs to a container is told by its mount namespace
// (without namespaces: by its session), which a process can not leave without rights.
#include "init.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum run_kind { RUN_CONTAINER, RUN_COMMAND, RUN_PROBE };
enum run_state { RUN_STARTING, RUN_RUNNING, RUN_CLEARING };

struct run {
    struct run *next;
    uint32_t id;
    enum run_kind kind;
    enum run_state state;
    pid_t pid;
    int status_fd;  // the child's report; -1 once it ended
    char report[WHY_BYTES];
    size_t report_length;
    bool host_side;
    bool has_exited;
    int code;
    uint64_t mount_namespace;
    int mount_namespace_fd;
    char **cgroups;
};

static struct pod pod;
static bool is_set_up;
static struct run *runs;
static uint32_t run_count;
static int signal_fd, lease_fd;

// MARK: - To the agent

static uint8_t *outgoing;
static size_t outgoing_length, outgoing_capacity;

static void flush(void) {
    size_t sent = 0;
    while (sent < outgoing_length) {
        ssize_t n = send(CONTROL_FD, outgoing + sent, outgoing_length - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR) continue;
        // Any other failure is the end of the agent, which the reading side sees.
        if (n <= 0) break;
        sent += (size_t)n;
    }
    memmove(outgoing, outgoing + sent, outgoing_length - sent);
    outgoing_length -= sent;
}

static void put_u32(uint8_t *p, uint32_t value) {
    for (int i = 0; i < 4; i++) p[i] = (uint8_t)(value >> (8 * i));
}

static void tell(enum message_kind kind, uint32_t run, bool has_number, uint32_t number, const char *text) {
    size_t text_length = text ? strlen(text) : 0;
    size_t body = 2 + 4 + (has_number ? 4 : 0) + (text ? 4 + text_length : 0);
    if (outgoing_length + 4 + body > outgoing_capacity) {
        outgoing_capacity = (outgoing_length + 4 + body) * 2;
        uint8_t *larger = realloc(outgoing, outgoing_capacity);
        if (!larger) _exit(125);
        outgoing = larger;
    }
    uint8_t *p = outgoing + outgoing_length;
    outgoing_length += 4 + body;
    put_u32(p, (uint32_t)body);
    p[4] = (uint8_t)kind;
    p[5] = 0;
    put_u32(p + 6, run);
    p += 10;
    if (has_number) {
        put_u32(p, number);
        p += 4;
    }
    if (text) {
        put_u32(p, (uint32_t)text_length);
        memcpy(p + 4, text, text_length);
    }
    flush();
}

static void give_up(const char *why) __attribute__((noreturn));
static void give_up(const char *why) {
    tell(MESSAGE_FAILED, 0, false, 0, why);
    _exit(1);
}

// MARK: - Killing

// Field 4 (parent) and field 6 (session) of /proc/PID/stat; the name in field 2 may hold anything, so look for its last ')'.
static bool read_stat(const char *proc, pid_t pid, pid_t *parent, pid_t *session, char *state) {
    char path[4200], text[512];
    snprintf(path, sizeof path, "%s/%d/stat", proc, pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0) return false;
    text[n] = 0;
    char *rest = strrchr(text, ')');
    int group;
    return rest && sscanf(rest + 1, " %c %d %d %d", state, parent, &group, session) == 4;
}

static const char *proc_path(void) {
    static char path[4096];
    if (pod.mode == SANDBOX_NONE) return "/proc";
    if (!path[0]) snprintf(path, sizeof path, "%s/proc", pod.stage);
    return path;
}

static bool belongs(const struct run *run, const char *proc, pid_t pid) {
    pid_t parent, session;
    char state;
    if (!read_stat(proc, pid, &parent, &session, &state) || state == 'Z' || state == 'X') return false;
    if (pod.mode == SANDBOX_NONE) return session == run->pid;
    char path[4200];
    struct stat info;
    snprintf(path, sizeof path, "%s/%d/ns/mnt", proc, pid);
    return stat(path, &info) == 0 && info.st_ino == run->mount_namespace;
}

static int kill_group_file(const char *path) {
    FILE *file = fopen(path, "re");
    if (!file) return 0;
    int pid, killed = 0;
    while (fscanf(file, "%d", &pid) == 1)
        if (pid > 1 && kill(pid, SIGKILL) == 0) killed++;
    fclose(file);
    return killed;
}

// Kills what is left of a container; false when there is nothing more.
static bool clear_container(const struct run *run) {
    int killed = 0;
    DIR *directory = opendir(proc_path());
    if (directory) {
        for (struct dirent *entry; (entry = readdir(directory));) {
            pid_t pid = atoi(entry->d_name);
            if (pid > 1 && pid != getpid() && belongs(run, proc_path(), pid) && kill(pid, SIGKILL) == 0) killed++;
        }
        closedir(directory);
    }
    for (char **path = run->cgroups; path && *path; path++) killed += kill_group_file(*path);
    return killed > 0;
}

// Without a process namespace: everything that descends from here, until nothing does. As orphans come to us (subreaper),
// none is missed.
static void kill_descendants(void) {
    for (;;) {
        DIR *directory = opendir("/proc");
        if (!directory) return;
        enum { most = 32768 };
        static pid_t pids[most], parents[most];
        static bool ours[most];
        int count = 0;
        for (struct dirent *entry; (entry = readdir(directory)) && count < most;) {
            pid_t pid = atoi(entry->d_name), parent, session;
            char state;
            if (pid <= 0 || !read_stat("/proc", pid, &parent, &session, &state)) continue;
            pids[count] = pid;
            parents[count] = parent;
            ours[count++] = parent == getpid();
        }
        closedir(directory);
        for (bool found = true; found;) {
            found = false;
            for (int i = 0; i < count; i++) {
                if (ours[i]) continue;
                for (int j = 0; j < count; j++)
                    if (ours[j] && pids[j] == parents[i]) {
                        ours[i] = found = true;
                        break;
                    }
            }
        }
        for (int i = 0; i < count; i++)
            if (ours[i]) kill(pids[i], SIGKILL);
        // One end at least is awaited before looking again; ECHILD says that nothing is left.
        if (waitpid(-1, NULL, 0) < 0 && errno == ECHILD) return;
        while (waitpid(-1, NULL, WNOHANG) > 0) {}
    }
}

static void end(int code) __attribute__((noreturn));
static void end(int code) {
    // In a process namespace the kernel kills every other process when process 1 ends.
    if (pod.mode == SANDBOX_NONE) kill_descendants();
    _exit(code);
}

// MARK: - Runs

static struct run *find_run(uint32_t id) {
    for (struct run *r = runs; r; r = r->next)
        if (r->id == id) return r;
    return NULL;
}

static void forget(struct run *run) {
    for (struct run **p = &runs; *p; p = &(*p)->next)
        if (*p == run) {
            *p = run->next;
            break;
        }
    if (run->status_fd >= 0) close(run->status_fd);
    if (run->mount_namespace_fd >= 0) close(run->mount_namespace_fd);
    for (char **path = run->cgroups; path && *path; path++) free(*path);
    free(run->cgroups);
    free(run);
    run_count--;
}

// Moves a run on as far as it goes; it may be gone afterwards.
static void advance(struct run *run) {
    if (run->state == RUN_STARTING && run->status_fd < 0 && run->report_length == 0) {
        run->state = RUN_RUNNING;
        if (run->kind == RUN_CONTAINER && pod.mode != SANDBOX_NONE) {
            char path[4200];
            // For commands in it. Of a process that has ended already there is none, and none is needed.
            snprintf(path, sizeof path, "%s/%d/ns/mnt", proc_path(), run->pid);
            run->mount_namespace_fd = open(path, O_RDONLY | O_CLOEXEC);
        }
        if (run->kind != RUN_PROBE) tell(MESSAGE_STARTED, run->id, true, (uint32_t)run->pid, NULL);
    }
    // A report may still be on its way when the child has been reaped: its text comes first.
    if (!run->has_exited || run->status_fd >= 0) return;
    if (run->report_length > 0) {
        run->report[run->report_length] = 0;
        tell(MESSAGE_ERROR, run->id, false, 0, run->report);
        forget(run);
        return;
    }
    run->state = RUN_CLEARING;
    if (run->kind == RUN_CONTAINER && clear_container(run)) return;
    tell(MESSAGE_EXITED, run->id, true, (uint32_t)run->code, NULL);
    forget(run);
}

static void read_report(struct run *run) {
    size_t space = sizeof run->report - 1 - run->report_length;
    char dump[256];
    ssize_t n = space > 0 ? read(run->status_fd, run->report + run->report_length, space) : read(run->status_fd, dump, sizeof dump);
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) return;
    if (n > 0) {
        if (space == 0) return;
        run->report_length += (size_t)n;
        if (run->report[0] == REPORT_NAMESPACE && run->report_length >= 1 + sizeof run->mount_namespace) {
            size_t used = 1 + sizeof run->mount_namespace;
            memcpy(&run->mount_namespace, run->report + 1, sizeof run->mount_namespace);
            run->report_length -= used;
            memmove(run->report, run->report + used, run->report_length);
        }
        return;
    }
    close(run->status_fd);
    run->status_fd = -1;
    advance(run);
}

static void reap(void) {
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        for (struct run *run = runs; run; run = run->next) {
            if (run->pid != pid || run->has_exited) continue;
            run->has_exited = true;
            run->code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
            advance(run);
            break;
        }
    }
    for (struct run *run = runs, *next; run; run = next) {
        next = run->next;
        if (run->state == RUN_CLEARING) advance(run);
    }
}

static void refuse_run(uint32_t id, const char *why) { tell(MESSAGE_ERROR, id, false, 0, why); }

// Forks; in the child returns 0 with `*status` set, in the parent the new run's pid, or -1.
static pid_t fork_run(uint32_t id, enum run_kind kind, bool host_side, char **cgroups, int *status) {
    int pipe_fds[2];
    if (run_count >= RUN_LIMIT || find_run(id)) {
        refuse_run(id, run_count >= RUN_LIMIT ? "too many processes started in this pod" : "this run is known");
        return -1;
    }
    char why[WHY_BYTES];
    if (pipe2(pipe_fds, O_CLOEXEC) < 0) {
        explain_errno(why, "make a pipe");
        refuse_run(id, why);
        return -1;
    }
    pid_t pid = fork();
    if (pid < 0) {
        explain_errno(why, "fork");
        refuse_run(id, why);
        close(pipe_fds[0]);
        close(pipe_fds[1]);
        return -1;
    }
    if (pid == 0) {
        close(pipe_fds[0]);
        *status = pipe_fds[1];
        return 0;
    }
    close(pipe_fds[1]);
    struct run *run = allocate(sizeof *run);
    *run = (struct run){.next = runs, .id = id, .kind = kind, .pid = pid, .status_fd = pipe_fds[0], .host_side = host_side,
                        .mount_namespace_fd = -1, .cgroups = cgroups};
    runs = run;
    run_count++;
    return pid;
}

// MARK: - From the agent

static void set_up(struct reader *r) {
    static char why[WHY_BYTES];
    enum sandbox_mode mode = pod.mode;
    if (is_set_up) give_up("the pod is set up already");
    pod.host_network = read_u8(r) != 0;
    pod.uid = read_u32(r);
    pod.gid = read_u32(r);
    pod.host_side_uid = read_u32(r);
    pod.hostname = read_text(r);
    pod.directory = read_text(r);
    pod.supplied = read_text(r);
    pod.listener_count = read_u32(r);
    if (pod.listener_count > LISTENER_LIMIT) give_up("too many listeners");
    pod.listeners = allocate(sizeof *pod.listeners * (pod.listener_count + 1));
    for (uint32_t i = 0; i < pod.listener_count; i++) {
        pod.listeners[i].container = read_text(r);
        pod.listeners[i].port = read_u32(r);
    }
    pod.masks = read_texts(r, &pod.mask_count);
    pod.memory_volume_count = read_u32(r);
    if (pod.memory_volume_count > LIST_LIMIT) give_up("too many volumes");
    pod.memory_volumes = allocate(sizeof *pod.memory_volumes * (pod.memory_volume_count + 1));
    for (uint32_t i = 0; i < pod.memory_volume_count; i++) {
        pod.memory_volumes[i].path = read_text(r);
        pod.memory_volumes[i].bytes = read_u64(r);
    }
    if (r->bad || r->left) give_up("a damaged set-up message");
    if (pod.uid == 0 || pod.host_side_uid == 0) give_up("a pod never runs as user 0");
    pod.network = -1;
    if (set_up_namespaces(&pod, why) < 0) give_up(why);
    if (mode != SANDBOX_NONE && build_stage(&pod, why) < 0) give_up(why);
    is_set_up = true;
    tell(MESSAGE_READY, 0, false, 0, NULL);
}

static void take_fds(struct start *start, bool has_stdin, int *fds, uint8_t fd_count, struct reader *r) {
    start->has_stdin = has_stdin;
    if (fd_count != (has_stdin ? 3 : 2)) {
        r->bad = true;
        return;
    }
    start->fds[0] = has_stdin ? fds[0] : -1;
    start->fds[1] = fds[fd_count - 2];
    start->fds[2] = fds[fd_count - 1];
}

// The lists of a start message belong to the child after the fork; here they are freed but for the cgroups' paths, which the
// run keeps. A container that restarts for years must not let process 1 grow.
static void free_texts(char **texts) {
    for (char **p = texts; p && *p; p++) free(*p);
    free(texts);
}

static void start_container(struct reader *r, int *fds, uint8_t fd_count) {
    struct start start = {0};
    start.run = read_u32(r);
    start.host_side = read_u8(r) != 0;
    start.name = read_text(r);
    start.image = read_text(r);
    start.directory = read_text(r);
    start.working_directory = read_text(r);
    start.arguments = read_texts(r, NULL);
    start.environment = read_texts(r, NULL);
    start.cgroups = read_texts(r, NULL);
    start.oom_score = (int32_t)read_u32(r);
    start.mount_count = read_u32(r);
    if (start.mount_count > LIST_LIMIT) r->bad = true;
    if (r->bad) start.mount_count = 0;
    start.mounts = allocate(sizeof *start.mounts * (start.mount_count + 1));
    for (uint32_t i = 0; i < start.mount_count; i++) {
        start.mounts[i].source = read_text(r);
        start.mounts[i].sub_path = read_text(r);
        start.mounts[i].target = read_text(r);
        start.mounts[i].flags = read_u8(r);
    }
    take_fds(&start, false, fds, fd_count, r);
    if (r->bad || r->left || !is_set_up) {
        refuse_run(start.run, "a damaged start message");
    } else {
        int status;
        pid_t pid = fork_run(start.run, RUN_CONTAINER, start.host_side, start.cgroups, &status);
        if (pid == 0) container_child(&pod, &start, status);
        if (pid > 0) start.cgroups = NULL;
    }
    free(start.name);
    free(start.image);
    free(start.directory);
    free(start.working_directory);
    free_texts(start.arguments);
    free_texts(start.environment);
    free_texts(start.cgroups);
    for (uint32_t i = 0; i < start.mount_count; i++) {
        free(start.mounts[i].source);
        free(start.mounts[i].sub_path);
        free(start.mounts[i].target);
    }
    free(start.mounts);
}

static void start_command(struct reader *r, int *fds, uint8_t fd_count) {
    struct start start = {0};
    start.run = read_u32(r);
    start.target_run = read_u32(r);
    bool has_stdin = read_u8(r) != 0;
    start.working_directory = read_text(r);
    start.arguments = read_texts(r, NULL);
    start.environment = read_texts(r, NULL);
    start.cgroups = read_texts(r, NULL);
    start.oom_score = (int32_t)read_u32(r);
    take_fds(&start, has_stdin, fds, fd_count, r);
    struct run *target = find_run(start.target_run);
    if (r->bad || r->left) {
        refuse_run(start.run, "a damaged command message");
    } else if (!target || target->kind != RUN_CONTAINER || target->state != RUN_RUNNING || target->has_exited) {
        refuse_run(start.run, "the container does not run");
    } else {
        start.host_side = target->host_side;
        int status, mount_namespace = target->mount_namespace_fd;
        pid_t pid = fork_run(start.run, RUN_COMMAND, start.host_side, NULL, &status);
        if (pid == 0) exec_child(&pod, &start, mount_namespace, status);
    }
    free(start.working_directory);
    free_texts(start.arguments);
    free_texts(start.environment);
    free_texts(start.cgroups);
}

static void start_probe(struct reader *r) {
    struct probe probe = {0};
    probe.run = read_u32(r);
    probe.host_side = read_u8(r) != 0;
    bool http = read_u8(r) != 0;
    probe.port = read_u32(r);
    probe.timeout_ms = read_u32(r);
    char *path = read_text(r);
    probe.path = http ? path : NULL;
    if (r->bad || r->left || !is_set_up) {
        refuse_run(probe.run, "a damaged probe message");
    } else {
        int status;
        if (fork_run(probe.run, RUN_PROBE, false, NULL, &status) == 0) {
            sigset_t none;
            sigemptyset(&none);
            sigprocmask(SIG_SETMASK, &none, NULL);
            probe_child(&pod, &probe, status);
        }
    }
    free(path);
}

static void signal_run(struct reader *r) {
    uint32_t id = read_u32(r), number = read_u32(r);
    struct run *run = find_run(id);
    if (r->bad || r->left || number == 0 || number > 64 || !run || run->has_exited) return;
    // A command's or probe's whole session ends at SIGKILL; of a container the main process, whose end clears the rest.
    if (run->kind != RUN_CONTAINER && number == SIGKILL) kill(-run->pid, SIGKILL);
    kill(run->pid, (int)number);
}

static void set_lease(struct reader *r) {
    uint64_t deadline = read_u64(r);
    if (r->bad || r->left) return;
    struct itimerspec when = {.it_value = {(time_t)(deadline / 1000000000u), (long)(deadline % 1000000000u)}};
    timerfd_settime(lease_fd, TFD_TIMER_ABSTIME, &when, NULL);
}

static uint8_t *incoming;
static size_t incoming_length;
static int incoming_fds[64];
static size_t incoming_fd_count;

static void handle(const uint8_t *body, size_t length) {
    struct reader r = {body, length, false};
    uint8_t kind = read_u8(&r), fd_count = read_u8(&r);
    int fds[MESSAGE_FDS];
    if (r.bad || fd_count > MESSAGE_FDS || fd_count > incoming_fd_count) give_up("a damaged message");
    memcpy(fds, incoming_fds, sizeof(int) * fd_count);
    incoming_fd_count -= fd_count;
    memmove(incoming_fds, incoming_fds + fd_count, sizeof(int) * incoming_fd_count);
    switch (kind) {
    case MESSAGE_SETUP: set_up(&r); break;
    case MESSAGE_START: start_container(&r, fds, fd_count); break;
    case MESSAGE_EXEC: start_command(&r, fds, fd_count); break;
    case MESSAGE_PROBE: start_probe(&r); break;
    case MESSAGE_SIGNAL: signal_run(&r); break;
    case MESSAGE_LEASE: set_lease(&r); break;
    case MESSAGE_SHUTDOWN: end(0);
    default: give_up("a message of an unknown kind");
    }
    for (int i = 0; i < fd_count; i++) close(fds[i]);
}

static void receive(void) {
    static uint8_t buffer[65536];
    struct iovec data = {buffer, sizeof buffer};
    union {
        char bytes[CMSG_SPACE(sizeof(int) * 16)];
        struct cmsghdr align;
    } control;
    struct msghdr message = {
        .msg_iov = &data, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
    ssize_t n = recvmsg(CONTROL_FD, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) return;
    if (n <= 0) end(0);  // the agent is gone
    for (struct cmsghdr *h = CMSG_FIRSTHDR(&message); h; h = CMSG_NXTHDR(&message, h)) {
        if (h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS) continue;
        size_t count = (h->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(h) + sizeof(int) * i, sizeof fd);
            if (incoming_fd_count == sizeof incoming_fds / sizeof *incoming_fds) give_up("too many descriptors");
            incoming_fds[incoming_fd_count++] = fd;
        }
    }
    uint8_t *larger = realloc(incoming, incoming_length + (size_t)n);
    if (!larger) end(125);
    incoming = larger;
    memcpy(incoming + incoming_length, buffer, (size_t)n);
    incoming_length += (size_t)n;
    size_t at = 0;
    while (incoming_length - at >= 4) {
        struct reader r = {incoming + at, 4, false};
        uint32_t length = read_u32(&r);
        if (length < 2 || length > MESSAGE_LIMIT) give_up("a message of a wrong length");
        if (incoming_length - at - 4 < length) break;
        handle(incoming + at + 4, length);
        at += 4 + length;
    }
    memmove(incoming, incoming + at, incoming_length - at);
    incoming_length -= at;
    if (incoming_length == 0) {
        free(incoming);
        incoming = NULL;
    }
}

static void serve(void) __attribute__((noreturn));
static void serve(void) {
    static struct pollfd polled[RUN_LIMIT + 3];
    static struct run *owners[RUN_LIMIT + 3];
    for (;;) {
        nfds_t count = 0;
        // An agent that does not read gets no more work done: its commands wait in the socket.
        bool behind = outgoing_length > 65536;
        polled[count++] = (struct pollfd){CONTROL_FD, (short)((behind ? 0 : POLLIN) | (outgoing_length ? POLLOUT : 0)), 0};
        polled[count++] = (struct pollfd){signal_fd, POLLIN, 0};
        polled[count++] = (struct pollfd){lease_fd, POLLIN, 0};
        bool clearing = false;
        for (struct run *run = runs; run; run = run->next) {
            clearing |= run->state == RUN_CLEARING;
            if (run->status_fd < 0) continue;
            owners[count] = run;
            polled[count++] = (struct pollfd){run->status_fd, POLLIN, 0};
        }
        // While clearing, a process that was forked between the look and the kill has to be found by another look.
        int n = poll(polled, count, clearing ? 5 : -1);
        if (n < 0 && errno != EINTR) end(125);
        if (n < 0) continue;
        if (polled[2].revents) end(0);  // the lease ran out
        for (nfds_t i = 3; i < count; i++)
            if (polled[i].revents) read_report(owners[i]);
        if (polled[1].revents) {
            struct signalfd_siginfo info;
            while (read(signal_fd, &info, sizeof info) > 0) {}
        }
        reap();
        if (polled[0].revents & POLLOUT) flush();
        if (polled[0].revents & (POLLIN | POLLHUP | POLLERR)) receive();
    }
}

// MARK: - Beginning

static void fail_early(const char *what) __attribute__((noreturn));
static void fail_early(const char *what) {
    char why[WHY_BYTES];
    explain_errno(why, "%s", what);
    give_up(why);
}

// Without root: a user namespace in which the agent's user is itself, and has the rights to make the other namespaces.
static void enter_user_namespace(void) {
    char text[64];
    uid_t uid = geteuid();
    gid_t gid = getegid();
    if (unshare(CLONE_NEWUSER) < 0) fail_early("make a user namespace");
    if (write_file("/proc/self/setgroups", "deny") < 0 && errno != ENOENT) fail_early("write /proc/self/setgroups");
    snprintf(text, sizeof text, "%u %u 1\n", gid, gid);
    if (write_file("/proc/self/gid_map", text) < 0) fail_early("write /proc/self/gid_map");
    snprintf(text, sizeof text, "%u %u 1\n", uid, uid);
    if (write_file("/proc/self/uid_map", text) < 0) fail_early("write /proc/self/uid_map");
}

static void watch_over(pid_t child) __attribute__((noreturn));
static void watch_over(pid_t child) {
    int status;
    close(CONTROL_FD);
    for (;;) {
        pid_t pid = waitpid(-1, &status, 0);
        if (pid == child) _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
        if (pid < 0 && errno != EINTR) _exit(125);
    }
}

int main(int argc, char **argv) {
    if (argc != 2) {
        static const char usage[] = "coterie-init is started by coterie agent; it is of no use by itself\n";
        return write(STDERR_FILENO, usage, sizeof usage - 1) < 0 ? 2 : 2;
    }
    if (!strcmp(argv[1], "namespaces")) pod.mode = SANDBOX_NAMESPACES;
    else if (!strcmp(argv[1], "user-namespaces")) pod.mode = SANDBOX_USER_NAMESPACES;
    else if (!strcmp(argv[1], "none")) pod.mode = SANDBOX_NONE;
    else return 2;
    if (fcntl(CONTROL_FD, F_SETFD, FD_CLOEXEC) < 0) return 2;
    syscall(SYS_close_range, CONTROL_FD + 1, ~0u, 0);

    for (int number = 1; number < 65; number++) signal(number, SIG_DFL);
    pid_t agent = getppid();
    if (pod.mode == SANDBOX_USER_NAMESPACES) enter_user_namespace();
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != agent) _exit(0);

    if (pod.mode != SANDBOX_NONE) {
        if (unshare(CLONE_NEWPID) < 0) fail_early("make a process namespace");
        pid_t child = fork();
        if (child < 0) fail_early("fork the pod's first process");
        if (child > 0) watch_over(child);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
    } else {
        prctl(PR_SET_CHILD_SUBREAPER, 1);
        // Killed by our own hand, containers must go before us: see end().
        prctl(PR_SET_PDEATHSIG, 0);
    }
    // Nothing in the pod may look into this process, whose user may be the container's own.
    prctl(PR_SET_DUMPABLE, 0);

    sigset_t mask;
    sigfillset(&mask);
    sigprocmask(SIG_SETMASK, &mask, NULL);
    sigemptyset(&mask);
    sigaddset(&mask, SIGCHLD);
    signal_fd = signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK);
    lease_fd = timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC | TFD_NONBLOCK);
    if (signal_fd < 0 || lease_fd < 0) fail_early("make a signal or timer descriptor");
    serve();
}
