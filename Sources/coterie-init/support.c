// Reading messages, texts of errors, and passing descriptors.
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

static const uint8_t *take(struct reader *r, size_t bytes) {
    if (r->bad || r->left < bytes) {
        r->bad = true;
        return NULL;
    }
    const uint8_t *at = r->at;
    r->at += bytes;
    r->left -= bytes;
    return at;
}

uint8_t read_u8(struct reader *r) {
    const uint8_t *p = take(r, 1);
    return p ? *p : 0;
}

uint32_t read_u32(struct reader *r) {
    const uint8_t *p = take(r, 4);
    return p ? (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24 : 0;
}

uint64_t read_u64(struct reader *r) {
    uint64_t low = read_u32(r);
    return low | (uint64_t)read_u32(r) << 32;
}

char *read_text(struct reader *r) {
    uint32_t length = read_u32(r);
    const uint8_t *p = take(r, length);
    if (p && memchr(p, 0, length)) {
        r->bad = true;
        p = NULL;
    }
    if (!p) length = 0;
    char *text = allocate((size_t)length + 1);
    if (length) memcpy(text, p, length);
    return text;
}

char **read_texts(struct reader *r, uint32_t *count) {
    uint32_t n = read_u32(r);
    if (n > LIST_LIMIT || n > r->left / 4) {
        r->bad = true;
        n = 0;
    }
    char **texts = allocate(((size_t)n + 1) * sizeof *texts);
    for (uint32_t i = 0; i < n; i++) texts[i] = read_text(r);
    if (count) *count = n;
    return texts;
}

void *allocate(size_t bytes) {
    void *p = calloc(1, bytes ? bytes : 1);
    // The first process of a pod has no way on without memory; its end ends the pod, which the agent reports.
    if (!p) _exit(125);
    return p;
}

char *join(const char *a, const char *b) {
    char *text = allocate(strlen(a) + strlen(b) + 1);
    strcpy(text, a);
    strcat(text, b);
    return text;
}

void explain(char *why, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(why, WHY_BYTES, format, arguments);
    va_end(arguments);
}

void explain_errno(char *why, const char *format, ...) {
    int code = errno;
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(why, WHY_BYTES, format, arguments);
    va_end(arguments);
    if (n >= 0 && n < WHY_BYTES) snprintf(why + n, WHY_BYTES - (size_t)n, ": %s", strerror(code));
    errno = code;
}

int write_file(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    ssize_t n = write(fd, text, strlen(text));
    int code = errno;
    close(fd);
    errno = code;
    return n == (ssize_t)strlen(text) ? 0 : -1;
}

// One datagram of text with descriptors; the socket is of type SOCK_SEQPACKET.
int send_descriptors(int socket, const int *fds, int count, const char *text) {
    struct iovec data = {(void *)text, strlen(text) + 1};
    union {
        char bytes[CMSG_SPACE(sizeof(int) * (LISTENER_LIMIT + 1))];
        struct cmsghdr align;
    } control;
    memset(&control, 0, sizeof control);
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1};
    if (count > 0) {
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)count);
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int) * (size_t)count);
        memcpy(CMSG_DATA(header), fds, sizeof(int) * (size_t)count);
    }
    ssize_t n;
    do n = sendmsg(socket, &message, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -1 : 0;
}

int receive_descriptors(int socket, int *fds, int capacity, int *count, char *text, size_t text_bytes) {
    struct iovec data = {text, text_bytes - 1};
    union {
        char bytes[CMSG_SPACE(sizeof(int) * (LISTENER_LIMIT + 1))];
        struct cmsghdr align;
    } control;
    struct msghdr message = {
        .msg_iov = &data, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
    ssize_t n;
    do n = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n <= 0) return -1;
    text[n] = 0;
    *count = 0;
    for (struct cmsghdr *h = CMSG_FIRSTHDR(&message); h; h = CMSG_NXTHDR(&message, h)) {
        if (h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS) continue;
        int n_fds = (int)((h->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        for (int i = 0; i < n_fds; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(h) + sizeof(int) * (size_t)i, sizeof fd);
            if (*count < capacity) fds[(*count)++] = fd;
            else close(fd);
        }
    }
    return 0;
}
