// The few calls that Swift can not import or must not make itself: error queues, descriptors over sockets, spawning.
// All return a negated errno on failure, as libuv does.
#ifndef COTERIE_PLATFORM_H
#define COTERIE_PLATFORM_H
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/types.h>

/// Asks the kernel to queue ICMP errors of a UDP socket (IP_RECVERR, IPV6_RECVERR: ip(7)).
int coterie_enable_error_queue(int fd, int family);

/// Takes one error off the queue. 1: a port-unreachable for `peer`; 2: some other error; 0: the queue is empty.
int coterie_take_refused(int fd, struct sockaddr_storage *_Nonnull peer);

/// The effective uid of the process at the other end of a Unix socket (SO_PEERCRED).
int coterie_peer_uid(int fd, uint32_t *_Nonnull uid);

/// The uid that owns the socket at the other end of a TCP connection within this machine and network name space; a negative
/// errno if there is none (`ENOENT`) or the kernel does not tell.
int coterie_tcp_peer_uid(int fd, uint32_t *_Nonnull uid);

/// Sends bytes with up to `count` descriptors (SCM_RIGHTS); returns how many bytes went.
ssize_t coterie_send_descriptors(int fd, const void *_Nonnull bytes, size_t size, const int *_Nullable fds, int count);

/// Receives bytes and up to `capacity` descriptors, close-on-exec. Returns the number of bytes, 0 at the end. Descriptors
/// over the capacity are closed.
ssize_t coterie_receive_descriptors(
    int fd, void *_Nonnull bytes, size_t size, int *_Nonnull fds, int capacity, int *_Nonnull count);

struct coterie_spawn {
    const char *_Nonnull path;  // looked up in PATH if it has no slash
    char *_Nullable const *_Nonnull arguments;
    char *_Nullable const *_Nonnull environment;
    const char *_Nullable directory;
    const int *_Nonnull descriptors;  // becomes 0, 1, 2, …; -1 leaves that number closed (0 to 2: /dev/null)
    int descriptor_count;
    int new_session;
    int new_group;
    int death_signal;  // sent when the spawning thread's process ends; 0 for none
    int64_t uid, gid;  // -1: unchanged; with either, supplementary groups are dropped
};

/// Writing to what nobody reads any more becomes EPIPE instead of the process's end. A handler that is set stays.
void coterie_ignore_broken_pipes(void);

/// Starts a program with all signals at their defaults and none blocked, and no descriptors but those named. Returns its pid, or the child's errno negated.
int coterie_start_process(const struct coterie_spawn *_Nonnull options);

/// A descriptor that is readable once the process has ended (pidfd_open).
int coterie_pidfd(int pid);

/// Orphans of our descendants become our children (PR_SET_CHILD_SUBREAPER).
int coterie_become_subreaper(void);

/// A pair of connected Unix stream sockets, close-on-exec and non-blocking on the first.
int coterie_socket_pair(int *_Nonnull pair);

/// What the system's tools show of a thread; at most 15 bytes.
void coterie_name_thread(unsigned long thread, const char *_Nonnull name);

/// pwrite whose bytes are on stable storage when it returns (RWF_DSYNC). -1 with `errno` on failure: EOPNOTSUPP, ENOSYS or EINVAL where kernel or file system can not.
ssize_t coterie_write_durably(int descriptor, const void *_Nullable bytes, size_t size, int64_t offset);

/// A pipe whose ends are close-on-exec: reading end first. -1 with `errno` on failure.
int coterie_pipe(int *_Nonnull pair);

#endif
