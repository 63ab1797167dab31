/* A disk that breaks: preloaded, it lets a given number of changes below a folder pass, then refuses all.

   BROKEN_BELOW   the folder
   BROKEN_STATE   a file of two ints that all processes share: changes left, and the errno from then on
*/
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static const char *below;
static size_t length;
static struct { atomic_int left, error; } *state;

__attribute__((constructor)) static void begin(void) {
    const char *file = getenv("BROKEN_STATE");
    below = getenv("BROKEN_BELOW");
    if (!below || !file) return;
    length = strlen(below);
    int fd = open(file, O_RDWR | O_CLOEXEC);
    void *found = fd < 0 ? MAP_FAILED : mmap(0, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (found != MAP_FAILED) state = found;
    if (fd >= 0) close(fd);
}

/* Whether a change there is refused. `frees`: a full disk lets it pass. */
static int refused(const char *path, int frees) {
    if (!state || !path || strncmp(path, below, length)) return 0;
    if (atomic_load(&state->left) > 0 && atomic_fetch_sub(&state->left, 1) > 0) return 0;
    int error = atomic_load(&state->error);
    if (frees && error != EIO && error != EROFS) return 0;
    errno = error;
    return 1;
}

static int refused_at(int folder, const char *path, int frees) {
    char link[64], whole[2 * PATH_MAX];
    if (!state || !path) return 0;
    if (path[0] == '/') return refused(path, frees);
    if (folder == AT_FDCWD) {
        if (!getcwd(whole, PATH_MAX)) return 0;
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        ssize_t size = readlink(link, whole, PATH_MAX - 1);
        if (size < 0) return 0;
        whole[size] = 0;
    }
    strcat(whole, "/");
    strncat(whole, path, PATH_MAX - 1);
    return refused(whole, frees);
}

static int refused_fd(int fd) { return refused_at(fd, "", 0); }

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define CHANGES(flags) ((flags) & (O_CREAT | O_WRONLY | O_RDWR | O_TRUNC))

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \
        if (CHANGES(flags) && refused_at(AT_FDCWD, path, 0)) return -1; \
        return NEXT(name)(path, flags, mode); }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \
        if (CHANGES(flags) && refused_at(folder, path, 0)) return -1; \
        return NEXT(name)(folder, path, flags, mode); }
OPENAT(openat)
OPENAT(openat64)

#define ON_FD(type, name, parameters, ...) \
    type name parameters { return refused_fd(fd) ? -1 : NEXT(name)(__VA_ARGS__); }
ON_FD(ssize_t, write, (int fd, const void *data, size_t size), fd, data, size)
ON_FD(ssize_t, writev, (int fd, const struct iovec *data, int count), fd, data, count)
ON_FD(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at), fd, data, size, at)
ON_FD(ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t at), fd, data, size, at)
ON_FD(int, fsync, (int fd), fd)
ON_FD(int, fdatasync, (int fd), fd)

int posix_fallocate(int fd, off_t at, off_t size) {
    return refused_fd(fd) ? errno : NEXT(posix_fallocate)(fd, at, size);
}
int posix_fallocate64(int fd, off64_t at, off64_t size) {
    return refused_fd(fd) ? errno : NEXT(posix_fallocate64)(fd, at, size);
}

#define ON_PATH(name, frees, parameters, ...) \
    int name parameters { return refused_at(AT_FDCWD, path, frees) ? -1 : NEXT(name)(__VA_ARGS__); }
ON_PATH(mkdir, 0, (const char *path, mode_t mode), path, mode)
ON_PATH(rename, 1, (const char *path, const char *to), path, to)
ON_PATH(unlink, 1, (const char *path), path)
ON_PATH(rmdir, 1, (const char *path), path)

int mkdirat(int folder, const char *path, mode_t mode) {
    return refused_at(folder, path, 0) ? -1 : NEXT(mkdirat)(folder, path, mode);
}
int unlinkat(int folder, const char *path, int flags) {
    return refused_at(folder, path, 1) ? -1 : NEXT(unlinkat)(folder, path, flags);
}
int renameat(int from, const char *path, int to, const char *name) {
    return refused_at(from, path, 1) ? -1 : NEXT(renameat)(from, path, to, name);
}
