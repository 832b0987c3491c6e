// The children of process 1, from fork to exec: containers, commands in containers, and probes. Each gives up every right
// before it runs what a user wrote.
#include "init.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <grp.h>

static void fail(int status, const char *why) __attribute__((noreturn));
static void fail(int status, const char *why) {
    size_t left = strlen(why);
    while (left > 0) {
        ssize_t n = write(status, why, left);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) break;
        why += n;
        left -= (size_t)n;
    }
    _exit(126);
}

int drop_rights(const struct pod *pod, uint32_t uid, char *why) {
    // A session keyring of its own, so that keys of the agent's session are not reachable. Kernels without keys: nothing to do.
    syscall(SYS_keyctl, 1 /* KEYCTL_JOIN_SESSION_KEYRING */, NULL);
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    bool changes_user = getuid() != uid || getgid() != pod->gid;
    bool root = geteuid() == 0;
    if (root || pod->mode == SANDBOX_USER_NAMESPACES) {
        for (int capability = 0; capability <= 63; capability++)
            if (prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0 && errno != EINVAL) {
                explain_errno(why, "drop capability %d", capability);
                return -1;
            }
    }
    if (changes_user
        && (setgroups(0, NULL) < 0 || setresgid(pod->gid, pod->gid, pod->gid) < 0 || setresuid(uid, uid, uid) < 0)) {
        explain_errno(why, "become user %u", uid);
        return -1;
    }
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct none[2] = {{0, 0, 0}, {0, 0, 0}};
    if (syscall(SYS_capset, &header, none) < 0) {
        explain_errno(why, "drop all capabilities");
        return -1;
    }
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) {
        explain_errno(why, "set no_new_privs");
        return -1;
    }
    // After the change of user, which clears it. Inside a process namespace the end of process 1 does the same.
    if (pod->mode == SANDBOX_NONE) prctl(PR_SET_PDEATHSIG, SIGKILL);
    return 0;
}

static void common(const struct pod *pod, const struct start *start, int status) {
    char why[WHY_BYTES], score[16];
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setsid();
    // The pod's group is its own, and its two users share volumes by it.
    umask(pod->mode == SANDBOX_NAMESPACES ? 002 : 022);
    for (char **path = start->cgroups; *path; path++)
        if (write_file(*path, "0") < 0) {
            explain_errno(why, "enter %s", *path);
            fail(status, why);
        }
    snprintf(score, sizeof score, "%d", start->oom_score);
    // Lowering is refused without rights; the limit on the pod does not depend on it.
    (void)write_file("/proc/self/oom_score_adj", score);
    struct rlimit limit = {0, 0};
    setrlimit(RLIMIT_CORE, &limit);
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max < 65536 ? limit.rlim_max : 65536;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static void enter_network(const struct pod *pod, bool host_side, int status) {
    char why[WHY_BYTES];
    if (host_side || pod->network < 0) return;
    if (setns(pod->network, CLONE_NEWNET) < 0) {
        explain_errno(why, "enter the pod's network");
        fail(status, why);
    }
}

// Puts stdin, stdout and stderr in place, listeners after them, and closes everything else at exec.
static void arrange_descriptors(const int fds[3], const int *listeners, int listener_count, int *status) {
    int moved[3 + LISTENER_LIMIT];
    char why[WHY_BYTES];
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    *status = fcntl(*status, F_DUPFD_CLOEXEC, 64);
    for (int i = 0; i < 3 + listener_count; i++) {
        int fd = i < 3 ? (fds[i] < 0 ? null : fds[i]) : listeners[i - 3];
        moved[i] = fcntl(fd, F_DUPFD_CLOEXEC, 64);
        if (moved[i] < 0) {
            explain_errno(why, "arrange descriptors");
            fail(*status, why);
        }
    }
    for (int i = 0; i < 3 + listener_count; i++) dup2(moved[i], i);
    syscall(SYS_close_range, 3 + listener_count, ~0u, CLOSE_RANGE_CLOEXEC);
}

static const char *variable(char **environment, const char *name) {
    size_t n = strlen(name);
    for (; *environment; environment++)
        if (!strncmp(*environment, name, n) && (*environment)[n] == '=') return *environment + n + 1;
    return NULL;
}

static void run(const struct start *start, int status) __attribute__((noreturn));
static void run(const struct start *start, int status) {
    char why[WHY_BYTES], path[4096];
    if (start->working_directory[0] && chdir(start->working_directory) < 0) {
        explain_errno(why, "working directory %s", start->working_directory);
        fail(status, why);
    }
    const char *name = start->arguments[0];
    if (!name || !*name) fail(status, "the command is empty");
    int reason = ENOENT;
    if (strchr(name, '/')) {
        execve(name, start->arguments, start->environment);
        reason = errno;
    } else {
        const char *rest = variable(start->environment, "PATH");
        if (!rest) rest = "/usr/bin:/bin";
        for (;;) {
            size_t n = strcspn(rest, ":");
            if (n > 0 && snprintf(path, sizeof path, "%.*s/%s", (int)n, rest, name) < (int)sizeof path) {
                execve(path, start->arguments, start->environment);
                if (errno != ENOENT && errno != ENOTDIR) reason = errno;
            }
            if (!rest[n]) break;
            rest += n + 1;
        }
    }
    errno = reason;
    explain_errno(why, "run %s", name);
    fail(status, why);
}

void container_child(const struct pod *pod, const struct start *start, int status) {
    char why[WHY_BYTES] = "";
    int listeners[LISTENER_LIMIT], listener_count = 0;
    common(pod, start, status);
    for (uint32_t i = 0; i < pod->listener_count; i++)
        if (!strcmp(pod->listeners[i].container, start->name)) listeners[listener_count++] = pod->listeners[i].fd;
    enter_network(pod, start->host_side, status);
    if (pod->mode != SANDBOX_NONE) {
        if (unshare(CLONE_NEWNS) < 0) {
            explain_errno(why, "make a mount namespace");
            fail(status, why);
        }
        // By this process 1 finds what the container leaves behind, even if its main process is gone in a moment.
        struct stat info;
        char report[1 + sizeof(uint64_t)] = {REPORT_NAMESPACE};
        if (stat("/proc/self/ns/mnt", &info) == 0) {
            uint64_t inode = info.st_ino;
            memcpy(report + 1, &inode, sizeof inode);
            if (write(status, report, sizeof report) != (ssize_t)sizeof report) fail(status, "report to process 1");
        }
        if (build_root(pod, start, why) < 0) fail(status, why);
    }
    arrange_descriptors(start->fds, listeners, listener_count, &status);
    if (drop_rights(pod, start->host_side ? pod->host_side_uid : pod->uid, why) < 0) fail(status, why);
    run(start, status);
}

void exec_child(const struct pod *pod, const struct start *start, int mount_namespace, int status) {
    char why[WHY_BYTES] = "";
    common(pod, start, status);
    enter_network(pod, start->host_side, status);
    if (pod->mode != SANDBOX_NONE && (setns(mount_namespace, CLONE_NEWNS) < 0 || chdir("/") < 0)) {
        explain_errno(why, "enter the container");
        fail(status, why);
    }
    arrange_descriptors(start->fds, NULL, 0, &status);
    if (drop_rights(pod, start->host_side ? pod->host_side_uid : pod->uid, why) < 0) fail(status, why);
    run(start, status);
}

// MARK: - Probes

static int64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_BOOTTIME, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static bool wait_for(int fd, short events, int64_t deadline) {
    for (;;) {
        int64_t left = deadline - now_ms();
        if (left <= 0) return false;
        struct pollfd p = {fd, events, 0};
        int n = poll(&p, 1, left > 60000 ? 60000 : (int)left);
        if (n > 0) return true;
        if (n < 0 && errno != EINTR) return false;
    }
}

static int connect_to(const struct sockaddr *address, socklen_t length, int64_t deadline) {
    int fd = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return -1;
    int code = 0;
    if (connect(fd, address, length) == 0) return fd;
    if (errno == EINPROGRESS) {
        socklen_t n = sizeof code;
        if (!wait_for(fd, POLLOUT, deadline)) code = ETIMEDOUT;
        else if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &code, &n) < 0) code = errno;
        if (code == 0) return fd;
    } else {
        code = errno;
    }
    close(fd);
    errno = code;
    return -1;
}

void probe_child(const struct pod *pod, const struct probe *probe, int status) {
    char why[WHY_BYTES] = "", request[2048], answer[64];
    int64_t deadline = now_ms() + probe->timeout_ms;
    enter_network(pod, probe->host_side, status);
    if (drop_rights(pod, pod->uid, why) < 0) fail(status, why);

    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons((uint16_t)probe->port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)probe->port), .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    int fd = connect_to((struct sockaddr *)&v4, sizeof v4, deadline);
    if (fd < 0 && errno == ECONNREFUSED) {
        fd = connect_to((struct sockaddr *)&v6, sizeof v6, deadline);
        if (fd < 0) errno = ECONNREFUSED;
    }
    if (fd < 0) {
        explain_errno(why, "connect to port %u", probe->port);
        fail(status, why);
    }
    if (!probe->path) _exit(0);

    int length = snprintf(
        request, sizeof request,
        "GET %s HTTP/1.1\r\nHost: localhost:%u\r\nUser-Agent: coterie-probe\r\nAccept: */*\r\nConnection: close\r\n\r\n",
        probe->path, probe->port);
    if (length >= (int)sizeof request) fail(status, "the probe's path is too long");
    for (int sent = 0; sent < length;) {
        if (!wait_for(fd, POLLOUT, deadline)) fail(status, "timed out while asking");
        ssize_t n = send(fd, request + sent, (size_t)(length - sent), MSG_NOSIGNAL);
        if (n < 0 && errno != EAGAIN && errno != EINTR) {
            explain_errno(why, "ask port %u", probe->port);
            fail(status, why);
        }
        if (n > 0) sent += (int)n;
    }
    // "HTTP/1.1 200" is all that counts.
    size_t got = 0;
    while (got < 12) {
        if (!wait_for(fd, POLLIN, deadline)) fail(status, "timed out while waiting for the answer");
        ssize_t n = recv(fd, answer + got, 12 - got, 0);
        if (n == 0) fail(status, "the connection was closed without an HTTP answer");
        if (n < 0 && errno != EAGAIN && errno != EINTR) {
            explain_errno(why, "read from port %u", probe->port);
            fail(status, why);
        }
        if (n > 0) got += (size_t)n;
    }
    answer[got] = 0;
    if (strncmp(answer, "HTTP/1.", 7) != 0) fail(status, "the answer is not HTTP/1");
    int code = atoi(answer + 9);
    if (code < 200 || code >= 400) {
        explain(why, "HTTP status %d", code);
        fail(status, why);
    }
    _exit(0);
}
