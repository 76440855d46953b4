/* Loaded into an edge by LD_PRELOAD: kills the process with SIGKILL right before the Nth call that
 * changes a regular file or a directory, starts a program, or sends on a socket; or right before the
 * first such call of a name.
 *
 *   SATRAP_KILL_AT    N, from 1; 0 for none
 *   SATRAP_KILL_CALL  the name of the call, and
 *   SATRAP_KILL_PATH  a part of its path
 *   SATRAP_KILL_LOG   a file that gets the name of that call and its path
 *
 * Kills before call N and before call N+1 together cover every state that a crash can leave.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static long kill_at;
static const char *kill_call, *kill_path;
static const char *kill_log;
static atomic_long calls;

__attribute__((constructor)) static void arm(void) {
    const char *at = getenv("SATRAP_KILL_AT");
    const char *log = getenv("SATRAP_KILL_LOG");
    kill_at = at ? atol(at) : 0;
    const char *call = getenv("SATRAP_KILL_CALL"), *path = getenv("SATRAP_KILL_PATH");
    kill_call = strdup(call ? call : "");
    kill_path = strdup(path ? path : "");
    kill_log = log ? strdup(log) : "/dev/null";
    /* The hook is not what is killed. */
    unsetenv("LD_PRELOAD");
}

static void step(const char *call, const char *path) {
    int is_named = strcmp(call, kill_call) == 0 && strstr(path, kill_path);
    if (atomic_fetch_add(&calls, 1) + 1 != kill_at && !is_named) return;
    char line[PATH_MAX + 64];
    int length = snprintf(line, sizeof line, "%s %s", call, path);
    int fd = syscall(SYS_openat, AT_FDCWD, kill_log, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    syscall(SYS_write, fd, line, (size_t)length);
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) pause();
}

/* Counts calls on regular files, directories and sockets; not on pipes, logs and event queues. */
static void step_fd(const char *call, int fd) {
    struct stat status;
    if (fd <= 2 || fstat(fd, &status) != 0) return;
    if (!S_ISREG(status.st_mode) && !S_ISDIR(status.st_mode) && !S_ISSOCK(status.st_mode)) return;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    path[length < 0 ? 0 : length] = 0;
    step(call, path);
}

int open64(const char *path, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = va_arg(arguments, mode_t);
    va_end(arguments);
    if (flags & (O_CREAT | O_TRUNC)) step("create", path);
    return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}
ssize_t write(int fd, const void *bytes, size_t length) {
    step_fd("write", fd);
    return syscall(SYS_write, fd, bytes, length);
}
ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t offset) {
    step_fd("write", fd);
    return syscall(SYS_pwrite64, fd, bytes, length, offset);
}
ssize_t send(int fd, const void *bytes, size_t length, int flags) {
    step_fd("send", fd);
    return syscall(SYS_sendto, fd, bytes, length, flags, NULL, 0);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
    step_fd("send", fd);
    return syscall(SYS_writev, fd, parts, count);
}
int fsync(int fd) {
    step_fd("sync", fd);
    return syscall(SYS_fsync, fd);
}
int fdatasync(int fd) {
    step_fd("sync", fd);
    return syscall(SYS_fdatasync, fd);
}
int ftruncate64(int fd, off64_t length) {
    step_fd("truncate", fd);
    return syscall(SYS_ftruncate, fd, length);
}
int mkdir(const char *path, mode_t mode) {
    step("mkdir", path);
    return syscall(SYS_mkdirat, AT_FDCWD, path, mode);
}
int rename(const char *from, const char *to) {
    step("rename", to);
    return syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}
int symlink(const char *target, const char *path) {
    step("symlink", path);
    return syscall(SYS_symlinkat, target, AT_FDCWD, path);
}
int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags) {
    step("link", to);
    return syscall(SYS_linkat, from_dir, from, to_dir, to, flags);
}
int unlink(const char *path) {
    step("unlink", path);
    return syscall(SYS_unlinkat, AT_FDCWD, path, 0);
}
int unlinkat(int dir, const char *path, int flags) {
    step("unlink", path);
    return syscall(SYS_unlinkat, dir, path, flags);
}

typedef int (*spawn_function)(pid_t *, const char *, const posix_spawn_file_actions_t *,
                              const posix_spawnattr_t *, char *const[], char *const[]);

int posix_spawnp(pid_t *pid, const char *file, const posix_spawn_file_actions_t *actions,
                 const posix_spawnattr_t *attributes, char *const argv[], char *const envp[]) {
    step("spawn", file);
    spawn_function next = (spawn_function)dlsym(RTLD_NEXT, "posix_spawnp");
    return next(pid, file, actions, attributes, argv, envp);
}
