// What a container sees as its file system.
//
// The root is a small tmpfs, the skeleton. Each entry of the image's top directory (for localhost/host: of /) is bound into
// it, read-only from the first moment: a copy of the mount is made detached, set read-only with all below it, and only then
// attached (open_tree, mount_setattr, move_mount; Linux 5.12). A mount point that the image lacks is made without writing
// to the image: the deepest directory that exists is replaced by a skeleton of its own, whose entries are bound in turn.
// No overlay file system is needed, submounts stay visible, and it works the same without root.
//
// Process 1 makes once, for all containers, what they share: /dev, /proc, an empty directory for covering what they must not
// see, and the pod's in-memory volumes.
#include "init.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PATH_BYTES 4096
#define SKELETON_ENTRIES 4096
#define PLACE_LIMIT 1024

// A detached copy of the mount tree at `path`, attached at `target`.
static int bind_tree(int from, const char *path, const char *target, uint64_t attributes, bool recursive_attributes) {
    int flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE | (path[0] ? 0 : AT_EMPTY_PATH);
    int tree = open_tree(from, path, (unsigned)flags);
    if (tree < 0) return -1;
    struct mount_attr attr = {.attr_set = attributes};
    int result = mount_setattr(tree, "", AT_EMPTY_PATH | (recursive_attributes ? AT_RECURSIVE : 0u), &attr, sizeof attr);
    if (result == 0) result = move_mount(tree, "", AT_FDCWD, target, MOVE_MOUNT_F_EMPTY_PATH);
    int code = errno;
    close(tree);
    errno = code;
    return result;
}

// MARK: - Shared by all containers

static int device(const char *stage, const char *name, char *why) {
    char source[64], target[PATH_BYTES];
    snprintf(source, sizeof source, "/dev/%s", name);
    snprintf(target, sizeof target, "%s/dev/%s", stage, name);
    if (access(source, F_OK) < 0) return 0;
    int fd = open(target, O_CREAT | O_WRONLY | O_CLOEXEC, 0666);
    if (fd >= 0) close(fd);
    if (mount(source, target, NULL, MS_BIND, NULL) < 0) {
        explain_errno(why, "bind %s", source);
        return -1;
    }
    return 0;
}

static int build_dev(const char *stage, char *why) {
    static const char *const names[] = {"null", "zero", "full", "random", "urandom", "tty"};
    static const char *const links[][2] = {
        {"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"}, {"/proc/self/fd/2", "stderr"},
        {"pts/ptmx", "ptmx"}};
    char path[PATH_BYTES];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (device(stage, names[i], why) < 0) return -1;
    for (size_t i = 0; i < sizeof links / sizeof *links; i++) {
        snprintf(path, sizeof path, "%s/dev/%s", stage, links[i][1]);
        if (symlink(links[i][0], path) < 0) {
            explain_errno(why, "link /dev/%s", links[i][1]);
            return -1;
        }
    }
    snprintf(path, sizeof path, "%s/dev/pts", stage);
    mkdir(path, 0755);
    if (mount("devpts", path, "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620") < 0) {
        explain_errno(why, "mount /dev/pts");
        return -1;
    }
    snprintf(path, sizeof path, "%s/dev/shm", stage);
    mkdir(path, 0777);
    if (mount("shm", path, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=1777,size=64m") < 0) {
        explain_errno(why, "mount /dev/shm");
        return -1;
    }
    return 0;
}

int build_stage(struct pod *pod, char *why) {
    char path[PATH_BYTES], options[96];
    pod->stage = join(pod->directory, "/stage");
    if (mount("stage", pod->stage, "tmpfs", MS_NOSUID, "mode=755,size=1m,nr_inodes=256") < 0) {
        explain_errno(why, "mount a tmpfs on %s", pod->stage);
        return -1;
    }
    static const char *const directories[] = {"root", "dev", "proc", "empty"};
    for (size_t i = 0; i < sizeof directories / sizeof *directories; i++) {
        snprintf(path, sizeof path, "%s/%s", pod->stage, directories[i]);
        if (mkdir(path, 0755) < 0) {
            explain_errno(why, "make %s", path);
            return -1;
        }
    }
    if (build_dev(pod->stage, why) < 0) return -1;

    snprintf(path, sizeof path, "%s/proc", pod->stage);
    if (mount("proc", path, "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0) {
        explain_errno(why, "mount /proc of the pod's processes");
        return -1;
    }
    static const char *const hidden[] = {"kcore", "keys", "timer_list", "sched_debug"};
    for (size_t i = 0; i < sizeof hidden / sizeof *hidden; i++) {
        snprintf(path, sizeof path, "%s/proc/%s", pod->stage, hidden[i]);
        if (access(path, F_OK) == 0) mount("/dev/null", path, NULL, MS_BIND, NULL);
    }

    for (uint32_t i = 0; i < pod->memory_volume_count; i++) {
        struct memory_volume *volume = &pod->memory_volumes[i];
        if (volume->bytes) snprintf(options, sizeof options, "mode=2777,size=%llu", (unsigned long long)volume->bytes);
        else snprintf(options, sizeof options, "mode=2777");
        if (mount("volume", volume->path, "tmpfs", MS_NOSUID | MS_NODEV, options) < 0
            || chown(volume->path, (uid_t)-1, pod->gid) < 0) {
            explain_errno(why, "mount a tmpfs on %s", volume->path);
            return -1;
        }
    }

    if (pod->supplied[0]) {
        snprintf(path, sizeof path, "%s/run/bin/coterie", pod->directory);
        if (bind_tree(AT_FDCWD, pod->supplied, path, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, true) < 0) {
            explain_errno(why, "bind %s", pod->supplied);
            return -1;
        }
    }
    return 0;
}

// MARK: - One container's root

enum place_kind {
    PLACE_SKELETON,  // this very directory is ours; what lies below it is not
    PLACE_VOLUME,    // a volume of the pod's own: mount points may be made anywhere in it
    PLACE_CLOSED,    // a volume that we must not write to
};

struct place {
    char *path;  // as seen from outside, below `root`
    enum place_kind kind;
    int mount;  // of a skeleton that is a mount of its own; else -1
};

struct builder {
    const struct pod *pod;
    const char *root;
    int root_fd;
    struct place places[PLACE_LIMIT];
    size_t place_count;
    char *why;
};

static int add_place(struct builder *b, const char *path, enum place_kind kind, int mount) {
    if (b->place_count == PLACE_LIMIT) {
        explain(b->why, "too many mount points");
        return -1;
    }
    b->places[b->place_count++] = (struct place){join(path, ""), kind, mount};
    return 0;
}

static bool is_below(const char *path, const char *parent) {
    size_t n = strlen(parent);
    return strncmp(path, parent, n) == 0 && (path[n] == 0 || path[n] == '/');
}

// May a mount point be made in the directory `path`? 1 yes, 0 only after it became a skeleton, -1 no.
static int may_create(const struct builder *b, const char *path) {
    size_t best_length = 0;
    int result = 0;
    for (size_t i = 0; i < b->place_count; i++) {
        const struct place *p = &b->places[i];
        if (p->kind == PLACE_SKELETON ? strcmp(path, p->path) != 0 : !is_below(path, p->path)) continue;
        size_t length = strlen(p->path);
        if (length < best_length) continue;
        best_length = length;
        switch (p->kind) {
        case PLACE_SKELETON:
        case PLACE_VOLUME: result = 1; break;
        case PLACE_CLOSED: result = -1; break;
        }
    }
    return result;
}

// Puts a tmpfs over the directory `target` (or on it, if it is empty and ours) and binds the entries of `source` into it.
static int make_skeleton(struct builder *b, int source, const char *target, bool top) {
    struct stat info;
    char options[96], path[PATH_BYTES], link[PATH_BYTES];
    if (fstat(source, &info) < 0) {
        explain_errno(b->why, "look at the image");
        return -1;
    }
    unsigned mode = top ? 0755 : info.st_mode & 07777;
    snprintf(options, sizeof options, "mode=%o,size=1m,nr_inodes=8192", mode);
    if (mount("skeleton", target, "tmpfs", MS_NOSUID | MS_NODEV, options) < 0) {
        explain_errno(b->why, "mount a tmpfs on %s", target);
        return -1;
    }
    int own = open(target, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (own < 0) {
        explain_errno(b->why, "open the tmpfs on %s", target);
        return -1;
    }
    if (add_place(b, target, PLACE_SKELETON, own) < 0) return -1;

    int list = openat(source, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *directory = list < 0 ? NULL : fdopendir(list);
    if (!directory) {
        explain_errno(b->why, "list %s", top ? "the image's root" : target + strlen(b->root));
        return -1;
    }
    int entries = 0;
    for (struct dirent *entry; (entry = readdir(directory));) {
        const char *name = entry->d_name;
        if (!strcmp(name, ".") || !strcmp(name, "..")) continue;
        if (top && (!strcmp(name, "proc") || !strcmp(name, "sys") || !strcmp(name, "dev") || !strcmp(name, "tmp") || !strcmp(name, "run")))
            continue;
        if (++entries > SKELETON_ENTRIES) {
            explain(b->why, "%s has more than %d entries: no mount point can be made in it", target + strlen(b->root), SKELETON_ENTRIES);
            closedir(directory);
            return -1;
        }
        if (fstatat(list, name, &info, AT_SYMLINK_NOFOLLOW) < 0) continue;
        if (snprintf(path, sizeof path, "%s/%s", target, name) >= (int)sizeof path) continue;
        if (S_ISLNK(info.st_mode)) {
            ssize_t n = readlinkat(list, name, link, sizeof link - 1);
            if (n < 0) continue;
            link[n] = 0;
            if (symlink(link, path) < 0) goto failed;
            continue;
        }
        if (S_ISDIR(info.st_mode)) {
            if (mkdir(path, 0755) < 0) goto failed;
        } else {
            int fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
            if (fd < 0) goto failed;
            close(fd);
        }
        if (bind_tree(list, name, path, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, true) < 0) goto failed;
    }
    closedir(directory);
    return 0;
failed:
    explain_errno(b->why, "bind %s of the image", path + strlen(b->root));
    closedir(directory);
    return -1;
}

// Finds `path` as the container would, links included, never outside its root. `real` gets the deepest existing part as a
// path from outside; the result points at the missing rest in `path`, empty if all exists. NULL on failure.
static const char *resolve(struct builder *b, const char *path, char *real) {
    char part[PATH_BYTES], link[64];
    size_t length = strlen(path);
    if (length >= sizeof part) {
        errno = ENAMETOOLONG;
        return NULL;
    }
    for (;;) {
        memcpy(part, path, length);
        part[length] = 0;
        struct open_how how = {.flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS};
        int fd = (int)syscall(SYS_openat2, b->root_fd, length ? part : "/", &how, sizeof how);
        if (fd >= 0) {
            snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
            ssize_t n = readlink(link, real, PATH_BYTES - 1);
            close(fd);
            if (n < 0) return NULL;
            real[n] = 0;
            while (path[length] == '/') length++;
            return path + length;
        }
        if (errno != ENOENT || length == 0) return NULL;
        while (length > 0 && path[length - 1] == '/') length--;
        while (length > 0 && path[length - 1] != '/') length--;
        while (length > 0 && path[length - 1] == '/') length--;
    }
}

static int make_mount_point(struct builder *b, const char *target, bool directory, char *real) {
    const char *rest = resolve(b, target, real);
    if (!rest) {
        explain_errno(b->why, "mount path %s", target);
        return -1;
    }
    while (*rest) {
        size_t n = strcspn(rest, "/");
        bool last = rest[n + strspn(rest + n, "/")] == 0;
        int allowed = may_create(b, real);
        if (allowed < 0) {
            explain(b->why, "mount path %s does not exist in the volume that holds it", target);
            return -1;
        }
        if (allowed == 0) {
            int source = open(real, O_PATH | O_DIRECTORY | O_CLOEXEC);
            if (source < 0) {
                explain_errno(b->why, "mount path %s", target);
                return -1;
            }
            int made = make_skeleton(b, source, real, false);
            close(source);
            if (made < 0) return -1;
        }
        size_t length = strlen(real);
        if (length + n + 2 > PATH_BYTES) {
            explain(b->why, "mount path %s is too long", target);
            return -1;
        }
        real[length] = '/';
        memcpy(real + length + 1, rest, n);
        real[length + 1 + n] = 0;
        if (last && !directory) {
            int fd = open(real, O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW | O_CLOEXEC, 0644);
            if (fd < 0) goto failed;
            close(fd);
        } else if (mkdir(real, 0755) < 0) {
            goto failed;
        }
        if (add_place(b, real, PLACE_SKELETON, -1) < 0) return -1;
        rest += n + strspn(rest + n, "/");
    }
    return 0;
failed:
    explain_errno(b->why, "make mount path %s", target);
    return -1;
}

// The source of a mount, as a descriptor. The agent resolved it; a link that has appeared since is not followed, for it might
// lead to what no pod may see. A container may have put links into its volume: a subPath follows none either.
static int open_source(struct builder *b, const struct mount *m) {
    struct open_how plain = {.flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_NO_SYMLINKS};
    int fd = (int)syscall(SYS_openat2, AT_FDCWD, m->source, &plain, sizeof plain);
    if (fd < 0) {
        explain_errno(b->why, "volume source %s", m->source);
        return -1;
    }
    const char *rest = m->sub_path;
    while (*rest) {
        char name[256];
        size_t n = strcspn(rest, "/");
        if (n >= sizeof name) {
            errno = ENAMETOOLONG;
            goto failed;
        }
        memcpy(name, rest, n);
        name[n] = 0;
        struct open_how how = {.flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS};
        int next = (int)syscall(SYS_openat2, fd, name, &how, sizeof how);
        if (next < 0 && errno == ENOENT && m->flags & MOUNT_MAY_CREATE) {
            if (mkdirat(fd, name, 0777) < 0) goto failed;
            if (fchmodat(fd, name, 02777, 0) < 0 || fchownat(fd, name, (uid_t)-1, b->pod->gid, AT_SYMLINK_NOFOLLOW) < 0) goto failed;
            next = (int)syscall(SYS_openat2, fd, name, &how, sizeof how);
        }
        if (next < 0) goto failed;
        close(fd);
        fd = next;
        rest += n + strspn(rest + n, "/");
    }
    return fd;
failed:
    explain_errno(b->why, "subPath %s of volume source %s", m->sub_path, m->source);
    close(fd);
    return -1;
}

static int cover(struct builder *b, const char *path) {
    struct stat info;
    char empty[PATH_BYTES];
    if (lstat(path, &info) < 0) return 0;
    if (S_ISLNK(info.st_mode)) return 0;
    snprintf(empty, sizeof empty, S_ISDIR(info.st_mode) ? "%s/empty" : "/dev/null", b->pod->stage);
    if (bind_tree(AT_FDCWD, empty, path, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, true) < 0) {
        explain_errno(b->why, "cover %s", path + strlen(b->root));
        return -1;
    }
    return 0;
}

static int mount_volume(struct builder *b, const struct mount *m) {
    char real[PATH_BYTES], path[PATH_BYTES];
    int source = open_source(b, m);
    if (source < 0) return -1;
    struct stat info;
    if (fstat(source, &info) < 0) {
        explain_errno(b->why, "volume source %s", m->source);
        goto failed;
    }
    if (m->flags & MOUNT_OPTIONAL) {
        const char *rest = resolve(b, m->target, real);
        if (!rest || *rest) {
            close(source);
            return 0;
        }
    } else if (make_mount_point(b, m->target, S_ISDIR(info.st_mode), real) < 0) {
        goto failed;
    }
    uint64_t attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | (m->flags & MOUNT_READ_ONLY ? MOUNT_ATTR_RDONLY : 0);
    if (bind_tree(source, "", real, attributes, true) < 0) {
        explain_errno(b->why, "mount %s on %s", m->source, m->target);
        goto failed;
    }
    close(source);
    // What no pod may see stays unseen through a hostPath that lies above it.
    for (uint32_t i = 0; i < b->pod->mask_count; i++) {
        const char *mask = b->pod->masks[i];
        size_t n = strcmp(m->source, "/") == 0 ? 0 : strlen(m->source);
        if (m->sub_path[0] || !(n == 0 || is_below(mask, m->source))) continue;
        if (snprintf(path, sizeof path, "%s%s", real, mask + n) < (int)sizeof path && cover(b, path) < 0) return -1;
    }
    bool own = m->flags & MOUNT_MAY_CREATE && !(m->flags & MOUNT_READ_ONLY);
    return add_place(b, real, own ? PLACE_VOLUME : PLACE_CLOSED, -1);
failed:
    close(source);
    return -1;
}

static int bind_shared(struct builder *b, const char *source, const char *name, uint64_t attributes, bool recursive) {
    char target[PATH_BYTES];
    snprintf(target, sizeof target, "%s/%s", b->root, name);
    if ((mkdir(target, 0755) < 0 && errno != EEXIST) || bind_tree(AT_FDCWD, source, target, attributes, recursive) < 0) {
        explain_errno(b->why, "mount /%s", name);
        return -1;
    }
    return 0;
}

// /etc/resolv.conf is often a link into /run, which the container has its own of.
static int keep_resolver(struct builder *b) {
    char real[PATH_BYTES], path[PATH_BYTES];
    if (!realpath("/etc/resolv.conf", real) || !is_below(real, "/run")) return 0;
    for (char *slash = strchr(real + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        snprintf(path, sizeof path, "%s%.*s", b->root, (int)(slash - real), real);
        mkdir(path, 0755);
    }
    snprintf(path, sizeof path, "%s%s", b->root, real);
    int fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
    if (fd >= 0) close(fd);
    if (bind_tree(AT_FDCWD, real, path, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, true) < 0) {
        explain_errno(b->why, "bind %s", real);
        return -1;
    }
    return 0;
}

int build_root(const struct pod *pod, const struct start *start, char *why) {
    static struct builder builder;  // large, and this process builds one root in its life
    struct builder *b = &builder;
    char path[PATH_BYTES], source[PATH_BYTES];
    b->pod = pod;
    b->why = why;
    b->root = join(pod->stage, "/root");
    bool host = start->image[0] == 0;

    int image = open(host ? "/" : start->image, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (image < 0) {
        explain_errno(why, "open the image's root %s", host ? "/" : start->image);
        return -1;
    }
    if (make_skeleton(b, image, b->root, true) < 0) return -1;
    close(image);
    b->root_fd = open(b->root, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (b->root_fd < 0) {
        explain_errno(why, "open %s", b->root);
        return -1;
    }
    if (host) {
        for (uint32_t i = 0; i < pod->mask_count; i++)
            if (snprintf(path, sizeof path, "%s%s", b->root, pod->masks[i]) < (int)sizeof path && cover(b, path) < 0) return -1;
    }

    const uint64_t closed = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
    snprintf(source, sizeof source, "%s/proc", pod->stage);
    if (bind_shared(b, source, "proc", MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC, false) < 0) return -1;
    if (bind_shared(b, "/sys", "sys", closed, true) < 0) return -1;
    snprintf(source, sizeof source, "%s/dev", pod->stage);
    if (bind_shared(b, source, "dev", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC, false) < 0) return -1;
    snprintf(source, sizeof source, "%s/tmp", start->directory);
    if (bind_shared(b, source, "tmp", MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, true) < 0) return -1;
    snprintf(path, sizeof path, "%s/tmp", b->root);
    if (add_place(b, path, PLACE_VOLUME, -1) < 0) return -1;
    snprintf(path, sizeof path, "%s/var/tmp", b->root);
    struct stat info;
    if (lstat(path, &info) == 0 && S_ISDIR(info.st_mode)
        && bind_tree(AT_FDCWD, source, path, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, true) < 0) {
        explain_errno(why, "mount /var/tmp");
        return -1;
    }
    snprintf(path, sizeof path, "%s/run", b->root);
    if (mkdir(path, 0755) < 0 || add_place(b, path, PLACE_SKELETON, -1) < 0) {
        explain_errno(why, "make /run");
        return -1;
    }
    snprintf(source, sizeof source, "%s/run", pod->directory);
    if (bind_shared(b, source, "run/coterie", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, true) < 0) return -1;
    if (keep_resolver(b) < 0) return -1;

    for (uint32_t i = 0; i < start->mount_count; i++)
        if (mount_volume(b, &start->mounts[i]) < 0) return -1;

    // The skeletons are full now: close them too.
    struct mount_attr attr = {.attr_set = MOUNT_ATTR_RDONLY};
    for (size_t i = 0; i < b->place_count; i++) {
        if (b->places[i].mount < 0) continue;
        if (mount_setattr(b->places[i].mount, "", AT_EMPTY_PATH, &attr, sizeof attr) < 0) {
            explain_errno(why, "make the container's root read-only");
            return -1;
        }
        close(b->places[i].mount);
    }

    if (fchdir(b->root_fd) < 0 || syscall(SYS_pivot_root, ".", ".") < 0 || umount2(".", MNT_DETACH) < 0 || chdir("/") < 0) {
        explain_errno(why, "change to the container's root");
        return -1;
    }
    return 0;
}
