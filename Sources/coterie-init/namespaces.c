// The pod's own spaces: what process 1 leaves behind of the host's, the network with nothing but its loopback, and the
// listeners that exist in it before any container starts.
#include "init.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

int bind_listeners(struct pod *pod, char *why) {
    for (uint32_t i = 0; i < pod->listener_count; i++) {
        struct listener *l = &pod->listeners[i];
        struct sockaddr_in address = {
            .sin_family = AF_INET, .sin_port = htons((uint16_t)l->port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
        int one = 1;
        l->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (l->fd < 0 || setsockopt(l->fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) < 0
            || bind(l->fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(l->fd, 511) < 0) {
            explain_errno(why, "listen on 127.0.0.1:%u for container %s", l->port, l->container);
            return -1;
        }
    }
    return 0;
}

static int raise_loopback(char *why) {
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
    if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &request) < 0) {
        explain_errno(why, "bring up the loopback interface");
        return -1;
    }
    close(fd);
    return 0;
}

// Process 1 itself stays in the host's network, because without root nobody could go back there to start a host-side
// container. A short-lived child makes the pod's network and hands it over with its listeners.
static int make_network(struct pod *pod, char *why) {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0) {
        explain_errno(why, "make a socket pair");
        return -1;
    }
    pid_t child = fork();
    if (child < 0) {
        explain_errno(why, "fork");
        return -1;
    }
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        int fds[LISTENER_LIMIT + 1];
        char reason[WHY_BYTES] = "";
        if (unshare(CLONE_NEWNET) < 0) {
            explain_errno(reason, "make a network namespace");
        } else if (raise_loopback(reason) == 0 && bind_listeners(pod, reason) == 0) {
            fds[0] = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
            if (fds[0] < 0) {
                explain_errno(reason, "open the network namespace");
            } else {
                for (uint32_t i = 0; i < pod->listener_count; i++) fds[i + 1] = pod->listeners[i].fd;
                _exit(send_descriptors(pair[1], fds, (int)pod->listener_count + 1, "") == 0 ? 0 : 1);
            }
        }
        send_descriptors(pair[1], NULL, 0, reason);
        _exit(1);
    }
    close(pair[1]);
    int fds[LISTENER_LIMIT + 1], count = 0;
    char text[WHY_BYTES] = "";
    int received = receive_descriptors(pair[0], fds, LISTENER_LIMIT + 1, &count, text, sizeof text);
    close(pair[0]);
    while (waitpid(child, NULL, 0) < 0 && errno == EINTR) {}
    if (received < 0 || count != (int)pod->listener_count + 1) {
        explain(why, "%s", text[0] ? text : "the network's maker ended without a word");
        return -1;
    }
    pod->network = fds[0];
    for (uint32_t i = 0; i < pod->listener_count; i++) pod->listeners[i].fd = fds[i + 1];
    return 0;
}

int set_up_namespaces(struct pod *pod, char *why) {
    if (pod->mode != SANDBOX_NONE) {
        if (unshare(CLONE_NEWNS) < 0) {
            explain_errno(why, "make a mount namespace");
            return -1;
        }
        if (unshare(CLONE_NEWIPC) < 0) {
            explain_errno(why, "make an IPC namespace");
            return -1;
        }
        if (unshare(CLONE_NEWUTS) < 0) {
            explain_errno(why, "make a host name namespace");
            return -1;
        }
        // Nothing that is mounted here may show on the host, nor what the host mounts later show, writable, in here.
        if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0) {
            explain_errno(why, "make mounts private");
            return -1;
        }
        if (pod->hostname[0] && !pod->host_network && sethostname(pod->hostname, strlen(pod->hostname)) < 0) {
            explain_errno(why, "set the host name %s", pod->hostname);
            return -1;
        }
    }
    if (pod->mode == SANDBOX_NONE || pod->host_network) return bind_listeners(pod, why);
    return make_network(pod, why);
}
