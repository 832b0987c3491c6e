// coterie-init: the first process of a pod. What its parts share.
//
//   agent ──socket──▶ outer process ──fork──▶ process 1 of the pod ──fork──▶ containers, commands, probes
//                     (host's process space)  (own process, mount, IPC and host name spaces)
//
// It speaks to the agent over descriptor 3, a Unix stream socket. A message is
//     u32 length of what follows | u8 kind | u8 number of descriptors that came with it | body
// with little-endian integers; a text is u32 length and bytes, a list is u32 count and items. When the socket ends, whatever
// the reason, everything in the pod is killed: no process outlives its node.
#ifndef COTERIE_INIT_H
#define COTERIE_INIT_H

#define _GNU_SOURCE
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define CONTROL_FD 3
#define MESSAGE_LIMIT (1u << 20)
#define MESSAGE_FDS 3
#define LISTENER_LIMIT 16
#define RUN_LIMIT 512
#define LIST_LIMIT 4096

enum message_kind {
    // agent to init
    MESSAGE_SETUP = 1,
    MESSAGE_START = 2,
    MESSAGE_EXEC = 3,
    MESSAGE_PROBE = 4,
    MESSAGE_SIGNAL = 5,
    MESSAGE_LEASE = 6,
    MESSAGE_SHUTDOWN = 7,
    // init to agent
    MESSAGE_READY = 64,
    MESSAGE_FAILED = 65,
    MESSAGE_STARTED = 66,
    MESSAGE_ERROR = 67,
    MESSAGE_EXITED = 68,
};

enum sandbox_mode {
    SANDBOX_NAMESPACES,       // with the rights of root
    SANDBOX_USER_NAMESPACES,  // without: a user namespace that maps the agent's user alone
    SANDBOX_NONE,
};

// A cursor over a message. After `bad` is set every read gives zero or empty, so a caller checks once, at the end.
struct reader {
    const uint8_t *at;
    size_t left;
    bool bad;
};

uint8_t read_u8(struct reader *r);
uint32_t read_u32(struct reader *r);
uint64_t read_u64(struct reader *r);
// A copy with a terminating NUL; a text with a NUL inside is bad. Never NULL.
char *read_text(struct reader *r);
// A NULL-terminated list; never NULL.
char **read_texts(struct reader *r, uint32_t *count);

struct listener {
    char *container;
    uint32_t port;
    int fd;
};

struct memory_volume {
    char *path;
    uint64_t bytes;
};

// A pod, as MESSAGE_SETUP describes it.
struct pod {
    enum sandbox_mode mode;
    bool host_network;
    uint32_t uid, gid, host_side_uid;
    char *hostname;
    char *directory;
    char *supplied;  // empty for none
    struct listener *listeners;
    uint32_t listener_count;
    char **masks;
    uint32_t mask_count;
    struct memory_volume *memory_volumes;
    uint32_t memory_volume_count;
    char *stage;   // a tmpfs of process 1: root, dev, proc, empty
    int network;   // the pod's network namespace, -1 for the host's
};

enum mount_flags { MOUNT_READ_ONLY = 1, MOUNT_MAY_CREATE = 2, MOUNT_OPTIONAL = 4 };

struct mount {
    char *source, *sub_path, *target;
    uint8_t flags;
};

// A container, as MESSAGE_START describes it; MESSAGE_EXEC uses a part.
struct start {
    uint32_t run, target_run;
    bool host_side, has_stdin;
    char *name, *image;
    char *directory;          // of the container, on the host: its /tmp lies there
    char *working_directory;  // inside
    char **arguments, **environment, **cgroups;
    struct mount *mounts;
    uint32_t mount_count;
    int32_t oom_score;
    int fds[3];  // stdin or -1, stdout, stderr
};

struct probe {
    uint32_t run;
    bool host_side;
    uint32_t port, timeout_ms;
    char *path;  // NULL for a plain TCP connection
};

// All of these return 0, or -1 with a one-line reason in `why`.
#define WHY_BYTES 512
int set_up_namespaces(struct pod *pod, char *why);
int build_stage(struct pod *pod, char *why);
int build_root(const struct pod *pod, const struct start *start, char *why);
// Binds on the calling process's loopback.
int bind_listeners(struct pod *pod, char *why);

// These run in a forked child, never return, and report a failure as text on `status` (closed by a successful exec). A
// container reports before that, after this byte, the inode of its mount namespace (u64, as it lies in memory).
#define REPORT_NAMESPACE 1
void container_child(const struct pod *pod, const struct start *start, int status) __attribute__((noreturn));
void exec_child(const struct pod *pod, const struct start *start, int mount_namespace, int status) __attribute__((noreturn));
void probe_child(const struct pod *pod, const struct probe *probe, int status) __attribute__((noreturn));
// Gives up every right and becomes the pod's user, for good.
int drop_rights(const struct pod *pod, uint32_t uid, char *why);

void explain(char *why, const char *format, ...) __attribute__((format(printf, 2, 3)));
// The same with ": " and the text of errno.
void explain_errno(char *why, const char *format, ...) __attribute__((format(printf, 2, 3)));
void *allocate(size_t bytes);
char *join(const char *a, const char *b);
int write_file(const char *path, const char *text);
int send_descriptors(int socket, const int *fds, int count, const char *text);
int receive_descriptors(int socket, int *fds, int capacity, int *count, char *text, size_t text_bytes);

#endif
