#define _GNU_SOURCE
#include "coterie_platform.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <linux/errqueue.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

int coterie_enable_error_queue(int fd, int family) {
    int on = 1;
    int status = family == AF_INET6 ? setsockopt(fd, IPPROTO_IPV6, IPV6_RECVERR, &on, sizeof on)
                                    : setsockopt(fd, IPPROTO_IP, IP_RECVERR, &on, sizeof on);
    return status == 0 ? 0 : -errno;
}

int coterie_take_refused(int fd, struct sockaddr_storage *peer) {
    char payload[64];
    _Alignas(struct cmsghdr) char control[512];
    struct iovec vector = {payload, sizeof payload};
    memset(peer, 0, sizeof *peer);
    struct msghdr message = {0};
    message.msg_name = peer;
    message.msg_namelen = sizeof *peer;
    message.msg_iov = &vector;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    if (recvmsg(fd, &message, MSG_ERRQUEUE | MSG_DONTWAIT) < 0) return 0;
    for (struct cmsghdr *item = CMSG_FIRSTHDR(&message); item != NULL; item = CMSG_NXTHDR(&message, item)) {
        int is_v4 = item->cmsg_level == IPPROTO_IP && item->cmsg_type == IP_RECVERR;
        int is_v6 = item->cmsg_level == IPPROTO_IPV6 && item->cmsg_type == IPV6_RECVERR;
        if (!is_v4 && !is_v6) continue;
        struct sock_extended_err error;
        memcpy(&error, CMSG_DATA(item), sizeof error);
        return error.ee_errno == ECONNREFUSED ? 1 : 2;
    }
    return 2;
}

int coterie_peer_uid(int fd, uint32_t *uid) {
    struct ucred credentials;
    socklen_t size = sizeof credentials;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0) return -errno;
    *uid = credentials.uid;
    return 0;
}

#define DESCRIPTOR_LIMIT 32

ssize_t coterie_send_descriptors(int fd, const void *bytes, size_t size, const int *fds, int count) {
    if (count < 0 || count > DESCRIPTOR_LIMIT) return -EINVAL;
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int) * DESCRIPTOR_LIMIT)] = {0};
    struct iovec vector = {(void *)bytes, size};
    struct msghdr message = {0};
    message.msg_iov = &vector;
    message.msg_iovlen = 1;
    if (count > 0) {
        message.msg_control = control;
        message.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)count);
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int) * (size_t)count);
        memcpy(CMSG_DATA(header), fds, sizeof(int) * (size_t)count);
    }
    for (;;) {
        ssize_t sent = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent >= 0) return sent;
        if (errno != EINTR) return -errno;
    }
}

ssize_t coterie_receive_descriptors(int fd, void *bytes, size_t size, int *fds, int capacity, int *count) {
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int) * DESCRIPTOR_LIMIT)];
    struct iovec vector = {bytes, size};
    struct msghdr message = {0};
    message.msg_iov = &vector;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    *count = 0;
    ssize_t got;
    do got = recvmsg(fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    while (got < 0 && errno == EINTR);
    if (got < 0) return -errno;
    for (struct cmsghdr *item = CMSG_FIRSTHDR(&message); item != NULL; item = CMSG_NXTHDR(&message, item)) {
        if (item->cmsg_level != SOL_SOCKET || item->cmsg_type != SCM_RIGHTS) continue;
        size_t present = (item->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < present; i++) {
            int descriptor;
            memcpy(&descriptor, CMSG_DATA(item) + i * sizeof(int), sizeof descriptor);
            if (*count < capacity)
                fds[(*count)++] = descriptor;
            else
                close(descriptor);
        }
    }
    return got;
}

void coterie_ignore_broken_pipes(void) {
    struct sigaction action;
    if (sigaction(SIGPIPE, NULL, &action) != 0 || action.sa_handler != SIG_DFL) return;
    action.sa_handler = SIG_IGN;
    sigaction(SIGPIPE, &action, NULL);
}

// Runs between vfork and exec, in the parent's memory: only system calls, no allocation, no locks.
static int spawn_child(const struct coterie_spawn *options, int *moved, pid_t parent) {
    if (options->new_session) {
        if (setsid() < 0) return errno;
    } else if (options->new_group && setpgid(0, 0) != 0) {
        return errno;
    }
    // First out of the way of the numbers to be filled, then into place; dup2 clears close-on-exec.
    for (int i = 0; i < options->descriptor_count; i++) {
        moved[i] = -1;
        if (options->descriptors[i] < 0) {
            if (i > 2) continue;
            int null = open("/dev/null", O_RDWR | O_CLOEXEC);
            if (null < 0) return errno;
            moved[i] = fcntl(null, F_DUPFD_CLOEXEC, options->descriptor_count);
            close(null);
        } else {
            moved[i] = fcntl(options->descriptors[i], F_DUPFD_CLOEXEC, options->descriptor_count);
        }
        if (moved[i] < 0) return errno;
    }
    for (int i = 0; i < options->descriptor_count; i++) {
        if (moved[i] < 0) {
            close(i);
            continue;
        }
        if (dup2(moved[i], i) < 0) return errno;
    }
    // What this process had from its own parent is not the child's. (Ours are close-on-exec anyway.)
    syscall(SYS_close_range, options->descriptor_count, ~0U, CLOSE_RANGE_CLOEXEC);
    if (options->directory != NULL && chdir(options->directory) != 0) return errno;
    // The raw calls: glibc's would change every thread of the parent, whose memory this is.
    if (options->uid >= 0 || options->gid >= 0) {
        // Root's own groups are not for another user. Without privilege one can only "change" to what one is.
        int stays = options->uid < 0 || options->uid == (int64_t)geteuid();
        if (syscall(SYS_setgroups, 0, NULL) != 0 && !(errno == EPERM && stays)) return errno;
    }
    if (options->gid >= 0) {
        if (syscall(SYS_setresgid, options->gid, options->gid, options->gid) != 0) return errno;
    }
    if (options->uid >= 0 && syscall(SYS_setresuid, options->uid, options->uid, options->uid) != 0) return errno;
    if (options->death_signal != 0 && prctl(PR_SET_PDEATHSIG, options->death_signal) != 0) return errno;
    // Had it been killed before that, the signal would never come.
    if (options->death_signal != 0 && getppid() != parent) return ESRCH;
    // The kernel's own struct, all zero, is the default; glibc's call refuses the two signals that it uses itself.
    static const unsigned long standard[8];
    for (int number = 1; number < 65; number++) syscall(SYS_rt_sigaction, number, standard, NULL, 8);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    execvpe(options->path, options->arguments, options->environment);
    return errno;
}

int coterie_start_process(const struct coterie_spawn *options) {
    if (options->descriptor_count < 0 || options->descriptor_count > 64) return -EINVAL;
    int moved[64];
    volatile int failure = 0;
    // Ignored (some parents leave it so to us), it would make the kernel throw away how our children end.
    struct sigaction child_action;
    if (sigaction(SIGCHLD, NULL, &child_action) == 0 &&
        (child_action.sa_handler == SIG_IGN || (child_action.sa_flags & SA_NOCLDWAIT))) {
        if (child_action.sa_handler == SIG_IGN) child_action.sa_handler = SIG_DFL;
        child_action.sa_flags &= ~SA_NOCLDWAIT;
        sigaction(SIGCHLD, &child_action, NULL);
    }
    sigset_t all, before;
    sigfillset(&all);
    // No handler of ours may run in the child while it shares our memory.
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pid_t parent = getpid();
    pid_t pid = vfork();
    if (pid == 0) {
        failure = spawn_child(options, moved, parent);
        _exit(127);
    }
    int vfork_error = errno;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (pid < 0) return -vfork_error;
    if (failure != 0) {
        int status;
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {}
        return -failure;
    }
    return pid;
}

int coterie_pidfd(int pid) {
    long fd = syscall(SYS_pidfd_open, pid, 0);
    if (fd < 0) return -errno;
    fcntl((int)fd, F_SETFD, FD_CLOEXEC);
    return (int)fd;
}

int coterie_become_subreaper(void) { return prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0 ? 0 : -errno; }

int coterie_socket_pair(int *pair) {
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) return -errno;
    if (fcntl(pair[0], F_SETFL, O_NONBLOCK) != 0) {
        int why = errno;
        close(pair[0]);
        close(pair[1]);
        return -why;
    }
    return 0;
}

ssize_t coterie_write_durably(int descriptor, const void *bytes, size_t size, int64_t offset) {
    struct iovec piece = {(void *)bytes, size};
    return pwritev2(descriptor, &piece, 1, offset, RWF_DSYNC);
}

int coterie_pipe(int *pair) { return pipe2(pair, O_CLOEXEC); }

void coterie_name_thread(unsigned long thread, const char *name) { pthread_setname_np((pthread_t)thread, name); }
