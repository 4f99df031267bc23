// Stands in for a disk across a network, by LD_PRELOAD: what is written below a folder is slow, short, and fails for a while.
//
// SLOW_DISK names the folder, SLOW_MS how long an operation takes at most, SLOW_AFTER and SLOW_COUNT which operations
// of a process fail, and SLOW_ERRNO with what, as ESTALE of NFS is. SLOW_SHORT writes a part of what is given.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static long number(const char *name) {
  const char *text = getenv(name);
  return text ? atol(text) : 0;
}

static int below(const char *path) {
  const char *folder = getenv("SLOW_DISK");
  size_t size = folder ? strlen(folder) : 0;
  /* Not what only begins as it is called. */
  return size && path && strncmp(path, folder, size) == 0 && (path[size] == 0 || path[size] == '/');
}

static int is_there(int fd) {
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t size = readlink(link, path, sizeof path - 1);
  if (size <= 0) return 0;
  path[size] = 0;
  return below(path);
}

static int fails(void) {
  static long operations = 0;
  long now = __sync_fetch_and_add(&operations, 1), after = number("SLOW_AFTER");
  if (getenv("SLOW_SEEN")) {
    int seen = ((int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open"))(getenv("SLOW_SEEN"), O_CREAT | O_WRONLY, 0600);
    if (seen >= 0) close(seen);
  }
  struct timespec wait = {0, (now * 7919 % 100) * number("SLOW_MS") * 10000L};
  nanosleep(&wait, NULL);
  if (now < after || now >= after + number("SLOW_COUNT")) return 0;
  if (getenv("SLOW_TOLD")) {
    int told = open(getenv("SLOW_TOLD"), O_CREAT | O_WRONLY, 0600);
    if (told >= 0) close(told);
  }
  errno = (int)number("SLOW_ERRNO");
  return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *data, size_t size) {
  if (is_there(fd)) {
    if (fails()) return -1;
    if (number("SLOW_SHORT") && size > 1) size = size / 2;
  }
  return REAL(write)(fd, data, size);
}

int fsync(int fd) { return is_there(fd) && fails() ? -1 : REAL(fsync)(fd); }
int fdatasync(int fd) { return is_there(fd) && fails() ? -1 : REAL(fdatasync)(fd); }
int rename(const char *from, const char *to) { return below(to) && fails() ? -1 : REAL(rename)(from, to); }
int mkdir(const char *path, mode_t mode) {
  return below(path) && fails() ? -1 : ((int (*)(const char *, mode_t))dlsym(RTLD_NEXT, "mkdir"))(path, mode);
}

static int opened(const char *name, const char *path, int flags, mode_t mode) {
  if (below(path) && strcmp(path, getenv("SLOW_TOLD") ? getenv("SLOW_TOLD") : "") && fails()) return -1;
  return ((int (*)(const char *, int, ...))dlsym(RTLD_NEXT, name))(path, flags, mode);
}

int open(const char *path, int flags, ...) {
  va_list given;
  va_start(given, flags);
  mode_t mode = va_arg(given, mode_t);
  va_end(given);
  return opened("open", path, flags, mode);
}

int open64(const char *path, int flags, ...) {
  va_list given;
  va_start(given, flags);
  mode_t mode = va_arg(given, mode_t);
  va_end(given);
  return opened("open64", path, flags, mode);
}
