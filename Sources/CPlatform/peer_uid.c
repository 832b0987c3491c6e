// Whose process is at the other end of a TCP connection within this machine: the kernel knows the owner of each of its own
// sockets (sock_diag(7)); the peer's socket is ours with the two ends exchanged.
#include "coterie_platform.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

static int fill(struct inet_diag_sockid *id, const struct sockaddr_storage *source, const struct sockaddr_storage *target) {
    if (source->ss_family != target->ss_family) return -EAFNOSUPPORT;
    if (source->ss_family == AF_INET) {
        const struct sockaddr_in *from = (const void *)source, *to = (const void *)target;
        id->idiag_sport = from->sin_port;
        id->idiag_dport = to->sin_port;
        id->idiag_src[0] = from->sin_addr.s_addr;
        id->idiag_dst[0] = to->sin_addr.s_addr;
    } else if (source->ss_family == AF_INET6) {
        const struct sockaddr_in6 *from = (const void *)source, *to = (const void *)target;
        id->idiag_sport = from->sin6_port;
        id->idiag_dport = to->sin6_port;
        memcpy(id->idiag_src, &from->sin6_addr, 16);
        memcpy(id->idiag_dst, &to->sin6_addr, 16);
    } else {
        return -EAFNOSUPPORT;
    }
    id->idiag_cookie[0] = INET_DIAG_NOCOOKIE;
    id->idiag_cookie[1] = INET_DIAG_NOCOOKIE;
    return 0;
}

static int by_sock_diag(const struct sockaddr_storage *own, const struct sockaddr_storage *peer, uint32_t *uid) {
    struct {
        struct nlmsghdr header;
        struct inet_diag_req_v2 body;
    } request;
    memset(&request, 0, sizeof request);
    request.header.nlmsg_len = sizeof request;
    request.header.nlmsg_type = SOCK_DIAG_BY_FAMILY;
    request.header.nlmsg_flags = NLM_F_REQUEST;
    request.body.sdiag_family = own->ss_family;
    request.body.sdiag_protocol = IPPROTO_TCP;
    request.body.idiag_states = ~0u;
    int status = fill(&request.body.id, peer, own);
    if (status != 0) return status;

    int link = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
    if (link < 0) return -errno;
    // The kernel answers within the call that asks; the time-out is for a kernel that does not.
    struct timeval patience = {.tv_sec = 0, .tv_usec = 100000};
    setsockopt(link, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    _Alignas(struct nlmsghdr) char answer[4096];
    ssize_t count = -1;
    if (send(link, &request, sizeof request, 0) == (ssize_t)sizeof request) count = recv(link, answer, sizeof answer, 0);
    status = count < 0 ? -errno : -EPROTO;
    close(link);
    if (count < (ssize_t)sizeof(struct nlmsghdr)) return status;
    const struct nlmsghdr *header = (const void *)answer;
    if (!NLMSG_OK(header, (size_t)count)) return -EPROTO;
    if (header->nlmsg_type == NLMSG_ERROR && header->nlmsg_len >= NLMSG_LENGTH(sizeof(struct nlmsgerr))) {
        const struct nlmsgerr *error = NLMSG_DATA(header);
        return error->error < 0 ? error->error : -EPROTO;
    }
    if (header->nlmsg_type != SOCK_DIAG_BY_FAMILY || header->nlmsg_len < NLMSG_LENGTH(sizeof(struct inet_diag_msg))) return -EPROTO;
    const struct inet_diag_msg *found = NLMSG_DATA(header);
    *uid = found->idiag_uid;
    return 0;
}

/// One end as /proc/net/tcp and tcp6 write it: 32-bit words in the machine's order, then the port.
static void spell(char *text, size_t size, const struct sockaddr_storage *end) {
    if (end->ss_family == AF_INET) {
        const struct sockaddr_in *v4 = (const void *)end;
        snprintf(text, size, "%08X:%04X", v4->sin_addr.s_addr, ntohs(v4->sin_port));
        return;
    }
    const struct sockaddr_in6 *v6 = (const void *)end;
    uint32_t word[4];
    memcpy(word, &v6->sin6_addr, 16);
    snprintf(text, size, "%08X%08X%08X%08X:%04X", word[0], word[1], word[2], word[3], ntohs(v6->sin6_port));
}

/// For kernels without sock_diag: looks through the table of all connections.
static int by_table(const struct sockaddr_storage *own, const struct sockaddr_storage *peer, uint32_t *uid) {
    FILE *table = fopen(own->ss_family == AF_INET ? "/proc/net/tcp" : "/proc/net/tcp6", "re");
    if (table == NULL) return -errno;
    char from[48], to[48], line[512], local[64], remote[64];
    spell(from, sizeof from, peer);
    spell(to, sizeof to, own);
    int status = -ENOENT;
    while (fgets(line, sizeof line, table) != NULL) {
        unsigned owner;
        if (sscanf(line, " %*[^:]: %63s %63s %*s %*s %*s %*s %u", local, remote, &owner) != 3) continue;
        if (strcmp(local, from) != 0 || strcmp(remote, to) != 0) continue;
        *uid = owner;
        status = 0;
        break;
    }
    fclose(table);
    return status;
}

int coterie_tcp_peer_uid(int fd, uint32_t *uid) {
    struct sockaddr_storage own, peer;
    socklen_t own_size = sizeof own, peer_size = sizeof peer;
    if (getsockname(fd, (struct sockaddr *)&own, &own_size) != 0) return -errno;
    if (getpeername(fd, (struct sockaddr *)&peer, &peer_size) != 0) return -errno;
    if (own.ss_family != peer.ss_family || (own.ss_family != AF_INET && own.ss_family != AF_INET6)) return -EAFNOSUPPORT;
    return by_sock_diag(&own, &peer, uid) == 0 ? 0 : by_table(&own, &peer, uid);
}
