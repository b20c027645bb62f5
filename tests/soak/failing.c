/* Makes calls of the system fail, for a library that LD_PRELOAD names: of one kind, under one folder, the nth
   alone or from the nth on. With a log and no fault it writes down each such call. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN, WRITE, FSYNC, RENAME, MKDIR, KINDS };
static const char *NAMES[KINDS] = {"open", "write", "fsync", "rename", "mkdir"};

static char folder[PATH_MAX];
static char only[PATH_MAX];
static int kind = -1, number, for_good, log_file = -1;
static long nth;
static atomic_long counts[KINDS];

/* In: fails with ERRNO from the NTH call of KIND on (counted from 1) whose path has PART; KIND -1: none. */
void failing(const char *in, int of_kind, const char *part, long nth_call, int error, int always, int log)
{
    strncpy(folder, in, sizeof folder - 1);
    strncpy(only, part, sizeof only - 1);
    kind = of_kind, nth = nth_call, number = error, for_good = always, log_file = log;
}

static int fails(int of_kind, const char *path)
{
    if (!folder[0] || strncmp(path, folder, strlen(folder)))
        return 0;
    if (only[0] && !strstr(path, only))
        return 0;
    long now = atomic_fetch_add(&counts[of_kind], 1) + 1;
    int hit = of_kind == kind && (now == nth || (for_good && now > nth));
    if (log_file >= 0 && (kind < 0 || hit)) {
        char line[PATH_MAX + 64];
        int length = snprintf(line, sizeof line, "%s %ld %s\n", NAMES[of_kind], now, path + strlen(folder));
        syscall(SYS_write, log_file, line, length);
    }
    if (hit)
        errno = number;
    return hit;
}

static int fails_at(int of_kind, int at, const char *path)
{
    char whole[PATH_MAX * 2], link[64];
    if (path[0] == '/')
        return fails(of_kind, path);
    snprintf(link, sizeof link, at == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", at);
    ssize_t length = readlink(link, whole, PATH_MAX - 1);
    if (length < 0)
        return 0;
    snprintf(whole + length, PATH_MAX, "/%s", path);
    return fails(of_kind, whole);
}

static int fails_on(int of_kind, int file)
{
    char path[PATH_MAX], link[64];
    if (!folder[0])
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return fails(of_kind, path);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define OPENS(name)                                                                    \
    int name(const char *path, int flags, ...)                                         \
    {                                                                                  \
        va_list more;                                                                  \
        va_start(more, flags);                                                         \
        int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, int) : 0;              \
        va_end(more);                                                                  \
        if (flags & (O_WRONLY | O_RDWR | O_CREAT) && fails_at(OPEN, AT_FDCWD, path))   \
            return -1;                                                                 \
        return REAL(name)(path, flags, mode);                                          \
    }
OPENS(open)
OPENS(open64)

#define OPENS_AT(name)                                                                 \
    int name(int at, const char *path, int flags, ...)                                 \
    {                                                                                  \
        va_list more;                                                                  \
        va_start(more, flags);                                                         \
        int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, int) : 0;              \
        va_end(more);                                                                  \
        if (flags & (O_WRONLY | O_RDWR | O_CREAT) && fails_at(OPEN, at, path))         \
            return -1;                                                                 \
        return REAL(name)(at, path, flags, mode);                                      \
    }
OPENS_AT(openat)
OPENS_AT(openat64)

#define FOPENS(name)                                                                   \
    FILE *name(const char *path, const char *mode)                                     \
    {                                                                                  \
        if (mode[0] != 'r' && fails_at(OPEN, AT_FDCWD, path))                          \
            return NULL;                                                               \
        return REAL(name)(path, mode);                                                 \
    }
FOPENS(fopen)
FOPENS(fopen64)

ssize_t write(int file, const void *from, size_t count)
{
    return fails_on(WRITE, file) ? -1 : REAL(write)(file, from, count);
}
ssize_t pwrite(int file, const void *from, size_t count, off_t at)
{
    return fails_on(WRITE, file) ? -1 : REAL(pwrite)(file, from, count, at);
}
ssize_t pwrite64(int file, const void *from, size_t count, off64_t at)
{
    return fails_on(WRITE, file) ? -1 : REAL(pwrite64)(file, from, count, at);
}
ssize_t writev(int file, const struct iovec *from, int count)
{
    return fails_on(WRITE, file) ? -1 : REAL(writev)(file, from, count);
}
int posix_fallocate(int file, off_t at, off_t length)
{
    return fails_on(WRITE, file) ? errno : REAL(posix_fallocate)(file, at, length);
}
int posix_fallocate64(int file, off64_t at, off64_t length)
{
    return fails_on(WRITE, file) ? errno : REAL(posix_fallocate64)(file, at, length);
}
int fsync(int file) { return fails_on(FSYNC, file) ? -1 : REAL(fsync)(file); }
int fdatasync(int file) { return fails_on(FSYNC, file) ? -1 : REAL(fdatasync)(file); }
int rename(const char *from, const char *to)
{
    return fails_at(RENAME, AT_FDCWD, to) ? -1 : REAL(rename)(from, to);
}
int renameat(int from_at, const char *from, int at, const char *to)
{
    return fails_at(RENAME, at, to) ? -1 : REAL(renameat)(from_at, from, at, to);
}
int link(const char *from, const char *to)
{
    return fails_at(RENAME, AT_FDCWD, to) ? -1 : REAL(link)(from, to);
}
int linkat(int from_at, const char *from, int at, const char *to, int flags)
{
    return fails_at(RENAME, at, to) ? -1 : REAL(linkat)(from_at, from, at, to, flags);
}
int mkdir(const char *path, mode_t mode)
{
    return fails_at(MKDIR, AT_FDCWD, path) ? -1 : REAL(mkdir)(path, mode);
}
int mkdirat(int at, const char *path, mode_t mode)
{
    return fails_at(MKDIR, at, path) ? -1 : REAL(mkdirat)(at, path, mode);
}
